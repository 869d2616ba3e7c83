import tokenizers from 'tokenizers'
import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { offsetsFromLengths, tokenByteLengths } from '../../lib/text/byte_offsets.js'
import type { JsonObject } from '../../lib/text/json_check.js'
import { parseTokenizerFile } from '../../lib/text/tokenizer_file.js'
import { readGolden } from './golden_files.js'

const load = (change: (json: JsonObject) => void = () => undefined, name = 'tulu') => {
  const json = readGolden<JsonObject>(`tokenizers/${name}/tokenizer.json`)
  change(json)
  return parseTokenizerFile(Buffer.from(JSON.stringify(json)), 'tokenizer.json')
}
const lengthsOf = (file: ReturnType<typeof load>) => tokenByteLengths(file.json, file.idOf)

describe('offsets from token lengths', () => {
  it('are those of the library, on text of every kind', async () => {
    const file = load()
    const native = tokenizers.Tokenizer.fromString(JSON.stringify(file.json))
    const random = new Random(8)
    const parts = ['the ', 'é', 'e\u0301', '😀', '日本語', '\n\n', '  ', '1234', '<|end_of_text|>', '\u0000', 'ſ', "'s"]
    for (let i = 0; i < 300; i++) {
      const text = Array.from({ length: random.integer(0, 12) }, () => random.choice(parts)).join('')
      const encoding = await native.encode(text, null, { addSpecialTokens: false })
      const ids = Int32Array.from(encoding.getIds())
      const points = [...text]
      const unit = (position: number) => points.slice(0, position).join('').length
      const wanted = encoding.getOffsets().flat().map(unit)
      expect(Array.from(offsetsFromLengths(ids, text, lengthsOf(file)!)!), text).toEqual(wanted)
    }
  })

  it('count a lone surrogate as the three bytes that replace it', () => {
    const offsets = offsetsFromLengths(Int32Array.of(0, 1), 'a\ud800', Uint16Array.of(1, 3))
    expect(offsets).toEqual(Uint32Array.of(0, 1, 1, 2))
  })

  it('are not given when the tokens do not add up to the text', () => {
    const lengths = Uint16Array.of(1, 2, 0)
    expect(offsetsFromLengths(Int32Array.of(0, 1), 'abc', lengths)).toEqual(Uint32Array.of(0, 1, 1, 3))
    expect(offsetsFromLengths(Int32Array.of(0, 0), 'abc', lengths)).toBeUndefined()
    expect(offsetsFromLengths(Int32Array.of(1, 1), 'abc', lengths)).toBeUndefined()
    expect(offsetsFromLengths(Int32Array.of(0, 2, 1), 'abc', lengths)).toBeUndefined()
  })

  it('are left to the library when the text may be changed, dropped or trimmed', () => {
    expect(lengthsOf(load())).toBeDefined()
    expect(lengthsOf(load(undefined, 'llama3'))).toBeDefined()
    expect(lengthsOf(load(undefined, 'chatml'))).toBeUndefined()
    expect(lengthsOf(load(undefined, 'spm'))).toBeUndefined()
    const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: true }
    const changes: ((json: JsonObject) => void)[] = [
      (json) => Object.assign(json, { normalizer: { type: 'NFC' } }),
      (json) => Object.assign(json, { pre_tokenizer: { ...byteLevel, add_prefix_space: true } }),
      (json) => Object.assign(json, { pre_tokenizer: null }),
      (json) => Object.assign(json, { post_processor: { ...byteLevel, trim_offsets: true } }),
      (json) => Object.assign((json.added_tokens as JsonObject[])[0]!, { lstrip: true }),
      (json) => Object.assign(json.model as JsonObject, { end_of_word_suffix: '</w>' }),
    ]
    for (const change of changes) expect(lengthsOf(load(change))).toBeUndefined()
  })
})
