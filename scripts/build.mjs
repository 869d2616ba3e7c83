// Builds the native engine (cmake-js) and the TypeScript (tsc).
//   npm run build                  both
//   npm run build -- --native      the addon only; --ts the TypeScript only, which is joined then (bundle.mjs)
//   npm run build -- --native-tests   the native tests, without Node (npm run test:native)
//   npm run build -- --sanitize    the native tests under ASan + UBSan, then TSan, and runs them
//   npm run build -- --simt        the module for GPUs compiled for the host (build/simt); --sanitize with it: under
//                                  ASan + UBSan (build/simt-address)
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, rmSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const flags = new Set(process.argv.slice(2))

function run(command, args) {
  const env = { ...process.env }
  // A surrounding make (node-gyp) would pass its job server to ours.
  for (const name of ['MAKEFLAGS', 'MFLAGS', 'MAKELEVEL']) delete env[name]
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env })
  if (error) {
    console.error(`${command} could not be started: ${error.message}`)
    process.exit(1)
  }
  if (status !== 0) process.exit(status ?? 1)
}

function bin(name) {
  return join(root, 'node_modules', '.bin', name)
}

function buildNative() {
  const jobs = String(availableParallelism())
  // CARAVAN_CUDA=OFF leaves the module for GPUs out, ON insists on it.
  const cuda = process.env.CARAVAN_CUDA ? [`--CDCARAVAN_CUDA=${process.env.CARAVAN_CUDA}`] : []
  run(bin('cmake-js'), ['compile', '--out', 'build/cmake', '--parallel', jobs, '--log-level', 'warn', ...cuda])
  mkdirSync(join(root, 'build/Release'), { recursive: true })
  for (const file of ['caravan.node', 'caravan_cuda.so']) {
    const built = join(root, 'build/cmake/Release', file)
    const installed = join(root, 'build/Release', file)
    if (existsSync(built)) copyFileSync(built, installed)
    else rmSync(installed, { force: true })
  }
  const commands = join(root, 'build/cmake/compile_commands.json')
  if (existsSync(commands)) copyFileSync(commands, join(root, 'compile_commands.json'))
}

async function buildTypeScript() {
  run(process.execPath, [bin('tsc'), '-p', 'tsconfig.json'])
  // Here, since building the addon alone needs no bundler, and an installation of the package has none.
  const { bundle } = await import('./bundle.mjs')
  await bundle(join(root, 'dist'))
}

function generator() {
  return spawnSync('ninja', ['--version']).status === 0 ? ['-G', 'Ninja'] : []
}

function emulatedModule(sanitized) {
  const tree = sanitized ? 'build/simt-address' : 'build/simt'
  const options = ['-DCARAVAN_ADDON=OFF', `-DCARAVAN_SIMT=${sanitized ? 'address' : 'plain'}`]
  run('cmake', ['-S', '.', '-B', tree, ...generator(), ...options])
  const jobs = String(availableParallelism())
  run('cmake', ['--build', tree, '--target', 'caravan_simt', 'harness_test', '--parallel', jobs])
}

/** Without a sanitizer they take the kernels of the addon, where that has been built. */
function nativeTests(sanitizer) {
  const addon = 'build/cmake'
  const sharesObjects = sanitizer === '' && existsSync(join(root, addon, 'CMakeCache.txt'))
  const tree = sharesObjects ? addon : `build/tests-${sanitizer || 'plain'}`
  const own = sharesObjects ? [] : [...generator(), '-DCARAVAN_ADDON=OFF', `-DCARAVAN_SANITIZE=${sanitizer}`]
  run('cmake', ['-S', '.', '-B', tree, '-DCARAVAN_TESTS=ON', ...own])
  run('cmake', ['--build', tree, '--target', 'native_tests', '--parallel', String(availableParallelism())])
  run('ctest', ['--test-dir', tree, '--output-on-failure'])
}

if (flags.has('--simt')) {
  emulatedModule(flags.has('--sanitize'))
} else if (flags.has('--sanitize')) {
  for (const sanitizer of ['address', 'thread']) nativeTests(sanitizer)
} else if (flags.has('--native-tests')) {
  nativeTests('')
} else {
  if (!flags.has('--ts')) buildNative()
  if (!flags.has('--native') && !flags.has('--from-gyp')) await buildTypeScript()
}
