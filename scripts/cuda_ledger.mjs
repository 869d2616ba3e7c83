// Compiles every CUDA kernel and writes down what the assembler says of it: registers, shared memory, stack, spills.
// Fails on a spill, on local memory, and on more shared memory than every supported GPU has. Needs nvcc, not a GPU.
//   node scripts/cuda_ledger.mjs            writes docs/cuda_ledger.md
//   node scripts/cuda_ledger.mjs --check    fails when the table is out of date (or says that nvcc is missing)
//   node scripts/cuda_ledger.mjs --arch 80  one architecture; --file NAME one kernel file: only printed
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { sourceFiles } from './source_files.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const document = join(root, 'docs/cuda_ledger.md')
const architectures = ['80', '90a']
/** Of the PTX that is assembled for every architecture, as in cmake/Cuda.cmake. */
const virtualArchitecture = 'compute_80'
/** Files for compute capability 9.0 alone, as there. */
const isHopper = (file) => file.endsWith('_hopper.cu')
/** Files that are compiled for it beside the others. */
const isChained = (file) => readFileSync(join(root, file), 'utf8').includes('#include "cuda/chain.h"')
/** Static shared memory that a block may have anywhere. */
const MOST_SHARED = 48 << 10
/** Kernels that use the stack for a reason. */
const allowedStack = [
  {
    kernel: /(Cos|Sin)>/,
    bytes: 40,
    why: "the library's reduction of huge angles",
  },
]

function option(name) {
  const at = process.argv.indexOf(`--${name}`)
  return at < 0 ? undefined : process.argv[at + 1]
}

/** One line a kernel, from the assembler's messages. */
function parseLedger(text) {
  const kernels = []
  let open
  for (const line of text.split('\n')) {
    const entry = /Compiling entry function '(\S+)' for '(\S+)'/.exec(line)
    if (entry) open = { symbol: entry[1], arch: entry[2], registers: 0, shared: 0, stack: 0, spills: 0 }
    const frame = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line)
    if (frame && open) Object.assign(open, { stack: Number(frame[1]), spills: Number(frame[2]) + Number(frame[3]) })
    const used = /Used (\d+) registers/.exec(line)
    if (used && open) {
      open.registers = Number(used[1])
      open.shared = Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0)
      kernels.push(open)
      open = undefined
    }
  }
  return kernels
}

/** Readable names: without the namespaces and argument types that every kernel has. */
function demangled(kernels) {
  const { stdout } = spawnSync('c++filt', { input: kernels.map(({ symbol }) => symbol).join('\n'), encoding: 'utf8' })
  const names = (stdout ?? '').split('\n')
  for (const [i, kernel] of kernels.entries()) {
    const name = (names[i] || kernel.symbol)
      .replaceAll('caravan::', '')
      .replaceAll('cuda::', '')
      .replaceAll('(anonymous namespace)::', '')
      .replace(/^void /, '')
    kernel.name = withoutArguments(name).replaceAll('|', '\\|')
  }
}

/** Cuts the parenthesis that closes a C++ signature, with all that it holds. */
function withoutArguments(name) {
  let depth = 0
  for (let i = name.length - 1; i >= 0; i--) {
    if (name[i] === ')') depth++
    if (name[i] === '(' && --depth === 0) return name.slice(0, i)
  }
  return name
}

function compile(nvcc, file, archs, folder) {
  const target = join(folder, `${basename(file)}.fatbin`)
  const ownHopper = isHopper(file) || isChained(file)
  const hopper = ownHopper && archs.includes('90a') ? ['-gencode=arch=compute_90a,code=sm_90a'] : []
  const others = isHopper(file) ? [] : archs.filter((arch) => !ownHopper || arch !== '90a').map((arch) => `sm_${arch}`)
  const everywhere = others.length > 0 ? [`-gencode=arch=${virtualArchitecture},code=[${others.join(',')}]`] : []
  const words = ['-std=c++20', '--expt-relaxed-constexpr', '-diag-suppress=177', '-DCARAVAN_CUDA', '-DCARAVAN_ISA=cuda']
  if (isChained(file)) words.push('-DCARAVAN_CHAINED')
  words.push(`-I${join(root, 'native')}`, '-fatbin', ...everywhere, ...hopper, '-Xptxas=-v')
  return new Promise((resolve) => {
    const child = spawn(nvcc, [...words, join(root, file), '-o', target])
    let text = ''
    child.stdout.on('data', (data) => (text += data))
    child.stderr.on('data', (data) => (text += data))
    child.on('close', (status) => resolve({ file, status, text }))
  })
}

async function compileAll(nvcc, files, archs) {
  const folder = mkdtempSync(join(tmpdir(), 'caravan-ledger-'))
  const jobs = [...files]
  const done = []
  const worker = async () => {
    for (let file = jobs.shift(); file; file = jobs.shift()) done.push(await compile(nvcc, file, archs, folder))
  }
  await Promise.all(Array.from({ length: availableParallelism() }, worker))
  rmSync(folder, { recursive: true })
  return done
}

function faultsOf(kernel) {
  const faults = []
  const where = `${kernel.file}: ${kernel.name} (${kernel.arch})`
  if (kernel.spills > 0) faults.push(`${where} spills ${kernel.spills} bytes of registers`)
  const allowed = allowedStack.find(({ kernel: pattern }) => pattern.test(kernel.name))?.bytes ?? 0
  if (kernel.stack > allowed) faults.push(`${where} has ${kernel.stack} bytes of local memory`)
  if (kernel.shared > MOST_SHARED) faults.push(`${where} has ${kernel.shared} bytes of static shared memory`)
  return faults
}

/** Products of warpgroups that the assembler makes wait for each other. */
function serialized(file, text) {
  return [...text.matchAll(/.*wgmma.mma_async instructions are serialized.*/g)].map(([line]) => `${file}: ${line}`)
}

function tableOf(kernels) {
  const head = [
    '# The CUDA ledger',
    '',
    'What the assembler of CUDA 13.0 says of every kernel: registers and static shared memory a block, bytes of stack. No',
    'kernel spills. Written by `node scripts/cuda_ledger.mjs`; the tests compile the kernels again and compare.',
    '',
    ...allowedStack.map(({ bytes, why }) => `Stack: ${bytes} bytes where cosines or sines are taken, ${why}.`),
  ]
  const lines = [...head]
  let file = ''
  for (const kernel of kernels) {
    if (kernel.file !== file) {
      file = kernel.file
      const title = file.replace('native/', '')
      lines.push('', `## ${title}`, '', '| kernel | GPU | registers | shared | stack |', '|---|---|---|---|---|')
    }
    const { name, arch, registers, shared, stack } = kernel
    lines.push(`| \`${name}\` | ${arch} | ${registers} | ${shared} | ${stack} |`)
  }
  return `${lines.join('\n')}\n`
}

const nvcc = process.env.CUDA_HOME ? join(process.env.CUDA_HOME, 'bin/nvcc') : 'nvcc'
if (spawnSync(nvcc, ['--version']).status !== 0) {
  console.log('no nvcc on PATH (or in CUDA_HOME): the CUDA kernels are not compiled')
  process.exit(process.argv.includes('--check') ? 0 : 1)
}
const one = option('file')
const files = sourceFiles(root, ['native/cuda', 'native/kernels'], ['.cu'])
  .filter((file) => !one || file.includes(one))
  .filter((file) => !isHopper(file) || [undefined, '90a'].includes(option('arch')))
const archs = option('arch') ? [option('arch')] : architectures
const kernels = []
const faults = []
for (const { file, status, text } of await compileAll(nvcc, files, archs)) {
  if (status !== 0) {
    console.error(`${file} does not compile:\n${text}`)
    process.exit(1)
  }
  kernels.push(...parseLedger(text).map((kernel) => ({ ...kernel, file })))
  faults.push(...serialized(file, text))
}
demangled(kernels)
const key = ({ file, name, arch }) => `${file} ${name} ${arch}`
kernels.sort((a, b) => (key(a) < key(b) ? -1 : 1))
faults.push(...kernels.flatMap(faultsOf))
const table = tableOf(kernels)
if (one || option('arch')) console.log(table)
else if (!process.argv.includes('--check')) writeFileSync(document, table)
else if (!existsSync(document) || readFileSync(document, 'utf8') !== table) {
  faults.push('docs/cuda_ledger.md is out of date: run `node scripts/cuda_ledger.mjs`')
}
for (const fault of faults) console.error(fault)
if (faults.length > 0) process.exit(1)
console.log(`${kernels.length} kernels of ${files.length} files for ${archs.join(', ')}: no spills`)
