import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { byteSpellings, trainBpe, trainBpeAsync } from '../../lib/text/bpe_trainer.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { pocketSpecialTokens } from '../../lib/text/tulu_template.js'
import { chats, encodings, readGolden, tokenizerNames } from './golden_files.js'

/** The texts that test/golden/bpe_trainer/make.py gives to the reference trainer, in its order. */
const texts = [
  ...tokenizerNames.flatMap((name) => encodings[name]!.cases.map(({ text }) => text)),
  ...tokenizerNames.flatMap((name) => {
    return chats[name]!.cases.flatMap(({ messages }) => messages.map(({ content }) => content))
  }),
]

interface TrainedModel {
  model: { vocab: Record<string, number>; merges: [string, string][] }
}

interface GoldenCase {
  vocabularySize: number
  specialTokens: string[]
  splitRegex: string
  minFrequency: number
  vocab: Record<string, number>
  merges: [string, string][]
}

/** Text of every kind: words, digits, spaces, all planes of Unicode, lone surrogates. */
function wildText(random: Random): string {
  const parts = Array.from({ length: random.integer(0, 40) }, () => {
    const kind = random.integer(0, 6)
    if (kind === 0) return ' '.repeat(random.integer(1, 5))
    if (kind === 1) return String(random.uint32())
    if (kind === 2) return String.fromCharCode(random.integer(0, 0x10000))
    if (kind === 3) return String.fromCodePoint(random.integer(0x10000, 0x110000))
    if (kind === 4) return random.choice(['\r\n', '\t', '\u0085', '\ufeff', "'s", "'LL", '\0', '\u2028'])
    return random.choice(['the', ' cat', 'Straße', ' naïve', '日本', 'ſ', "I'm"])
  })
  return parts.join('')
}

const wellFormed = (text: string) => Buffer.from(text).toString()

describe('BPE trainer', () => {
  it.each(readGolden<{ cases: GoldenCase[] }>('bpe_trainer/merges.json').cases)(
    'learns what the reference learns: $vocabularySize tokens, frequency $minFrequency',
    ({ vocab, merges, ...options }) => {
      const { model } = trainBpe({ texts, ...options }) as unknown as TrainedModel
      expect(model.merges).toEqual(merges)
      expect(model.vocab).toEqual(vocab)
    },
  )

  it('gives special tokens the first ids, and encodes them as one token', async () => {
    const json = trainBpe({ texts, vocabularySize: 400, specialTokens: pocketSpecialTokens })
    const tokenizer = Tokenizer.fromJson(json, { bos_token: '<|bos|>', eos_token: '<|end|>', pad_token: '<|pad|>' })
    expect([tokenizer.padId, tokenizer.bosId, tokenizer.eosId]).toEqual([0, 1, 4])
    expect(tokenizer.vocabularySize).toBe(400)
    const { ids } = await tokenizer.encode('<|bos|><|user|>\n<|assistant|><|end|>')
    const newline = tokenizer.tokenToId('Ċ')!
    expect(Array.from(ids)).toEqual([1, 2, newline, 3, 4])
    expect([...tokenizer.specialIds]).toEqual([0, 1, 2, 3, 4])
  })

  it('round-trips any text', async () => {
    const random = new Random(3)
    const tokenizer = Tokenizer.fromJson(trainBpe({ texts, vocabularySize: 600 }))
    const wild = Array.from({ length: 500 }, () => wildText(random))
    const encoded = await tokenizer.encodeBatch(wild)
    const decoded = await tokenizer.decodeBatch(encoded.map(({ ids }) => ids))
    // A lone surrogate has no UTF-8 form and becomes U+FFFD.
    expect(decoded).toEqual(wild.map(wellFormed))
  })

  it('splits as the library does', async () => {
    // With no merges across pieces and every pair merged, a piece of the trained text is one token.
    const random = new Random(4)
    const wild = Array.from({ length: 60 }, () => wellFormed(wildText(random)))
    const tokenizer = Tokenizer.fromJson(trainBpe({ texts: wild, vocabularySize: 200_000 }))
    const spelled = await tokenizer.encodeBatch(wild)
    const pieces = new Set(spelled.flatMap(({ ids }) => Array.from(ids)))
    const again = trainBpe({ texts: wild, vocabularySize: 200_000 }) as unknown as TrainedModel
    const longest = Math.max(...Object.keys(again.model.vocab).map((token) => token.length))
    const longestUsed = Math.max(...[...pieces].map((id) => tokenizer.idToToken(id)!.length))
    expect(longestUsed).toBe(longest)
  })

  it('gives the same from any iterable, with or without turns of the event loop', async () => {
    const options = { vocabularySize: 500, specialTokens: ['<|x|>'] }
    const wanted = trainBpe({ texts, ...options })
    expect(await trainBpeAsync({ texts: new Set(texts), ...options })).not.toEqual({})
    expect(await trainBpeAsync({ texts: texts.values(), ...options })).toEqual(wanted)
    const inTime = (async function* () {
      for (const text of texts.toReversed()) yield text
    })()
    expect(await trainBpeAsync({ texts: inTime, ...options })).toEqual(wanted)
  })

  it('leaves the event loop free', async () => {
    const random = new Random(6)
    const letters = 'etaoinshrdlu'
    const word = () => Array.from({ length: random.integer(2, 9) }, () => letters[random.integer(0, 12)]).join('')
    const many = Array.from({ length: 2000 }, () => Array.from({ length: 60 }, word).join(' '))
    // In proportion, because a loaded machine stretches both; the best of three, because a stall elsewhere is not ours.
    const shares: number[] = []
    for (let attempt = 0; attempt < 3; attempt++) {
      const started = performance.now()
      let turn = started
      let longestTurn = 0
      const ticker = setInterval(() => {
        longestTurn = Math.max(longestTurn, performance.now() - turn)
        turn = performance.now()
      }, 1)
      await trainBpeAsync({ texts: many, vocabularySize: 700 })
      clearInterval(ticker)
      longestTurn = Math.max(longestTurn, performance.now() - turn)
      shares.push(longestTurn / (performance.now() - started))
    }
    expect(Math.min(...shares)).toBeLessThan(1 / 5)
  })

  it('stops when aborted', async () => {
    const signal = AbortSignal.timeout(5)
    const endless = (function* () {
      for (let i = 0; ; i++) yield `text ${i}`
    })()
    await expect(trainBpeAsync({ texts: endless, vocabularySize: 300, signal })).rejects.toMatchObject({
      code: 'ERR_ABORTED',
    })
  })

  it.each([
    [{ vocabularySize: 255 }, /vocabularySize must be an integer from 256/],
    [{ vocabularySize: 256, specialTokens: ['<a>'] }, /from 257/],
    [{ vocabularySize: 300.5 }, /vocabularySize/],
    [{ vocabularySize: 300, minFrequency: Number.NaN }, /minFrequency/],
    [{ vocabularySize: 300, specialTokens: ['<a>', '<a>'] }, /distinct/],
    [{ vocabularySize: 300, specialTokens: ['a'] }, /two characters/],
    [{ vocabularySize: 300, splitRegex: '(' }, /splitRegex/],
    [{ vocabularySize: 300, splitRegex: '\\w+' }, /splitRegex/],
    [{ vocabularySize: 300, splitRegex: 'a++' }, /possessive/],
  ])('refuses %j', (options, message) => {
    expect(() => trainBpe({ texts: [], ...options })).toThrow(message)
  })

  it('spells bytes as GPT-2 does', () => {
    const spellings = byteSpellings()
    expect([
      spellings[0x20],
      spellings[0x0a],
      spellings[0x41],
      spellings[0xad],
      spellings[0x7f],
      spellings[0xff],
    ]).toEqual(['Ġ', 'Ċ', 'A', 'Ń', 'ġ', 'ÿ'])
    expect(new Set(spellings).size).toBe(256)
  })
})
