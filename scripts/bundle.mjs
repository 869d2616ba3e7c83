// Joins what `import 'caravan-train'`, the command line and the process of verifiers load into few files, over those
// of tsc: to find, read, link and compile a module of its own takes Node about a millisecond, and there are 250, which
// makes it four times as long. The rest of dist/ stays as tsc wrote it: the entry files of workers and child
// processes, which load little, and what tests and scripts import. With the files of tsc alone everything works as
// well, and starts later.
import { readFileSync, rmSync } from 'node:fs'
import { join, relative } from 'node:path'
import { build } from 'rolldown'

/** The files that are replaced: what the package exports, and the command line, whose help needs little of it. */
const LIBRARY = 'index'
const COMMAND_LINE = 'cli/main'
/** And the process that verifies: it has all verifiers, and starts anew whenever one of them hangs. */
const VERIFIERS = 'verify/verifier_worker'
/** The folder of everything else that is written. */
const JOINED = 'joined'

const manifest = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))
/** Loaded from where they are installed. */
const packages = Object.keys({ ...manifest.dependencies, ...manifest.peerDependencies })

/** Parts of Node that take milliseconds to load and are needed late: their functions find them when they are called. */
const LATE = ['child_process', 'crypto', 'v8', 'vm', 'zlib']
const LATE_IMPORT = new RegExp(`^import \\{ ([\\w, ]+) \\} from '(node:(?:${LATE.join('|')}))';$`, 'gm')

/** Joins the files that tsc wrote to the folder `from` and writes them, with source maps, to the folder `to`. */
export async function bundle(from, to = from) {
  const input = Object.fromEntries([LIBRARY, COMMAND_LINE, VERIFIERS].map((name) => [name, join(from, `${name}.js`)]))
  const entries = Object.values(input)
  rmSync(join(to, JOINED), { recursive: true, force: true })
  const library = new Set()
  const start = new Set()
  const verifiers = new Set()
  const group = (name, isMember) => ({ name, test: (id) => isMember(id) && !entries.includes(id) })
  await build({
    input,
    platform: 'node',
    tsconfig: false, // The code is JavaScript that this Node runs.
    external: packages,
    plugins: [
      modulesOfTsc(entries, join(to, JOINED)),
      {
        name: 'reach',
        buildEnd() {
          addReached(this, input[LIBRARY], library)
          addReached(this, input[COMMAND_LINE], start)
          addReached(this, input[VERIFIERS], verifiers)
        },
      },
    ],
    logLevel: 'warn',
    output: {
      dir: to,
      format: 'esm',
      sourcemap: true,
      // As it was written, but for comments; and of one byte a character, which halves the memory of the text.
      comments: false,
      minify: { mangle: false, compress: false, codegen: { removeWhitespace: false, asciiOnly: true } },
      entryFileNames: '[name].js',
      chunkFileNames: `${JOINED}/[name].js`,
      // A module goes to the first of them that wants it; those that both entries load may bring no more with them.
      codeSplitting: {
        groups: [
          group('base', (id) => library.has(id) && start.has(id)),
          group('start', (id) => start.has(id)),
          group('verifiers', (id) => verifiers.has(id)),
          group('library', (id) => library.has(id)),
        ],
      },
    },
  })
}

/** Adds to `reached` the modules that importing `id` loads at once. */
function addReached(context, id, reached) {
  if (reached.has(id)) return
  reached.add(id)
  for (const imported of context.getModuleInfo(id)?.importedIds ?? []) addReached(context, imported, reached)
}

/** Reads modules with their source maps. `import.meta.url` goes on naming the file of a module, not the joined one. */
function modulesOfTsc(entries, joined) {
  return {
    name: 'modules-of-tsc',
    load(id) {
      const map = JSON.parse(readFileSync(`${id}.map`, 'utf8'))
      const code = readFileSync(id, 'utf8').replace(/\n\/\/# sourceMappingURL=.*\s*$/, '\n')
      if (entries.includes(id)) return { code, map }
      const address = JSON.stringify(relative(joined, id).replaceAll('\\', '/'))
      // On the same lines as before: only columns move.
      const placed = code.replaceAll('import.meta.url', `new URL(${address}, import.meta.url).href`)
      return { code: placed.replace(LATE_IMPORT, (_, names, builtin) => lateFunctions(names, builtin)), map }
    },
    generateBundle(_, files) {
      for (const { type, fileName, moduleIds } of Object.values(files)) {
        if (type !== 'chunk' || fileName.startsWith(`${JOINED}/`)) continue
        const strange = moduleIds.filter((id) => !entries.includes(id))
        if (strange.length > 0) this.error(`${fileName} must hold its own module alone, but has ${strange.join(', ')}`)
      }
    },
  }
}

function lateFunctions(names, builtin) {
  const functions = names.split(', ').map((name) => {
    return `const ${name} = (...values) => process.getBuiltinModule('${builtin}').${name}(...values);`
  })
  return functions.join(' ')
}
