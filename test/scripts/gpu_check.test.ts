// scripts/gpu_check as far as a machine without a GPU goes: its commands, and what it says where something is missing.
// That it runs to its end is tested on the emulated device in test/cuda.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'

const root = join(import.meta.dirname, '../..')
const folder = mkdtempSync(join(tmpdir(), 'caravan-gpu-check-test-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function gpuCheck(words: string[], environment: NodeJS.ProcessEnv = process.env) {
  const options = { encoding: 'utf8', env: environment, cwd: folder } as const
  return spawnSync('/bin/bash', [join(root, 'scripts/gpu_check'), ...words], options)
}

describe('gpu_check --dry-run', () => {
  it.each([
    ['quick', /bench kernels linear .*--dtype bf16/],
    ['full', /CARAVAN_CUDA_GEMM=own timeout \d+ .*bench check/],
    ['e2e', /bench step --model llama1b .*--peer/],
    ['recipe', /train --recipe tulu3 --device cuda --out \S+ --json$/],
  ])('%s prints commands with time limits, and writes nothing', (mode, command) => {
    const out = join(folder, mode)
    const { stdout, stderr, status } = gpuCheck([mode, out, '--dry-run'])
    expect(stderr).toBe('')
    expect(status).toBe(0)
    const lines = stdout.trim().split('\n')
    for (const line of lines) expect(line).toMatch(/^(CARAVAN_CUDA_(GEMM|ATTENTION)=\w+ )?timeout \d+ /)
    expect(lines.some((line) => command.test(line))).toBe(true)
    expect(existsSync(out)).toBe(false)
  })

  it('gives the commands options that exist', () => {
    const options = readFileSync(join(root, 'lib/cli/bench_options.ts'), 'utf8') + sharedOptions()
    const commands = ['quick', 'full', 'e2e', 'recipe'].map((mode) => gpuCheck([mode, '--dry-run']).stdout).join('\n')
    const used = new Set(commands.match(/(?<= )--[a-z][a-z-]+/g))
    const ofOthers = ['--tool', '--error-exitcode', '--print-limit']
    for (const option of used) if (!ofOthers.includes(option)) expect(options, option).toContain(`'${option}`)
  })
})

/** Those of several commands, and of `train`. */
function sharedOptions(): string {
  return ['command_options', 'program'].map((name) => readFileSync(join(root, `lib/cli/${name}.ts`), 'utf8')).join('\n')
}

describe('gpu_check', () => {
  it('refuses what it does not know', () => {
    const { stderr, status } = gpuCheck(['--quick'])
    expect(status).toBe(2)
    expect(stderr).toContain('unknown option --quick')
    expect(stderr).toContain('usage: bash scripts/gpu_check')
  })

  it('says what is missing where there is no Node', () => {
    const bin = join(folder, 'bin')
    mkdirSync(bin)
    for (const name of ['dirname', 'mktemp', 'rm', 'env']) symlinkSync(`/usr/bin/${name}`, join(bin, name))
    const { stderr, status } = gpuCheck(['quick', '--dry-run'], {
      PATH: bin,
      CARAVAN_GPU_CHECK_CARRY: join(folder, 'none'),
    })
    expect(status).toBe(1)
    expect(stderr).toBe(
      'gpu_check: no node >= 20 on PATH, and no carry/node.xz that python3 can unpack: run scripts/gpu_check --pack where there is one\n',
    )
  })

  it('tells in its summary what failed, and reads files that end in half a line', () => {
    const out = join(folder, 'results')
    mkdirSync(out)
    const check = {
      type: 'check',
      op: 'swiglu',
      dtype: 'bf16',
      samples: 3,
      worst: 3,
      repeats: true,
      faults: ['y is off'],
    }
    const right = { ...check, op: 'rope', worst: 0.5, faults: [] }
    writeFileSync(join(out, 'parts.tsv'), 'machine\tok\t1\ncheck-own\tfailed:1\t7\nmemcheck\ttimeout\t70\n')
    const kernels = [
      { type: 'machine', roofs: { gflops: 788_000, gbps: 4300, product: 'torch' } },
      { type: 'kernel', op: 'rope', sample: 'N=1', medianSeconds: 1e-4, gbps: 2150, shareOfFloor: 0.5, rivals: {} },
      { type: 'failed', op: 'adamw', sample: '9', reason: 'out of memory' },
    ]
    writeFileSync(join(out, 'kernels-bf16.jsonl'), kernels.map((row) => JSON.stringify(row)).join('\n'))
    writeFileSync(join(out, 'check-own.jsonl'), `${JSON.stringify(check)}\n${JSON.stringify(right)}\n{"type":"che`)
    const { stdout, status } = spawnSync(process.execPath, [join(root, 'scripts/gpu_summary.mjs'), out, 'quick'], {
      encoding: 'utf8',
    })
    expect(status).toBe(0)
    expect(stdout).toContain('machine ok 1 s; check-own failed:1 7 s; memcheck timeout 70 s')
    expect(stdout).toContain(
      'check-own: 2 checks, 1 failed, nearest to the limit: rope bf16 0.50\n  swiglu bf16: y is off',
    )
  })
})
