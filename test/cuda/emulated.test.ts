// The kernels for GPUs on a machine without one: compiled for the host under AddressSanitizer and UndefinedBehavior-
// Sanitizer (test/native/simt), opened as device 'cuda', and put through the very tests of the op table that the CPU
// passes; then once more with the threads of every block in reverse, which a missing barrier would not survive.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'

const root = join(import.meta.dirname, '../..')
const module = join(root, 'build/simt/Release/caravan_cuda.so')
const tables = [
  'test/ops.test.ts',
  ...['golden', 'golden_optim', 'gradients', 'in_place', 'rows', 'frozen_head']
    .concat(['sampling', 'sources'])
    .map((name) => `test/ops/${name}.test.ts`),
]

/** Libraries that must be loaded before Node so that instrumented code can run in it. */
function sanitizers(): string {
  const found = ['libasan.so', 'libubsan.so', 'libstdc++.so'].map((name) =>
    spawnSync(process.env.CXX ?? 'g++', [`-print-file-name=${name}`], { encoding: 'utf8' }).stdout.trim(),
  )
  return found.join(' ')
}

/** The environment of a process that opens the emulated device. */
function emulated(more: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return {
    ...process.env,
    CARAVAN_CUDA_MODULE: module,
    LD_PRELOAD: sanitizers(),
    ASAN_OPTIONS: 'detect_leaks=0:detect_stack_use_after_return=0',
    NO_COLOR: '1',
    ...more,
  }
}

function runTables(order: 'forward' | 'reverse'): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(root, 'node_modules/vitest/vitest.mjs'), 'run', '--project', 'tests', '--no-file-parallelism', ...tables],
    {
      cwd: root,
      encoding: 'utf8',
      maxBuffer: 1 << 28,
      env: emulated({ CARAVAN_TEST_DEVICE: 'cuda', CARAVAN_SIMT_ORDER: order }),
    },
  )
  return { status, output: `${stdout}\n${stderr}` }
}

describe('the module for GPUs on the emulated device', () => {
  beforeAll(() => {
    const { status, stdout, stderr } = spawnSync(process.execPath, ['scripts/build.mjs', '--simt'], {
      cwd: root,
      encoding: 'utf8',
    })
    expect(status, `${stdout}${stderr}`).toBe(0)
    expect(existsSync(module)).toBe(true)
  }, 900_000)

  it.each(['forward', 'reverse'] as const)(
    'passes the tests of the op table, threads in %s order',
    (order) => {
      const { status, output } = runTables(order)
      expect(output).not.toMatch(/ERROR: AddressSanitizer|runtime error:/)
      expect(status, output.slice(-8000)).toBe(0)
    },
    900_000,
  )

  it('is checked and timed by scripts/gpu_check from the first part to the last', () => {
    const out = mkdtempSync(join(tmpdir(), 'caravan-gpu-check-'))
    const words = [join(root, 'scripts/gpu_check'), 'quick', out, '--emulated']
    const { status, stdout, stderr } = spawnSync('bash', words, { encoding: 'utf8', env: emulated({}) })
    expect(status, `${stdout}${stderr}`).toBe(0)
    const summary = readFileSync(join(out, 'summary.txt'), 'utf8')
    expect(summary).toContain('device cuda: SIMT emulation on the host')
    expect(summary).toMatch(/machine ok \d+ s; doctor ok \d+ s; check-own ok \d+ s; kernels-bf16 ok/)
    expect(summary).toMatch(/check-own: 2 checks, 0 failed/)
    expect(summary).toMatch(/swiglu +N=3 F=64 .* us .* GB\/s/)
    rmSync(out, { recursive: true })
  }, 300_000)
})
