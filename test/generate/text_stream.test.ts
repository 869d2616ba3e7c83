import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { type DecodeTokens, generateAll, TextStream } from '../../lib/generate/index.js'
import { loadModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { goldenPath } from '../golden_tensors.js'
import { modelFolder } from '../models/golden_model.js'

/** Feeds tokens one at a time, as the engine does; returns the pieces. */
async function stream(tokens: readonly number[], decode: DecodeTokens, stops: readonly string[] = []) {
  const text = new TextStream(stops)
  const pieces: string[] = []
  for (const [i, token] of tokens.entries()) {
    text.push(token)
    pieces.push(text.take((await decode([text.window]))[0]!, i === tokens.length - 1))
    if (text.stopText !== undefined) break
    if (text.shorten()) text.rebase((await decode([text.window]))[0]!)
  }
  return { text, pieces }
}

/** One token a byte. */
const bytes: DecodeTokens = (sequences) => sequences.map((ids) => new TextDecoder().decode(Uint8Array.from(ids)))
const bytesOf = (text: string) => [...new TextEncoder().encode(text)]

describe('text comes in whole characters', () => {
  it.each(['tulu', 'chatml', 'spm'])('and adds up to what the %s tokenizer decodes at once', async (name) => {
    const tokenizer = await Tokenizer.load(goldenPath(`tokenizers/${name}`))
    const random = new Random(2)
    const words = ['the ', 'über', '  two', '\n', '日本語', '👩‍🚀', 'naïve ', '12345', 'e\u0301', 'x']
    const text = Array.from({ length: 60 }, () => random.choice(words)).join('')
    const ids = [...(await tokenizer.encode(text, { addSpecialTokens: false, offsets: false })).ids]
    expect(ids.length).toBeGreaterThan(100)
    const { text: streamed, pieces } = await stream(ids, (some) => tokenizer.decodeBatch(some))
    expect(streamed.text).toBe(await tokenizer.decode(ids))
    expect(pieces.join('')).toBe(streamed.text)
    expect(pieces.slice(0, -1).join('')).not.toContain('\ufffd')
  })

  it('and what stays incomplete is shown at the end', async () => {
    const { pieces } = await stream(bytesOf('aé').slice(0, 2), bytes)
    expect(pieces).toEqual(['a', '\ufffd'])
  })
})

describe('stop texts', () => {
  it('end the text before them, across tokens, and are never shown', async () => {
    const { text, pieces } = await stream(bytesOf('one two STOP three'), bytes, ['STOP', 'zzz'])
    expect(text).toMatchObject({ text: 'one two ', stopText: 'STOP' })
    expect(pieces.join('')).toBe('one two ')
  })

  it('let pass what only looked like one', async () => {
    const { text, pieces } = await stream(bytesOf('a STO and STOO'), bytes, ['STOP'])
    expect(text.stopText).toBeUndefined()
    expect(pieces.join('')).toBe('a STO and STOO')
  })

  it('take the first in the text when one token brings two', async () => {
    const whole: DecodeTokens = (sequences) => sequences.map((ids) => (ids.length === 1 ? 'abXcdYe' : ''))
    const { text } = await stream([1], whole, ['Y', 'X'])
    expect(text).toMatchObject({ text: 'ab', stopText: 'X' })
  })
})

it('the engine ends sequences at stop texts and gives their text', async () => {
  using device = openDevice({ threads: 2 })
  using model = await loadModel(device, modelFolder('llama_mha_tied'))
  const decode: DecodeTokens = (sequences) => sequences.map((ids) => Array.from(ids, (id) => `<${id}>`).join(''))
  const request = { prompt: Int32Array.of(5, 6), maxTokens: 20, seed: 3, samples: 2 }
  const [free] = (await generateAll(model, [request], { decode })) as [Awaited<ReturnType<typeof generateAll>>[0]]
  for (const { tokens, text } of free) expect(text).toBe(Array.from(tokens, (id) => `<${id}>`).join(''))
  const stopText = `${free[0]!.tokens[4]}><${free[0]!.tokens[5]}`
  const [stopped] = (await generateAll(model, [{ ...request, stopTexts: [stopText] }], { decode })) as (typeof free)[]
  expect(stopped![0]).toMatchObject({ finishReason: 'stop', stopText, tokens: free[0]!.tokens.slice(0, 6) })
  expect(`${stopped![0]!.text}${stopText}>`).toBe(decode([free[0]!.tokens.slice(0, 6)])[0 as never])
  expect(stopped![1]).toEqual(free[1])
  // A stop token is a token of the result, but not text.
  const stopIds = [free[0]!.tokens[2]!]
  const [ended] = await generateAll(model, [{ ...request, samples: 1, stopIds }], { decode })
  expect(ended![0]!.tokens).toEqual(free[0]!.tokens.slice(0, 3))
  expect(ended![0]!.text).toBe(Array.from(free[0]!.tokens.slice(0, 2), (id) => `<${id}>`).join(''))
})
