// What `import 'caravan-train'` loads: no package, since each waits until it is used, and few files. The list of
// modules is Node's own, from a new process.
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { describe, expect, it } from 'vitest'
import { temporaryFolder } from '../cli/command_line.js'

const root = fileURLToPath(new URL('../../', import.meta.url))
const index = join(root, 'dist/index.js')
const folder = temporaryFolder()
const address = JSON.stringify(pathToFileURL(index).href)
const isJoined = readFileSync(index, 'utf8').includes('./joined/')

/** Runs a module in a new process; the value is what it prints last, parsed. */
function printed<T>(script: string): T {
  const lines = execFileSync(process.execPath, ['--input-type=module', '--eval', script], { encoding: 'utf8' })
  return JSON.parse(lines.trim().split('\n').at(-1)!) as T
}

/** The modules, native ones among them, that importing the file loads: addresses, and `node:` names. */
function loadedBy(file: string): string[] {
  const hooks = `export async function resolve(specifier, context, next) {
    const found = await next(specifier, context)
    process.stdout.write(found.url + '\\n')
    return found
  }`
  const script = `import { register, createRequire } from 'node:module'
    register('data:text/javascript,' + encodeURIComponent(${JSON.stringify(hooks)}))
    await import(${JSON.stringify(pathToFileURL(file).href)})
    for (const path of Object.keys(createRequire(import.meta.url).cache)) console.log(path)
    for (const path of process.report.getReport().sharedObjects) if (path.endsWith('.node')) console.log(path)`
  const text = execFileSync(process.execPath, ['--input-type=module', '--eval', script], { encoding: 'utf8' })
  return [...new Set(text.trim().split('\n'))].filter((one) => one !== 'node:module')
}

const isOfThePackage = (address: string) => address.startsWith(pathToFileURL(join(root, 'dist/')).href)

describe('the import of the package', () => {
  const loaded = loadedBy(index)

  it('sees what is loaded', () => {
    expect(loaded).toContain(pathToFileURL(index).href)
    expect(loaded).toContain('node:fs')
    expect(loadedBy(join(root, 'dist/data/parquet_process.js')).join()).toContain('node_modules/hyparquet/')
  })

  it.skipIf(!isJoined)('leaves what runs recipes, and slow parts of Node, for later', () => {
    const late = ['child_process', 'crypto', 'worker_threads', 'zlib'].map((name) => `node:${name}`)
    expect(loaded.filter((one) => late.includes(one) || /joined\/(run|plan)\.js/.test(one))).toEqual([])
  })

  it('loads no package and no native code', () => {
    expect(loaded.filter((one) => !one.startsWith('node:') && !isOfThePackage(one))).toEqual([])
  })

  it.skipIf(!isJoined)('loads few files, as `npm run build -- --ts` joins them', () => {
    expect(loaded.filter(isOfThePackage).length).toBeLessThanOrEqual(4)
    const help = loadedBy(join(root, 'dist/cli/main.js')).filter(isOfThePackage)
    expect(help.map((one) => one.slice(one.indexOf('/dist/'))).sort()).toEqual([
      '/dist/cli/main.js',
      '/dist/joined/base.js',
      '/dist/joined/start.js',
    ])
    const verifiers = readFileSync(join(root, 'dist/verify/verifier_worker.js'), 'utf8')
    expect(verifiers).not.toContain('../joined/library.js')
    expect(verifiers).toContain('../joined/verifiers.js')
  })
})

describe.skipIf(!isJoined)('the joined files', () => {
  it('name the files of the modules that start others or load what lies beside them', () => {
    const folder = join(root, 'dist/joined')
    const named = readdirSync(folder)
      .filter((name) => name.endsWith('.js'))
      .flatMap((name) => [
        ...readFileSync(join(folder, name), 'utf8').matchAll(/new URL\("([^"]+)", import\.meta\.url\)/g),
      ])
      .map(([, address]) => join(folder, address!))
    expect(named.map((path) => path.slice(join(root, 'dist/').length))).toEqual(
      expect.arrayContaining(['runtime/addon.js', 'verify/verifier_process.js', 'text/tokenizer.js']),
    )
    expect(named.filter((path) => !existsSync(path))).toEqual([])
  })

  it('start processes, load the engine and read the data beside the sources', () => {
    const input = {
      completion: 'Dies ist ein kurzer Satz, und noch einer, der auf Deutsch geschrieben ist.',
      row: { instruction_id_list: ['language:response_language'], kwargs: [{ language: 'de' }] },
    }
    const found = printed<{ here: number; there: number[]; sum: number }>(
      `import { findVerifier, openDevice, ops, Tensor, VerifierPool } from ${address}
      const input = ${JSON.stringify(input)}
      const here = findVerifier('ifeval').verify(input).score
      const pool = new VerifierPool({ threads: 1 })
      const there = await pool.verify([{ verifier: 'ifeval', input }])
      await pool.dispose()
      const device = openDevice({ threads: 1 })
      const sum = await ops.sum(Tensor.from(device, new Float32Array([1, 2, 3]), [3]), 0).item()
      console.log(JSON.stringify({ here, there: there.map(({ score }) => score), sum }))`,
    )
    expect(found).toEqual({ here: 1, there: [1], sum: 6 })
  })

  it('know the errors that a verifier of the user makes with the package, in a process that has both', () => {
    const module = join(folder, 'brief.mjs')
    writeFileSync(
      module,
      `import { CaravanError } from ${address}
      export const verifier = {
        name: 'brief',
        summary: 'refuses every row',
        verify() { throw new CaravanError('ERR_DATA', 'brief: the row has no limit') },
      }`,
    )
    const found = printed<{ code: string; message: string }>(
      `import { VerifierPool } from ${address}
      const pool = new VerifierPool({ threads: 1 })
      const task = { verifier: ${JSON.stringify(module)}, input: { completion: 'x' } }
      const error = await pool.verify([task]).then(() => undefined, (error) => error)
      await pool.dispose()
      console.log(JSON.stringify({ code: error?.code, message: error?.message }))`,
    )
    expect(found).toEqual({ code: 'ERR_DATA', message: 'task 0: brief: the row has no limit' })
  })
})
