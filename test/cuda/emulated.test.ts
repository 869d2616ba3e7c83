// The kernels for GPUs on a machine without one: compiled for the host (test/native/simt), opened as device 'cuda', and
// put through the very tests that the CPU passes, with the threads of a block in either order, which a missing barrier
// would not survive. With CARAVAN_TEST_SANITIZED=1 the kernels run under AddressSanitizer and
// UndefinedBehaviorSanitizer, as older GPUs too; the full tests do so in both orders, with whole models.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'

const root = join(import.meta.dirname, '../..')
const isFull = process.env.CARAVAN_TEST_FULL === '1'
const isSanitized = isFull || process.env.CARAVAN_TEST_SANITIZED === '1'
const module = join(root, isSanitized ? 'build/simt-address' : 'build/simt', 'Release/caravan_cuda.so')
/** Tests that take their device from test/device_under_test.ts: the kernels, and whole models on top of them. */
const kernels = ['test/ops.test', 'test/ops/in_place', 'test/ops/gradients', 'test/ops/embedding', 'test/ops/sampling']
const models = [
  ...['test/tensor/plan', 'test/losses', 'test/models/golden', 'test/train/golden_runs', 'test/train/waits'],
  ...['test/generate/ahead', 'test/generate/decode_plan', 'test/runtime/cuda_machine', 'test/runtime/reads'],
]
/** Which tests, with the threads of a block in which order; mixed: one of both for each launch. */
const passes: [order: string, files: readonly string[]][] = isFull
  ? [
      ['forward', ['test/ops', ...models]],
      ['reverse', ['test/ops', ...models]],
    ]
  : [['mixed', isSanitized ? kernels : [...kernels, ...models]]]

/** Of test/ops, what says nothing about a kernel. */
const excluded = ['errors', 'threads'].flatMap((name) => ['--exclude', `test/ops/${name}.test.ts`])

/** Libraries that must be loaded before Node so that instrumented code can run in it. */
function sanitizers(): string {
  const found = ['libasan.so', 'libubsan.so', 'libstdc++.so'].map((name) =>
    spawnSync(process.env.CXX ?? 'g++', [`-print-file-name=${name}`], { encoding: 'utf8' }).stdout.trim(),
  )
  return found.join(' ')
}

interface Ended {
  status: number | null
  output: string
}

/** Runs a program without holding up this process, which answers its own parent meanwhile. */
function run(command: string, words: readonly string[], environment: NodeJS.ProcessEnv = {}): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, words, { cwd: root, env: { ...process.env, ...environment } })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (output += data))
    child.on('error', reject)
    child.on('close', (status) => resolve({ status, output }))
  })
}

/** What a process needs to open the emulated device. */
function emulated(): NodeJS.ProcessEnv {
  return {
    CARAVAN_CUDA_MODULE: module,
    ...(isSanitized && { LD_PRELOAD: sanitizers(), ASAN_OPTIONS: 'detect_leaks=0:detect_stack_use_after_return=0' }),
    NO_COLOR: '1',
  }
}

function runTests(
  order: string,
  files: readonly string[],
  { names = '', ...environment }: { names?: string } & NodeJS.ProcessEnv = {},
): Promise<Ended> {
  const vitest = join(root, 'node_modules/vitest/vitest.mjs')
  // What is emulated takes its time.
  const words = ['run', '--project', 'units', '--project', 'tests', '--testTimeout', '600000', ...files, ...excluded]
  if (names !== '') words.push('--testNamePattern', names)
  return run(process.execPath, [vitest, ...words], {
    ...emulated(),
    CARAVAN_TEST_DEVICE: 'cuda',
    CARAVAN_SIMT_ORDER: order,
    ...environment,
  })
}

describe('the module for GPUs on the emulated device', () => {
  beforeAll(async () => {
    const { status, output } = await run(process.execPath, [
      'scripts/build.mjs',
      '--simt',
      ...(isSanitized ? ['--sanitize'] : []),
    ])
    expect(status, output).toBe(0)
    expect(existsSync(module)).toBe(true)
  }, 900_000)

  it('is run by a harness that sees what a GPU would not survive', async () => {
    const { status, output } = await run(join(dirname(dirname(module)), 'harness_test'), [])
    expect(status, output).toBe(0)
    expect(Number(/(\d+) checks/.exec(output)?.[1])).toBeGreaterThan(100)
  })

  it.each(passes)(
    'passes the tests of the CPU, threads in %s order',
    async (order, files) => {
      const { status, output } = await runTests(order, files)
      expect(output).not.toMatch(/ERROR: AddressSanitizer|runtime error:/)
      expect(status, output.slice(-8000)).toBe(0)
    },
    3_600_000,
  )

  // Attention over many queries has two forms; a decoding step, which must agree with both, has one.
  const other = { CARAVAN_SIMT_WGMMA: 'backwards' }
  const older = { CARAVAN_SIMT_CAPABILITY: '80' }
  const newer = { capability: '9.0', environment: {}, form: 'wgmma, whose', file: 'test/ops/rows', tests: 5 }
  const others = [
    { capability: '9.0 with other sums', environment: other, form: 'wgmma back', file: 'test/ops/rows', tests: 5 },
    { capability: '8.0', environment: older, form: 'mma.sync', file: 'test/ops.test', tests: 9 },
  ]
  it.each(isSanitized ? [newer, ...others] : [newer])(
    'passes the tests of attention as compute capability $capability',
    async ({ environment, form, file, tests }) => {
      const doctor = await run(process.execPath, ['dist/cli/main.js', 'doctor'], { ...emulated(), ...environment })
      expect(doctor.output).toMatch(new RegExp(`attention +${form}`))
      const names = '^attention .*agree: bf16, C (64|128)|^attention(_paged)? sample .*C:(64|128)'
      const { status, output } = await runTests('mixed', [file], { names, ...environment })
      expect(status, output.slice(-8000)).toBe(0)
      expect(output).toContain(`Tests  ${tests} passed`)
    },
    600_000,
  )

  // Beside cuBLASLt alone, or where it is asked for.
  it('multiplies one and two rows by a kernel of their own', async () => {
    const words = ['dist/cli/main.js', 'bench', 'check', 'linear', '--device', 'cuda', '--dtype', 'bf16']
    const { status, output } = await run(process.execPath, words, { ...emulated(), CARAVAN_CUDA_GEMM: 'auto' })
    expect(status, output).toBe(0)
    expect(output).toMatch(/ok +linear +bf16/)
  }, 300_000)

  it('is checked and timed by scripts/gpu_check from the first part to the last', async () => {
    const out = mkdtempSync(join(tmpdir(), 'caravan-gpu-check-'))
    const { status, output } = await run('bash', ['scripts/gpu_check', 'quick', out, '--emulated'], emulated())
    expect(status, output).toBe(0)
    const summary = readFileSync(join(out, 'summary.txt'), 'utf8')
    expect(summary).toContain('device cuda: SIMT emulation on the host')
    expect(summary).toMatch(/machine ok \d+ s; doctor ok \d+ s; check-own ok \d+ s; kernels-bf16 ok/)
    expect(summary).toMatch(/check-own: 2 checks, 0 failed/)
    expect(summary).toMatch(/swiglu +N=3 F=64 .* us .* GB\/s/)
    rmSync(out, { recursive: true })
  }, 300_000)
})
