// Log-probabilities of reference models, against those that transformers gave (test/golden/model_io).
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { goldenFacts, goldenTensors } from '../models/golden_model.js'
import { caravan, goldenFolder, jsonLines, temporaryFolder, writeRows } from './command_line.js'

const folder = temporaryFolder()
const model = join(goldenFolder, 'models/llama_mha_tied')

interface Scored {
  tokens: number
  logprobs: (number | null)[]
  sum: number
}

async function score(input: string, words: readonly string[] = []): Promise<Scored[]> {
  const output = join(folder, 'scores.jsonl')
  const result = await caravan(['score', '--model', model, '--input', input, '--output', output, ...words])
  expect(result.stderr).toBe('')
  expect(result.exitCode).toBe(0)
  return jsonLines(readFileSync(output, 'utf8')) as unknown as Scored[]
}

describe('rows of ids', () => {
  const rows: number[][] = []
  let wanted: Float64Array
  let tolerance = 0

  beforeAll(() => {
    const tensors = goldenTensors('llama_mha_tied')
    const ids = tensors.get('plain.input_ids')!
    const [B, T] = ids.shape as [number, number]
    for (let b = 0; b < B; b++) rows.push(Array.from(ids.data.slice(b * T, (b + 1) * T)))
    wanted = Float64Array.from(tensors.get('plain.logprobs')!.data)
    tolerance = goldenFacts('llama_mha_tied').cases.plain.logprobs.suggested_atol
  })

  it('get the log-probabilities of transformers, whichever rows share a pass', async () => {
    const input = writeRows(
      folder,
      'ids.jsonl',
      rows.map((input_ids) => ({ input_ids })),
    )
    const packed = await score(input)
    expect(packed).toHaveLength(rows.length)
    let at = 0
    for (const [i, { tokens, logprobs, sum }] of packed.entries()) {
      expect(tokens).toBe(rows[i]!.length)
      expect(logprobs[0]).toBeNull()
      const numbers = logprobs.slice(1) as number[]
      for (const value of numbers) expect(Math.abs(value - wanted[at++]!)).toBeLessThanOrEqual(tolerance)
      expect(sum).toBeCloseTo(
        numbers.reduce((a, b) => a + b, 0),
        6,
      )
    }
    expect(at).toBe(wanted.length)
    expect(await score(input, ['--batch-tokens', '1'])).toEqual(packed)
  })

  it('may be empty or of one token', async () => {
    const input = writeRows(folder, 'short.jsonl', [{ input_ids: [] }, { input_ids: [5] }, { input_ids: [] }])
    expect(await score(input)).toEqual([
      { tokens: 0, logprobs: [], sum: 0 },
      { tokens: 1, logprobs: [null], sum: 0 },
      { tokens: 0, logprobs: [], sum: 0 },
    ])
  })
})

describe('rows of text and messages', () => {
  it('are encoded as the tokenizer and its template do', async () => {
    const messages = [
      { role: 'user', content: 'hi' },
      { role: 'assistant', content: 'yes' },
    ]
    const [text, chat] = await score(writeRows(folder, 'text.jsonl', [{ text: 'hello world' }, { messages }]), [
      '--template',
      'tulu',
    ])
    // By hand from the ids: the same rows given as ids get the same numbers.
    const { Tokenizer } = await import('../../lib/text/tokenizer.js')
    const tokenizer = await Tokenizer.load(model)
    const eos = tokenizer.eosToken
    const rendered = `<|user|>\nhi\n<|assistant|>\nyes${eos}`
    const ids = [
      Array.from((await tokenizer.encode('hello world', { addSpecialTokens: true })).ids),
      Array.from((await tokenizer.encode(rendered)).ids),
    ]
    const again = await score(
      writeRows(
        folder,
        'same.jsonl',
        ids.map((input_ids) => ({ input_ids })),
      ),
    )
    expect([text, chat]).toEqual(again)
  })
})

describe('bad rows', () => {
  const cases: [row: unknown, error: RegExp][] = [
    [
      { input_ids: [1, 100_000] },
      /bad\.jsonl:2: token 1 has id 100000; the model's embedding has \d+ rows \[ERR_DATA\]/,
    ],
    [{ input_ids: [1, -1] }, /bad\.jsonl:2: `input_ids\[1\]` must be an integer >= 0; got -1/],
    [{ input_ids: 'x' }, /bad\.jsonl:2: `input_ids` must be a list of integers/],
    [{ prompt: 1 }, /bad\.jsonl:2: .*\[ERR_DATA\]/],
    ['{"text": ', /bad\.jsonl:2:\d+: .*\[ERR_DATA\]/],
  ]

  it.for(cases)('%j is named, and nothing is written', async ([row, error]) => {
    const input = writeRows(folder, 'bad.jsonl', [{ input_ids: [1, 2, 3] }, row])
    const output = join(folder, 'bad_scores.jsonl')
    const result = await caravan(['score', '--model', model, '--input', input, '--output', output])
    expect(result.stderr).toMatch(error)
    expect(result.exitCode).toBe(1)
    expect(existsSync(output)).toBe(false)
    expect(readdirSync(folder).filter((name) => name.includes('.tmp'))).toEqual([])
  })

  it('leave the old output as it was', async () => {
    const output = join(folder, 'kept.jsonl')
    writeFileSync(output, 'before\n')
    const input = writeRows(folder, 'bad.jsonl', ['nonsense'])
    await caravan(['score', '--model', model, '--input', input, '--output', output])
    expect(readFileSync(output, 'utf8')).toBe('before\n')
  })
})
