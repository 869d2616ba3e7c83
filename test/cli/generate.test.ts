// `caravan generate` as a user runs it: greedy tokens of transformers, samples, stop texts, bad rows.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { goldenFacts } from '../models/golden_model.js'
import { caravan, goldenFolder, jsonLines, temporaryFolder, writeRows } from './command_line.js'

const folder = temporaryFolder()
const name = 'llama_mha_tied'
const model = join(goldenFolder, 'models', name)

interface Line {
  index: number
  sample: number
  completion: string
  token_ids: number[]
  logprobs: number[]
  finish_reason: string
}

async function generate(input: string, words: readonly string[] = []): Promise<Line[]> {
  const output = join(folder, 'out.jsonl')
  const result = await caravan(['generate', '--model', model, '--input', input, '--output', output, ...words])
  expect(result.stderr).toBe('')
  expect(result.exitCode).toBe(0)
  return jsonLines(readFileSync(output, 'utf8')) as unknown as Line[]
}

it('rows of ids get the greedy tokens of transformers, in the order of the rows', async () => {
  const { generation } = goldenFacts(name)
  const rows = generation!.prompt_ids.map((row, b) => ({
    input_ids: row.filter((_, t) => generation!.attention_mask[b]![t] === 1),
  }))
  const words = ['--temperature', '0', '--max-tokens', String(generation!.new_tokens), '--slots', '2', '--threads', '2']
  const lines = await generate(writeRows(folder, 'ids.jsonl', rows), words)
  expect(lines.map(({ index, sample }) => [index, sample])).toEqual(rows.map((_, i) => [i, 0]))
  for (const [i, { token_ids, logprobs, finish_reason }] of lines.entries()) {
    const { tokens, logprobs: wanted } = generation!.greedy[i]!
    // The reference went on after an end token.
    expect(token_ids).toEqual(tokens.slice(0, token_ids.length))
    expect(token_ids.length === tokens.length || finish_reason === 'stop').toBe(true)
    for (const [t, logprob] of logprobs.entries()) expect(Math.abs(logprob - wanted[t]!)).toBeLessThan(5e-5)
  }
})

describe('samples of text and messages', () => {
  const rows = [{ prompt: 'hello world' }, { messages: [{ role: 'user', content: 'hi' }] }]
  const words = ['--n', '3', '--max-tokens', '8', '--template', 'tulu', '--top-k', '40', '--top-p', '0.95']

  it('are the same for a seed, and their completion is their tokens as text', async () => {
    const input = writeRows(folder, 'text.jsonl', rows)
    const lines = await generate(input, [...words, '--seed', '5'])
    expect(lines.map(({ index, sample }) => [index, sample])).toEqual([
      [0, 0],
      [0, 1],
      [0, 2],
      [1, 0],
      [1, 1],
      [1, 2],
    ])
    expect(new Set(lines.map(({ token_ids }) => token_ids.join())).size).toBe(6)
    expect(await generate(input, [...words, '--seed', '5', '--slots', '1'])).toEqual(lines)
    expect(await generate(input, [...words, '--seed', '6'])).not.toEqual(lines)
    const { Tokenizer } = await import('../../lib/text/tokenizer.js')
    const tokenizer = await Tokenizer.load(model)
    for (const { completion, token_ids } of lines) {
      expect(completion).toBe(await tokenizer.decode(token_ids, { skipSpecialTokens: true }))
    }
    // A prompt is what the tokenizer and the template make of it.
    const prompts = [
      (await tokenizer.encode('hello world', { addSpecialTokens: true })).ids,
      (await tokenizer.encode('<|user|>\nhi\n<|assistant|>\n')).ids,
    ]
    const asIds = writeRows(
      folder,
      'same.jsonl',
      prompts.map((ids) => ({ input_ids: Array.from(ids) })),
    )
    expect(await generate(asIds, [...words, '--seed', '5'])).toEqual(lines)
  })

  it('end at a stop text, which is left out', async () => {
    const input = writeRows(folder, 'one.jsonl', [rows[0]])
    const [free] = await generate(input, ['--max-tokens', '12'])
    const stop = free!.completion.slice(5, 7)
    const [stopped] = await generate(input, ['--max-tokens', '12', '--stop', stop, '@@never@@'])
    expect(stopped!.completion).toBe(free!.completion.slice(0, free!.completion.indexOf(stop)))
    expect(stopped!.finish_reason).toBe('stop')
  })
})

describe('bad rows', () => {
  const cases: [row: unknown, error: RegExp][] = [
    [{ input_ids: [1, 100_000] }, /bad\.jsonl:2: token 1 of the prompt must be an id from 0 to \d+ .*\[ERR_DATA\]/],
    [{ input_ids: [1, -1] }, /bad\.jsonl:2: `input_ids\[1\]` must be an integer >= 0; got -1/],
    [{ input_ids: [] }, /bad\.jsonl:2: the prompt is empty/],
    [{ input_ids: Array(9000).fill(1) }, /bad\.jsonl:2: the prompt must be shorter than the context of \d+ tokens/],
    [{ text: 'x' }, /bad\.jsonl:2: a row must have prompt, messages or input_ids; it has text/],
    [{ prompt: 1 }, /bad\.jsonl:2: `prompt` must be a text; got 1/],
    [{ messages: [] }, /bad\.jsonl:2: `messages` must be a list of at least one message/],
    [{ messages: [{ role: 'bot', content: 'x' }] }, /bad\.jsonl:2: `messages\[0\]\.role` must be one of system, /],
  ]

  it.for(cases)('%j is named, and the old output stays', async ([row, error]) => {
    const input = writeRows(folder, 'bad.jsonl', [{ input_ids: [1, 2, 3] }, row])
    const output = join(folder, 'kept.jsonl')
    writeFileSync(output, 'before\n')
    const result = await caravan(['generate', '--model', model, '--input', input, '--output', output])
    expect(result.stderr).toMatch(error)
    expect(result.exitCode).toBe(1)
    expect(readFileSync(output, 'utf8')).toBe('before\n')
    expect(readdirSync(folder).filter((file) => file.includes('.tmp'))).toEqual([])
  })

  it('without a file to read leave nothing', async () => {
    const output = join(folder, 'none.jsonl')
    const result = await caravan([
      'generate',
      '--model',
      model,
      '--input',
      join(folder, 'no.jsonl'),
      '--output',
      output,
    ])
    expect(result.stderr).toMatch(/no\.jsonl/)
    expect(result.exitCode).toBe(1)
    expect(existsSync(output)).toBe(false)
  })
})
