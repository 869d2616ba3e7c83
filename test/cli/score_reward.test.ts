// `caravan score --reward` against the scores of transformers.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { goldenTensors } from '../models/golden_model.js'
import { caravan, goldenFolder, jsonLines, temporaryFolder, writeRows } from './command_line.js'

const folder = temporaryFolder()
const model = join(goldenFolder, 'models/llama_reward')
const output = join(folder, 'scores.jsonl')
const run = (input: string, words: string[] = [], from = model) =>
  caravan(['score', '--reward', '--model', from, '--input', input, '--output', output, ...words])

it('writes the score of every row, whichever rows share a pass', async () => {
  const golden = goldenTensors('llama_reward')
  const [B, T] = golden.get('input_ids')!.shape as [number, number]
  const rows = Array.from({ length: B }, (_, b) => {
    const row = Array.from(golden.get('input_ids')!.data.slice(b * T, (b + 1) * T))
    return { input_ids: row.filter((_, t) => golden.get('attention_mask')!.data[b * T + t] === 1) }
  })
  const input = writeRows(folder, 'ids.jsonl', [...rows, { input_ids: [] }])
  for (const words of [[], ['--batch-tokens', '1']]) {
    const { exitCode, stderr } = await run(input, words)
    expect(stderr).toBe('')
    expect(exitCode).toBe(0)
    const scored = jsonLines(readFileSync(output, 'utf8')) as unknown as { tokens: number; score: number | null }[]
    expect(scored.map(({ tokens }) => tokens)).toEqual([...rows.map(({ input_ids }) => input_ids.length), 0])
    for (let b = 0; b < B; b++) expect(scored[b]!.score).toBeCloseTo(golden.get('rewards')!.data[b]!, 5)
    expect(scored.at(-1)!.score).toBeNull()
  }
})

it('scores chats through the template', async () => {
  const messages = [
    { role: 'user', content: 'hi' },
    { role: 'assistant', content: 'yes' },
  ]
  const { exitCode, stderr } = await run(writeRows(folder, 'chat.jsonl', [{ messages }]))
  expect(stderr).toBe('')
  expect(exitCode).toBe(0)
  const [row] = jsonLines(readFileSync(output, 'utf8')) as unknown as { tokens: number; score: number }[]
  expect(Number.isFinite(row!.score)).toBe(true)
  expect(row!.tokens).toBeGreaterThan(2)
})

it('refuses a language model', async () => {
  const { exitCode, stderr } = await run(
    writeRows(folder, 'one.jsonl', [{ input_ids: [1] }]),
    [],
    join(goldenFolder, 'models/llama_mha_tied'),
  )
  expect(exitCode).toBe(1)
  expect(stderr).toContain('ForSequenceClassification')
})
