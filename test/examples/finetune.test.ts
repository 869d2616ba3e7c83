// The example on a model of 40 columns: it must learn a sentence, save a model folder, and report errors.
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { main } from '../../examples/finetune.js'

const golden = fileURLToPath(new URL('../golden/', import.meta.url))
let folder: string
let model: string

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'caravan-finetune-'))
  model = join(folder, 'model')
  await cp(join(golden, 'models/llama_bf16'), model, { recursive: true })
  await cp(join(golden, 'tokenizers/tulu'), model, { recursive: true })
})
afterAll(() => rm(folder, { recursive: true, force: true }))

async function rowsFile(name: string, lines: readonly string[]): Promise<string> {
  const path = join(folder, name)
  await writeFile(path, lines.join('\n'))
  return path
}

const row = (i: number) =>
  JSON.stringify({
    messages: [
      { role: 'user', content: `What is the colour number ${i}?` },
      { role: 'assistant', content: 'It is blue.' },
    ],
  })

describe('examples/finetune', () => {
  it('learns, saves a model folder and measures the held-out loss', async () => {
    const data = await rowsFile(
      'rows.jsonl',
      Array.from({ length: 80 }, (_, i) => row(i)),
    )
    const directory = join(folder, 'run')
    const overrides = { 'sft.lr': '1e-2', 'sft.epochs': '4' }
    const { losses, evalLoss, folder: saved } = await main(model, data, { directory, overrides, threads: 2 })
    // 72 rows of 80 are trained, 16 a step, in 4 epochs.
    expect(losses).toHaveLength(20)
    // A model with random weights spreads its belief over the whole vocabulary of 363.
    expect(losses[0]).toBeGreaterThan(0.8 * Math.log(363))
    expect(losses.at(-1)).toBeLessThan(0.5 * losses[0]!)
    expect(evalLoss).toBeLessThan(0.5 * losses[0]!)
    expect(saved).toBe(join(directory, 'sft'))
    const before = JSON.parse(await readFile(join(model, 'config.json'), 'utf8'))
    const after = JSON.parse(await readFile(join(saved, 'config.json'), 'utf8'))
    expect(after).toMatchObject({ hidden_size: before.hidden_size, architectures: ['LlamaForCausalLM'] })
    const copied = await readFile(join(saved, 'tokenizer.json'))
    expect(copied.equals(await readFile(join(model, 'tokenizer.json')))).toBe(true)
  })

  it('names file and line of a row that is no row', async () => {
    const data = await rowsFile('bad.jsonl', [row(0), '{"messages": [', row(1)])
    const failure = main(model, data, { directory: join(folder, 'bad') })
    await expect(failure).rejects.toMatchObject({ code: 'ERR_DATA', details: { file: data, line: 2 } })
  })
})
