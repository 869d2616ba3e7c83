import tokenizers from 'tokenizers'
import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { pocketData } from '../../lib/recipes/pocket_data.js'
import type { JsonObject } from '../../lib/text/json_check.js'
import { joinIds, PieceIds } from '../../lib/text/piece_ids.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { parseTokenizerFile } from '../../lib/text/tokenizer_file.js'
import { readGolden } from './golden_files.js'

type Change = (json: JsonObject) => void

/** A tokenizer of the golden files, the library's own of the same file, and what knows its pieces. */
function load(name = 'tulu', change: Change = () => undefined, limits?: { pieces: number; units: number }) {
  const json = readGolden<JsonObject>(`tokenizers/${name}/tokenizer.json`)
  change(json)
  const file = parseTokenizerFile(Buffer.from(JSON.stringify(json)), 'tokenizer.json')
  const native = tokenizers.Tokenizer.fromString(JSON.stringify(file.json))
  return {
    tokenizer: Tokenizer.fromJson(json),
    pieces: PieceIds.of(file.json, file.addedIds, limits),
    async library(texts: readonly string[]): Promise<number[][]> {
      const encodings = await native.encodeBatch([...texts], { addSpecialTokens: false })
      return encodings.map((encoding) => encoding.getIds())
    },
  }
}

const idsOf = async (tokenizer: Tokenizer, texts: readonly string[]) =>
  (await tokenizer.encodeBatch(texts, { offsets: false })).map(({ ids }) => [...ids])

/** ASCII of every kind: all characters alone and in runs, words, numbers, contractions, added tokens and half ones. */
function asciiText(random: Random): string {
  const added = ['<|end_of_text|>', '<|pad|>', '<|end', '|>', '<|im_start|>', '<|pad|><|pad|>']
  const words = ['the', ' cat', "I'm", " WE'LL", "'S", 'x', ' x1', '12+34=46.', '\n\n', '\r\n', ' \n', '   ', ' \t ']
  return Array.from({ length: random.integer(0, 30) }, () => {
    const kind = random.integer(0, 4)
    if (kind === 0) return String.fromCharCode(random.integer(0, 128))
    if (kind === 1) return String.fromCharCode(random.integer(0, 128)).repeat(random.integer(1, 6))
    return random.choice(kind === 2 ? words : random.chance(0.2) ? added : words)
  }).join('')
}

describe('ids by pieces', () => {
  it.each(['tulu', 'llama3', 'chatml'])('of ASCII are those of the library: %s', async (name) => {
    const { tokenizer, pieces, library } = load(name)
    const random = new Random(12)
    const texts = Array.from({ length: 3000 }, () => asciiText(random))
    expect(pieces!.cut(texts).ends).not.toContain(-1)
    expect(await idsOf(tokenizer, texts)).toEqual(await library(texts))
  })

  it('of every three ASCII characters are those of the library', async () => {
    // A third of the characters that are alike; all that differ to the pattern or to an added token are there.
    const letters = [..."\0\t\n\v\f\r\x1c\x1f !'(059<ADMLZ_adelmrstvz|>~\x7f"]
    const texts = letters.flatMap((a) => letters.flatMap((b) => letters.map((c) => a + b + c)))
    const { tokenizer, library } = load('llama3')
    expect(await idsOf(tokenizer, texts)).toEqual(await library(texts))
  })

  // The whole corpus with CARAVAN_TEST_FULL=1.
  it('of the documents of the pocket run are those of the library', async () => {
    const count = process.env.CARAVAN_TEST_FULL === '1' ? 49_000 : 2000
    const documents = pocketData(1).baseDocuments()[Symbol.iterator]()
    const texts = Array.from({ length: count }, () => documents.next().value as string)
    const { tokenizer, pieces, library } = load()
    expect(pieces!.cut(texts).ends).not.toContain(-1)
    expect(await idsOf(tokenizer, texts)).toEqual(await library(texts))
  })

  it('give offsets too, and mix with texts that are encoded whole', async () => {
    const { tokenizer } = load()
    const texts = ['It is 5.', 'Es ist fünf.', '', "I'm <|pad|> here", `long ${'x '.repeat(9000)}`, 'done']
    const whole = await Promise.all(texts.map((text) => tokenizer.encode(text)))
    expect(await tokenizer.encodeBatch(texts)).toEqual(whole)
    const special = await Promise.all(texts.map((text) => tokenizer.encode(text, { addSpecialTokens: true })))
    expect(special[2]!.ids).not.toHaveLength(0)
    expect(await tokenizer.encodeBatch(texts, { addSpecialTokens: true })).toEqual(special)
  })

  it('are the same for calls at the same time', async () => {
    const { tokenizer, library } = load()
    const random = new Random(13)
    const texts = Array.from({ length: 600 }, () => asciiText(random))
    const wanted = await library(texts)
    const calls = [texts, texts.toReversed(), texts].map((each) => idsOf(tokenizer, each))
    expect(await Promise.all(calls)).toEqual([wanted, wanted.toReversed(), wanted])
  })

  it.each([
    { pieces: 40, units: 1e9 },
    { pieces: 1e9, units: 200 },
  ])('are forgotten in time, and then asked for again: %j', async (limits) => {
    const { pieces, library } = load('tulu', undefined, limits)
    const random = new Random(14)
    let askedAgain = 0
    for (let round = 0; round < 60; round++) {
      const texts = ['the cat', ...Array.from({ length: 3 }, () => asciiText(random))]
      const cut = pieces!.cut(texts)
      pieces!.learn(cut, await library([...cut.unknown.keys()]))
      expect(joinIds(cut).map((ids) => [...ids!])).toEqual(await library(texts))
      expect(cut.table.ids.length).toBeLessThan(limits.pieces + 200)
      expect(cut.table.units).toBeLessThan(limits.units + 1000)
      if (round > 0 && cut.unknown.has('the')) askedAgain++
    }
    expect(askedAgain).toBeGreaterThan(5)
    expect(askedAgain).toBeLessThan(50)
  })

  it('leave the event loop free, in many short calls too', async () => {
    const { tokenizer } = load()
    const texts = Array.from({ length: 60 }, () => 'The cat has 12 CATS. '.repeat(40))
    await tokenizer.encodeBatch(texts) // From now on nothing waits for the library's threads.
    let isOver = false
    let turns = 0
    const tick = () => {
      turns++
      if (!isOver) setImmediate(tick)
    }
    setImmediate(tick)
    const started = performance.now()
    while (performance.now() - started < 400) await tokenizer.encodeBatch(texts, { offsets: false })
    isOver = true
    expect(turns).toBeGreaterThan(3)
  })

  it('are not given for what else the engines or the neighbours may decide', () => {
    const { pieces } = load()
    const [plain, umlaut, long] = pieces!.cut(['plain', 'fünf', 'x'.repeat(16 * 1024 + 1)]).ends
    expect([plain! > 0, umlaut, long]).toEqual([true, -1, -1])
    // Cut alone, the piece "ab" of "abc" is two pieces.
    const byNeighbour: Change = (json) => {
      ;(json.pre_tokenizer as { pretokenizers: JsonObject[] }).pretokenizers[0]!.pattern = { Regex: 'ab(?=c)|[a-z]' }
    }
    expect([...load('tulu', byNeighbour).pieces!.cut(['abc', 'bc']).ends]).toEqual([-1, 2])
  })

  const split = (json: JsonObject) => (json.pre_tokenizer as { pretokenizers: JsonObject[] }).pretokenizers
  const added = (json: JsonObject) => json.added_tokens as JsonObject[]
  it.each<[string, Change]>([
    ['a normalizer that changes ASCII', (json) => Object.assign(json, { normalizer: { type: 'Lowercase' } })],
    ['no pre-tokenizer', (json) => Object.assign(json, { pre_tokenizer: null })],
    ['a split that drops', (json) => Object.assign(split(json)[0]!, { behavior: 'Removed' })],
    ['a split that inverts', (json) => Object.assign(split(json)[0]!, { invert: true })],
    ['a split by a text', (json) => Object.assign(split(json)[0]!, { pattern: { String: ' ' } })],
    [
      'a pattern that a RegExp reads otherwise',
      (json) => Object.assign(split(json)[0]!, { pattern: { Regex: '\\w+' } }),
    ],
    ['a space in front', (json) => Object.assign(split(json)[1]!, { add_prefix_space: true })],
    ['a second split', (json) => Object.assign(split(json)[1]!, { use_regex: true })],
    ['three stages', (json) => split(json).unshift({ type: 'Digits', individual_digits: true })],
    ['an added token that takes spaces', (json) => Object.assign(added(json)[1]!, { lstrip: true })],
    ['an added token that must be a word', (json) => Object.assign(added(json)[1]!, { single_word: true })],
    ['added tokens that are looked for in turn', (json) => Object.assign(added(json)[1]!, { normalized: true })],
  ])('are left to the library where there is %s', async (_, change) => {
    const { pieces, tokenizer, library } = load('tulu', change)
    expect(pieces).toBeUndefined()
    const texts = ['The cat <|end_of_text|> has 12 CATS.', "I'm  here\n\n"]
    expect(await idsOf(tokenizer, texts)).toEqual(await library(texts))
  })
})
