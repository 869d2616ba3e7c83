// The kernels for GPUs on a machine without one: compiled for the host under AddressSanitizer and UndefinedBehavior-
// Sanitizer (test/native/simt), opened as device 'cuda', and put through the very tests of the op table that the CPU
// passes; then once more with the threads of every block in reverse, which a missing barrier would not survive.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
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

function runTables(order: 'forward' | 'reverse'): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(root, 'node_modules/vitest/vitest.mjs'), 'run', '--project', 'tests', '--no-file-parallelism', ...tables],
    {
      cwd: root,
      encoding: 'utf8',
      maxBuffer: 1 << 28,
      env: {
        ...process.env,
        CARAVAN_TEST_DEVICE: 'cuda',
        CARAVAN_CUDA_MODULE: module,
        CARAVAN_SIMT_ORDER: order,
        LD_PRELOAD: sanitizers(),
        ASAN_OPTIONS: 'detect_leaks=0:detect_stack_use_after_return=0',
        NO_COLOR: '1',
      },
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
})
