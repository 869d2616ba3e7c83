// Packs what a machine without Node and without npm needs to run the command line on its GPU, into carry/: the Node
// that runs this (node.xz), and the build with the few packages that the benchmark imports (engine.tar.xz).
import { spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
/** What the commands of scripts/gpu_check import, and the headers for a build there. */
const packages = [
  ...['commander', 'picocolors', 'log-update', 'yaml'],
  ...['tokenizers', '@huggingface/jinja', 'hyparquet', 'hyparquet-compressors'],
  ...['node-addon-api', 'node-api-headers'],
]
/** Of a package with a binary for every platform, this one's alone. */
const isForeign = (path) => path.endsWith('.node') && !path.includes(`${process.platform}-${process.arch}-gnu`)
const MOST_BYTES = 64 * 2 ** 20

/** Folders of `names` and of all that they depend on, by name. */
function closure(names) {
  const found = new Map()
  const visit = (name, from) => {
    if (found.has(name)) return
    const folder = packageFolder(name, from)
    const { dependencies = {} } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
    found.set(name, folder)
    for (const one of Object.keys(dependencies)) visit(one, folder)
  }
  for (const name of names) visit(name, root)
  return found
}

/** Where Node would find the package `name` from `folder`. */
function packageFolder(name, folder) {
  for (const path of createRequire(join(folder, 'index.js')).resolve.paths(name)) {
    if (existsSync(join(path, name, 'package.json'))) return realpathSync(join(path, name))
  }
  throw new Error(`the package ${name} is not installed: run npm ci`)
}

function run(command, words) {
  const { status, stdout, stderr, error } = spawnSync(command, words, { maxBuffer: 1 << 30 })
  if (status === 0) return stdout
  console.error(`${command} ${words.join(' ')} failed: ${error?.message ?? stderr}`)
  process.exit(1)
}

for (const needed of ['dist/cli/main.js', 'build/Release/caravan.node']) {
  if (existsSync(join(root, needed))) continue
  console.error(`${needed} is missing: run npm run build first`)
  process.exit(1)
}
if (!existsSync(join(root, 'build/Release/caravan_cuda.so'))) {
  console.error('no build/Release/caravan_cuda.so (nvcc was not found): the GPU machine will have to build it')
}
const carry = join(root, 'carry')
const staged = mkdtempSync(join(tmpdir(), 'caravan-pack-'))
mkdirSync(carry, { recursive: true })
for (const name of ['dist', 'build/Release', 'package.json'])
  cpSync(join(root, name), join(staged, name), { recursive: true })
for (const name of ['torch_kernels.py', 'torch_peer.py']) cpSync(join(root, 'bench', name), join(staged, 'bench', name))
for (const [name, folder] of closure(packages)) {
  cpSync(folder, join(staged, 'node_modules', name), {
    recursive: true,
    filter: (path) => !/\.d\.[cm]?ts$|\.map$/.test(path) && !isForeign(path),
  })
}
run('tar', ['-C', staged, '-cf', join(staged, '..', 'engine.tar'), '.'])
rmSync(staged, { recursive: true })
const engine = join(tmpdir(), 'engine.tar')
writeFileSync(join(carry, 'engine.tar.xz'), run('xz', ['-3', '-c', engine]))
rmSync(engine)
writeFileSync(join(carry, 'node.xz'), run('xz', ['-3', '-c', realpathSync(process.execPath)]))

let total = 0
for (const name of ['node.xz', 'engine.tar.xz']) {
  const { size } = statSync(join(carry, name))
  total += size
  console.log(`carry/${name}  ${(size / 2 ** 20).toFixed(1)} MiB`)
}
console.log(`together ${(total / 2 ** 20).toFixed(1)} of ${MOST_BYTES / 2 ** 20} MiB`)
if (total > MOST_BYTES) process.exitCode = 1
