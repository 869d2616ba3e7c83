import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it, vi } from 'vitest'
import { loadModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import { readGolden, readGoldenJson } from '../golden_tensors.js'
import { caravan, goldenFolder, jsonLines, temporaryFolder } from './command_line.js'

// Seconds on a quiet machine; a busy one takes its time.
vi.setConfig({ testTimeout: 120_000 })

const folder = temporaryFolder()
const model = join(goldenFolder, 'models/llama_gqa_rope3')
const adapter = join(goldenFolder, 'lora/lora_all_linear/adapter')
const words = (out: string, ...more: string[]) => [
  'merge-lora',
  ...['--model', model, '--adapter', adapter, '--out', join(folder, out), ...more],
]

describe('merge-lora', () => {
  it('writes a model folder with the weights of the reference', async () => {
    const { exitCode, stdout } = await caravan(words('merged'))
    expect(stdout).toMatch(/merging {2}14\/14 layers/)
    expect(stdout).toMatch(/14 layers merged, .* in f32, .* -> .*merged\n$/)
    expect(exitCode).toBe(0)
    using device = openDevice({ threads: 1 })
    using merged = await loadModel(device, join(folder, 'merged'))
    const golden = readGolden('lora/lora_all_linear/io.safetensors')
    const { variants } = readGoldenJson<{
      variants: { [name: string]: { merged: { [name: string]: { suggested_atol: number } } } }
    }>('lora/lora.json')
    for (const [name, { suggested_atol }] of Object.entries(variants.lora_all_linear!.merged)) {
      const got = await merged.parameters().get(name)!.read()
      const wanted = golden.get(`merged:${name}`)!.values
      const worst = Math.max(...Array.from(got, (value, i) => Math.abs(value - wanted[i]!)))
      expect(worst, name).toBeLessThanOrEqual(suggested_atol)
    }
    expect(readdirSync(folder).filter((name) => name.includes('.tmp'))).toEqual([])
  })

  it('keeps the tokenizer and the type of the base, or takes the type it is told', async () => {
    const base = join(folder, 'base')
    expect((await caravan(['merge-lora', '--model', model, '--adapter', adapter, '--out', base])).exitCode).toBe(0)
    writeFileSync(join(base, 'tokenizer.json'), '{}')
    writeFileSync(join(base, 'notes.txt'), 'no part of the model')
    const out = join(folder, 'half')
    const { exitCode, stdout } = await caravan([
      'merge-lora',
      ...['--model', base, '--adapter', adapter, '--out', out, '--dtype', 'bf16', '--json'],
    ])
    expect(exitCode).toBe(0)
    expect(jsonLines(stdout)).toEqual([
      { layers: 14, dtype: 'bf16', bytes: expect.any(Number), seconds: expect.any(Number), out },
    ])
    expect(readdirSync(out).sort()).toEqual([
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
    ])
    expect(JSON.parse(readFileSync(join(out, 'config.json'), 'utf8')).dtype).toBe('bfloat16')
  })

  it('refuses a folder that holds something, and leaves none behind where it fails', async () => {
    mkdirSync(join(folder, 'full'))
    writeFileSync(join(folder, 'full', 'a'), '')
    const full = await caravan(words('full'))
    expect(full.exitCode).toBe(2)
    expect(full.stderr).toMatch(/--out .*full is there already, and not empty \[ERR_CONFIG\]/)
    const other = ['merge-lora', '--model', join(goldenFolder, 'models/llama_mha_tied'), '--adapter', adapter]
    const misfit = await caravan([...other, '--out', join(folder, 'misfit'), '--quiet'])
    expect(misfit.exitCode).toBe(1)
    expect(misfit.stderr).toMatch(/must be \[4,40\].*got \[4,48\] \[ERR_MODEL\]/)
    expect(existsSync(join(folder, 'misfit'))).toBe(false)
    const missing = await caravan(['merge-lora', '--model', model, '--out', join(folder, 'x')])
    expect(missing.exitCode).toBe(2)
    expect(missing.stderr).toMatch(/--adapter/)
  })
})
