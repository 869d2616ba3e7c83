import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { encodings, readGolden, tokenizerFolder, tokenizerNames } from './golden_files.js'

/** UTF-16 position of code point `index`, by the string iterator. */
function utf16Position(text: string, index: number): number {
  return [...text].slice(0, index).join('').length
}

describe.each(tokenizerNames)('tokenizer %s against the reference', (name) => {
  const golden = encodings[name]!

  it('knows its size and special tokens', async () => {
    const tokenizer = await Tokenizer.load(tokenizerFolder(name))
    expect(tokenizer.vocabularySize).toBe(golden.vocab_size)
    expect([tokenizer.bosId, tokenizer.eosId, tokenizer.padId]).toEqual([
      golden.bos ?? undefined,
      golden.eos,
      golden.pad,
    ])
    expect(tokenizer.padIsEos).toBe(golden.pad === golden.eos)
  })

  it('gives the same ids, offsets and texts', async () => {
    const tokenizer = await Tokenizer.load(tokenizerFolder(name))
    const texts = golden.cases.map(({ text }) => text)
    const plain = await tokenizer.encodeBatch(texts)
    const special = await tokenizer.encodeBatch(texts, { addSpecialTokens: true })
    const decoded = await tokenizer.decodeBatch(plain.map(({ ids }) => ids))
    const skipped = await tokenizer.decodeBatch(
      special.map(({ ids }) => ids),
      { skipSpecialTokens: true },
    )
    for (const [i, wanted] of golden.cases.entries()) {
      expect(Array.from(plain[i]!.ids), wanted.text).toEqual(wanted.ids)
      expect(Array.from(special[i]!.ids), wanted.text).toEqual(wanted.ids_with_special)
      const offsets = wanted.offsets.flat().map((position) => utf16Position(wanted.text, position))
      expect(Array.from(plain[i]!.offsets), wanted.text).toEqual(offsets)
      expect(decoded[i]).toBe(wanted.decoded)
      expect(skipped[i]).toBe(wanted.decoded_skip_special)
      expect(wanted.ids.map((id) => tokenizer.idToToken(id))).toEqual(wanted.tokens)
      expect(wanted.tokens.map((token) => tokenizer.tokenToId(token))).toEqual(wanted.ids)
    }
  })

  it('gives the same for one text as for many', async () => {
    const tokenizer = await Tokenizer.load(tokenizerFolder(name))
    const { text, ids } = golden.cases.at(-1)!
    const many = await tokenizer.encodeBatch(Array.from({ length: 600 }, () => text))
    expect(many).toHaveLength(600)
    for (const { ids: each } of many) expect(Array.from(each)).toEqual(ids)
    expect(Array.from((await tokenizer.encode(text)).ids)).toEqual(ids)
    expect(await tokenizer.encodeBatch([])).toEqual([])
  })

  it('is saved byte for byte, with the same hash', async () => {
    const tokenizer = await Tokenizer.load(tokenizerFolder(name))
    const folder = await mkdtemp(join(tmpdir(), 'caravan-tokenizer-'))
    try {
      await tokenizer.save(folder)
      const copy = await Tokenizer.load(folder)
      expect(copy.hash).toBe(tokenizer.hash)
      expect(copy.chatTemplate).toBe(tokenizer.chatTemplate)
      for (const file of tokenizer.files.keys()) {
        const original = await readFile(join(tokenizerFolder(name), file))
        expect(original.equals(await readFile(join(folder, file))), file).toBe(true)
      }
    } finally {
      await rm(folder, { recursive: true })
    }
  })
})

describe('tokenizer arguments', () => {
  const json = () => readGolden<object>('tokenizers/tulu/tokenizer.json')

  it('refuses ids out of range', async () => {
    const tokenizer = Tokenizer.fromJson(json())
    for (const id of [-1, 363, 0.5, Number.NaN, 2 ** 32]) {
      await expect(tokenizer.decode([39, id])).rejects.toMatchObject({
        code: 'ERR_TOKENIZER',
        details: { position: 1 },
      })
    }
  })

  it('refuses texts that would end the native library', async () => {
    // Spaces are dropped after the split, so that the time goes into the pattern, which backtracks over each of them.
    const splitOnly = json() as { pre_tokenizer: { pretokenizers: { behavior: string }[] } }
    splitOnly.pre_tokenizer.pretokenizers[0]!.behavior = 'Removed'
    const tokenizer = Tokenizer.fromJson(splitOnly)
    const longest = ' '.repeat(tokenizer.maximumTextUnits)
    expect((await tokenizer.encode(longest)).ids).toHaveLength(0)
    await expect(tokenizer.encode(`${longest} `)).rejects.toMatchObject({ code: 'ERR_DATA' })
    await expect(tokenizer.encodeBatch(['a', 7 as unknown as string])).rejects.toMatchObject({
      code: 'ERR_DATA',
      details: { index: 1 },
    })
  })

  it('counts a lone surrogate as one unit and a pair as two', async () => {
    const tokenizer = Tokenizer.fromJson(json())
    const { offsets } = await tokenizer.encode('\ud800😀x')
    expect(Math.max(...offsets)).toBe(4)
    expect(Array.from(offsets.slice(-2))).toEqual([3, 4])
  })

  it('names a configured token that does not exist, and a missing file', async () => {
    expect(() => Tokenizer.fromJson(json(), { eos_token: '</s>' })).toThrow(/eos_token is "<\/s>"/)
    await expect(Tokenizer.load('/nonexistent')).rejects.toBeInstanceOf(CaravanError)
  })

  it('reads token objects, and named templates', () => {
    const config = {
      eos_token: { content: '<|end_of_text|>', lstrip: false },
      chat_template: [
        { name: 'tool_use', template: 'no' },
        { name: 'default', template: 'yes' },
      ],
    }
    const tokenizer = Tokenizer.fromJson(json(), config)
    expect([tokenizer.eosId, tokenizer.padId, tokenizer.padIsEos]).toEqual([361, undefined, false])
    expect(tokenizer.chatTemplate).toBe('yes')
  })

  it('stops when aborted', async () => {
    const tokenizer = Tokenizer.fromJson(json())
    const signal = AbortSignal.abort()
    await expect(tokenizer.encodeBatch(['a'], { signal })).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  })
})
