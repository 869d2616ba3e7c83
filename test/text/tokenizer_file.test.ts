import { describe, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { Random } from '../../lib/base/random.js'
import { type JsonObject, jsonErrorOffset } from '../../lib/text/json_check.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { parseTokenizerFile } from '../../lib/text/tokenizer_file.js'
import { readGolden, tokenizerNames } from './golden_files.js'

const base = (name = 'tulu') => readGolden<JsonObject>(`tokenizers/${name}/tokenizer.json`)

/** A tokenizer with three tokens and nothing around the model. */
const tiny = (model: JsonObject = {}, rest: JsonObject = {}): JsonObject => ({
  version: '1.0',
  added_tokens: [],
  model: { type: 'BPE', vocab: { a: 0, b: 1, ab: 2 }, merges: ['a b'], ...model },
  ...rest,
})

const wordPiece = (model: JsonObject = {}): JsonObject => ({
  model: {
    type: 'WordPiece',
    unk_token: '?',
    continuing_subword_prefix: '##',
    max_input_chars_per_word: 100,
    vocab: { a: 0, '##b': 1, ab: 2, '?': 3 },
    ...model,
  },
})

const split = (regex: unknown): JsonObject => ({
  pre_tokenizer: { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false },
})
const template = (single: unknown, tokens: JsonObject = {}): JsonObject => ({
  post_processor: { type: 'TemplateProcessing', single, pair: null, special_tokens: tokens },
})
const piece = { Sequence: { id: 'A', type_id: 0 } }
const nested = (depth: number): JsonObject => {
  return depth === 0 ? { type: 'NFC' } : { type: 'Sequence', normalizers: [nested(depth - 1)] }
}

const cyclic = tiny()
cyclic.normalizer = cyclic

/** What is wrong, the file, and the JSON path or words that the message must have. */
const malformed: [string, object, RegExp][] = [
  ['a merge whose result is missing', tiny({ vocab: { a: 0, b: 1 } }), /model\.merges\[0\]: its result "ab"/],
  ['a merge of unknown tokens', tiny({ merges: ['a c'] }), /model\.merges\[0\]\[1\]: "c" is not in/],
  ['a merge of a token with itself', tiny({ merges: ['ab ab'] }), /model\.merges\[0\]: its result "abab"/],
  ['a merge of one part', tiny({ merges: ['ab'] }), /model\.merges\[0\]: expected two tokens/],
  ['a merge of three parts', tiny({ merges: [['a', 'b', 'a']] }), /model\.merges\[0\]: has 3 entries/],
  ['a merge that is a number', tiny({ merges: [5] }), /model\.merges\[0\]: expected an array; got 5/],
  [
    'a subword prefix longer than a part',
    tiny({ continuing_subword_prefix: '####' }),
    /continuing_subword_prefix "####"/,
  ],
  ['no merges', tiny({ merges: null }), /model\.merges: expected an array/],
  ['a version line among the merges', tiny({ merges: ['#version: 0.2'] }), /model\.merges\[0\]\[0\]/],
  ['an id used twice', tiny({ vocab: { a: 0, b: 1, ab: 1 } }), /model\.vocab\["ab"\]: id 1 is also that of "b"/],
  ['a negative id', tiny({ vocab: { a: -1, b: 1, ab: 2 } }), /model\.vocab\["a"\]: expected an integer/],
  ['a fractional id', tiny({ vocab: { a: 0.5, b: 1, ab: 2 } }), /model\.vocab\["a"\]/],
  ['a huge id', tiny({ vocab: { a: 4294967295, b: 1, ab: 2 } }), /model\.vocab\["a"\]/],
  ['an id that is text', tiny({ vocab: { a: '0', b: 1, ab: 2 } }), /model\.vocab\["a"\]/],
  ['a vocabulary that is a list', tiny({ vocab: ['a', 'b'] }), /model\.vocab: expected an object; got an array/],
  ['an empty vocabulary', tiny({ vocab: {}, merges: [] }), /model\.vocab: is empty/],
  ['a lone surrogate in a token', tiny({ vocab: { a: 0, b: 1, ab: 2, '\ud800': 3 } }), /lone surrogate/],
  ['an unknown token outside the vocabulary', tiny({ unk_token: '<unk>' }), /model\.unk_token: "<unk>" is not in/],
  ['dropout', tiny({ dropout: 0.1 }), /model\.dropout: must be null; got 0\.1/],
  ['another model', tiny({ type: 'Unigram', vocab: [['a', 0]] }), /model\.type: unsupported model "Unigram"/],
  ['WordPiece without the unknown token', wordPiece({ unk_token: '[UNK]' }), /model\.unk_token: "\[UNK\]" is not in/],
  ['WordPiece without a name of it', wordPiece({ unk_token: null }), /model\.unk_token: expected a string/],
  [
    'WordPiece without a prefix',
    wordPiece({ continuing_subword_prefix: null }),
    /continuing_subword_prefix: expected a/,
  ],
  [
    'WordPiece for words of no length',
    wordPiece({ max_input_chars_per_word: 0 }),
    /max_input_chars_per_word: expected an/,
  ],
  ['WordPiece with quadratic time', wordPiece({ max_input_chars_per_word: 1e6 }), /an integer from 1 to 1000/],
  ['WordPiece with merges', wordPiece({ merges: [] }), /model\.merges: unknown field/],
  ['WordPiece with an id used twice', wordPiece({ vocab: { a: 0, '?': 0 } }), /model\.vocab\["\?"\]: id 0 is also/],
  ['a model without a type', { model: { vocab: {} } }, /model\.type: expected a string; got nothing/],
  ['no model', { version: '1.0' }, /model: expected an object; got nothing/],
  ['another version', tiny({}, { version: '2.0' }), /version: expected one of 1\.0; got "2\.0"/],
  ['an unknown field', tiny({}, { plugins: [] }), /\$\.plugins: unknown field/],
  ['an unknown model field', tiny({ cache: 1 }), /model\.cache: unknown field/],
  ['a flag that is a number', tiny({ byte_fallback: 1 }), /model\.byte_fallback: expected true or false; got 1/],
  [
    'an added token with the id of another',
    tiny({}, { added_tokens: [{ id: 1, content: 'x' }] }),
    /added_tokens\[0\]\.id: 1 is that of "b"/,
  ],
  [
    'an added token with another id than in the vocabulary',
    tiny({}, { added_tokens: [{ id: 9, content: 'a' }] }),
    /model\.vocab gives "a" id 0/,
  ],
  [
    'an added token twice',
    tiny(
      {},
      {
        added_tokens: [
          { id: 3, content: 'x' },
          { id: 4, content: 'x' },
        ],
      },
    ),
    /added_tokens\[1\]\.content: "x" is added twice/,
  ],
  [
    'an empty added token',
    tiny({}, { added_tokens: [{ id: 3, content: '' }] }),
    /added_tokens\[0\]\.content: is empty/,
  ],
  [
    'an added token with an id that cannot be kept',
    tiny({}, { added_tokens: [{ id: 7, content: 'x' }] }),
    /added token "x" has id 7, but/,
  ],
  ['a pattern that is not closed', tiny({}, split('(a')), /pre_tokenizer\.pattern\.Regex: a group is not closed/],
  [
    'a pattern with exponential time',
    tiny({}, split('(a+)+$')),
    /Regex: a group that can match in several ways is repeated/,
  ],
  ['a pattern with ambiguous alternatives', tiny({}, split('(?:a|a)*b')), /several ways/],
  ['a pattern with cubic time', tiny({}, split('a*a*a*b')), /quadratic/],
  ['a pattern with a back reference', tiny({}, split('(a)\\1')), /unsupported/],
  ['a pattern with recursion', tiny({}, split('\\g<0>')), /unsupported/],
  ['an empty pattern', tiny({}, split('')), /can match nothing/],
  ['a pattern that is a number', tiny({}, split(5)), /pattern\.Regex: expected a string; got 5/],
  [
    'an empty text to replace',
    tiny({}, { normalizer: { type: 'Replace', pattern: { String: '' }, content: 'x' } }),
    /normalizer\.pattern\.String: is empty/,
  ],
  [
    'replacements that grow',
    tiny(
      {},
      {
        normalizer: {
          type: 'Sequence',
          normalizers: Array(4).fill({ type: 'Replace', pattern: { String: 'x' }, content: 'xxxxxxxx' }),
        },
      },
    ),
    /over 64 times longer/,
  ],
  ['nothing to prepend', tiny({}, { normalizer: { type: 'Prepend', prepend: '' } }), /normalizer\.prepend: is empty/],
  [
    'an unknown normalizer',
    tiny({}, { normalizer: { type: 'Precompiled', precompiled_charsmap: 'AAAA' } }),
    /normalizer\.type: unsupported normalizer "Precompiled"/,
  ],
  [
    'a type from the prototype',
    tiny({}, { normalizer: { type: 'constructor' } }),
    /unsupported normalizer "constructor"/,
  ],
  ['stages nested too deep', tiny({}, { normalizer: nested(9) }), /nested deeper than 8/],
  ['an object that contains itself', cyclic, /has no JSON form/],
  [
    'pieces of no length',
    tiny({}, { pre_tokenizer: { type: 'FixedLength', length: 0 } }),
    /unsupported pre_tokenizer "FixedLength"/,
  ],
  [
    'a replacement of two characters',
    tiny({}, { pre_tokenizer: { type: 'Metaspace', replacement: '▁▁' } }),
    /expected one character; got "▁▁"/,
  ],
  [
    'an unknown behavior',
    tiny({}, { pre_tokenizer: { type: 'Punctuation', behavior: 'Gone' } }),
    /pre_tokenizer\.behavior: expected one of/,
  ],
  [
    'a template with an undefined token',
    tiny({}, template([{ SpecialToken: { id: 'X', type_id: 0 } }, piece])),
    /single\[0\]\.SpecialToken\.id: "X" is not in special_tokens/,
  ],
  ['a template without the text', tiny({}, template([])), /single: expected each of the sequences A exactly once/],
  ['a template with the text twice', tiny({}, template([piece, piece])), /exactly once/],
  ['a template of the second text', tiny({}, template([{ Sequence: { id: 'B', type_id: 0 } }])), /exactly once/],
  [
    'a template token with an id out of range',
    tiny({}, template([piece], { X: { id: 'X', ids: [3], tokens: ['X'] } })),
    /ids\[0\]: expected an integer from 0 to 2; got 3/,
  ],
  [
    'a template token with more ids than tokens',
    tiny({}, template([piece], { X: { id: 'X', ids: [1, 2], tokens: ['X'] } })),
    /2 ids but 1 tokens/,
  ],
  [
    'a decoder that cuts at the end',
    tiny({}, { decoder: { type: 'Strip', content: ' ', start: 1, stop: 1 } }),
    /decoder\.stop: expected an integer from 0 to 0; got 1/,
  ],
  ['a decoder of another kind', tiny({}, { decoder: 'ByteLevel' }), /decoder: expected an object; got "ByteLevel"/],
  ['a list', [], /\$: expected an object; got an array/],
]

function errorOf(json: string | object): CaravanError {
  try {
    Tokenizer.fromJson(json)
  } catch (error) {
    expect(error).toBeInstanceOf(CaravanError)
    return error as CaravanError
  }
  throw new Error('it was accepted')
}

describe('malformed tokenizer files', () => {
  it.each(malformed)('%s', (_what, json, message) => {
    const error = errorOf(json)
    expect(error.code).toBe('ERR_TOKENIZER')
    expect(error.message).toMatch(message)
    expect(error.message).toMatch(/^tokenizer\.json: /)
    expect(error.details.file).toBe('tokenizer.json')
  })

  it('cut off anywhere', () => {
    const text = JSON.stringify(tiny())
    for (let length = 0; length < text.length; length++) {
      const error = errorOf(text.slice(0, length))
      expect(error.code).toBe('ERR_TOKENIZER')
      expect(error.details.offset, text.slice(0, length)).toBeLessThanOrEqual(length)
    }
  })

  it('that are not UTF-8, or too deep, or too large', () => {
    const parse = (bytes: Uint8Array) => () => parseTokenizerFile(bytes, 'f.json')
    expect(parse(new Uint8Array([0x7b, 0xff, 0x7d]))).toThrow(/f\.json: not UTF-8/)
    expect(parse(Buffer.from('['.repeat(100_000)))).toThrow(/f\.json:1:100001: not JSON \(byte 100000\)/)
    expect(parse(Buffer.from('['.repeat(100_000) + ']'.repeat(100_000)))).toThrow(/expected an object/)
    const stages = '{"type":"Sequence","normalizers":['.repeat(50_000)
    const deep = JSON.stringify(tiny({}, { normalizer: 0 })).replace(
      '"normalizer":0',
      `"normalizer":${stages}${']}'.repeat(50_000)}`,
    )
    expect(parse(Buffer.from(deep))).toThrow(/nested deeper than 8/)
    expect(parse(Buffer.from('{"a": 1,\n "é": x}'))).toThrow(/f\.json:2:7: not JSON \(byte 16\)/)
  })

  it('are told from sound ones that look alike', () => {
    const sound = [
      tiny(),
      tiny({ merges: [['a', 'b']] }),
      tiny({ type: undefined }),
      tiny({ vocab: { a: 0, b: 1, ab: 2, __proto__x: 3, constructor: 4 } }),
      tiny({ vocab: { a: 0, '##b': 1, ab: 2 }, merges: ['a ##b'], continuing_subword_prefix: '##' }),
      tiny({}, { truncation: { max_length: 2, stride: 5 }, padding: { pad_to_multiple_of: 0 } }),
      tiny({}, split('a+')),
      tiny({}, { normalizer: nested(8) }),
      wordPiece(),
    ]
    for (const json of sound) expect(Tokenizer.fromJson(JSON.stringify(json)).tokenToId('ab')).toBe(2)
  })
})

describe('mutated tokenizer files', () => {
  // Every accepted mutant is used; one that the native library cannot take ends this process, and so the test.
  it('are refused with a typed error or work', async () => {
    const random = new Random(17)
    const texts = ['', "Hello it's 12345 \n\n x", 'ünï 😀 日本 e\u0301', '<s><|begin_of_text|>\ud800', ' '.repeat(50)]
    const junk = [null, 0, 1, -1, 2 ** 32, 1.5, '', 'a', '▁', 'Ġ', true, [], {}, 'Regex', '(a+)+', ' ?\\s+']
    let accepted = 0
    for (let i = 0; i < 400; i++) {
      const json = base(random.choice([...tokenizerNames, '../onnx/bert']))
      for (let change = random.integer(1, 4); change > 0; change--) mutate(json, random, junk)
      let tokenizer: Tokenizer
      try {
        tokenizer = Tokenizer.fromJson(json)
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_TOKENIZER' })
        continue
      }
      accepted++
      const encoded = await tokenizer.encodeBatch(texts, { addSpecialTokens: true })
      await tokenizer.decodeBatch(encoded.map(({ ids }) => ids))
    }
    expect(accepted).toBeGreaterThan(20)
  })
})

const isObject = (value: unknown): value is JsonObject => typeof value === 'object' && value !== null

/** Replaces, removes or moves one value outside the vocabulary, or one entry of the vocabulary or the merges. */
function mutate(json: JsonObject, random: Random, junk: readonly unknown[]): void {
  const places: [JsonObject, string][] = []
  const visit = (value: unknown) => {
    if (!isObject(value)) return
    for (const key of Object.keys(value)) {
      places.push([value, key])
      if (key !== 'vocab' && key !== 'merges') visit(value[key])
    }
  }
  visit(json)
  const model = isObject(json.model) ? json.model : {}
  for (const list of [model.vocab, model.merges]) {
    if (isObject(list)) places.push([list, random.choice(['0', ...Object.keys(list)])])
  }
  if (places.length === 0) return
  const [owner, key] = random.choice(places)
  const [otherOwner, otherKey] = random.choice(places)
  if (random.chance(0.3)) delete owner[key]
  else owner[key] = structuredClone(random.chance(0.4) ? otherOwner[otherKey] : random.choice(junk))
}

describe('position of a JSON fault', () => {
  it.each([
    ['', 0],
    ['{', 1],
    ['{"a"', 4],
    ['{"a":}', 5],
    ['{"a":1,}', 7],
    ['[1,]', 3],
    ['[1 2]', 3],
    ['{"a":1 "b"}', 7],
    ['{1:2}', 1],
    ['[}', 1],
    ['01', 1],
    ['"ab\nc"', 3],
    ['"\\x"', 1],
    ['"abc', 4],
    ['[] x', 3],
    ['nul', 0],
  ])('%j is at %i', (text, position) => {
    expect(() => JSON.parse(text)).toThrow()
    expect(jsonErrorOffset(text)).toBe(position)
  })
})
