import { describe, expect, it } from 'vitest'
import { judgePattern, LINEAR_TEXT_UNITS, type PatternVerdict, wordSplitPattern } from '../../lib/text/split_pattern.js'
import { SplitRegExp } from '../../lib/text/split_regexp.js'
import { readGolden } from './golden_files.js'

const raw = String.raw
const WORDS = raw`[^\r\n\p{L}\p{N}]?\p{L}+`
const SPACES = raw`\s*[\r\n]+|\s+(?!\S)|\s+`
const UPPER = raw`[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
const LOWER = raw`[\p{Ll}\p{Lm}\p{Lo}\p{M}]`

/** Split patterns as published tokenizer.json files have them. */
const published: [string, string][] = [
  ['GPT-2', raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`],
  ['Qwen 2', raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|${WORDS}|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|${SPACES}`],
  [
    'o200k',
    raw`[^\r\n\p{L}\p{N}]?${UPPER}*${LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?${UPPER}+${LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|${SPACES}`,
  ],
  [
    'Tekken',
    raw`[^\r\n\p{L}\p{N}]?${UPPER}*${LOWER}+|[^\r\n\p{L}\p{N}]?${UPPER}+${LOWER}*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|${SPACES}`,
  ],
  [
    'DeepSeek words',
    raw`[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|${SPACES}`,
  ],
  ['DeepSeek ideographs', '[一-龥\u3040-ゟ゠-ヿ]+'],
  ['BLOOM', ' ?[^(\\s|[.,!?…。，、।۔،])]+'],
  ['Falcon', '[0-9][0-9][0-9]'],
]

describe('judging split patterns', () => {
  it.each(published)('%s is linear', (_name, pattern) => {
    expect((judgePattern(pattern) as PatternVerdict).maximumUnits).toBe(LINEAR_TEXT_UNITS)
  })

  it('knows the pattern of the Llama 3 format', () => {
    const json = readGolden<{ pre_tokenizer: { pretokenizers: { pattern: { Regex: string } }[] } }>(
      'tokenizers/llama3/tokenizer.json',
    )
    expect(json.pre_tokenizer.pretokenizers[0]!.pattern.Regex).toBe(wordSplitPattern(3))
    expect(judgePattern(wordSplitPattern(3))).toEqual({ maximumUnits: LINEAR_TEXT_UNITS, minimumLength: 1 })
  })

  it.each([
    ['a+b', 2],
    ['(?=a*b)a', 1],
    ['\\s*[\\r\\n]+', 1],
    ['a{2,}b?c', 3],
    ['a++b', 2],
  ])('%s can run through the text and fail, so texts are limited', (pattern, minimumLength) => {
    const verdict = judgePattern(pattern) as PatternVerdict
    expect(verdict.maximumUnits).toBeLessThan(10_000)
    expect(verdict.minimumLength).toBe(minimumLength)
  })

  it.each(['(a+)+', '(a|b)*c', '(a?)*', 'a*a*b', 'a**', 'a{1,3}+', '(?:a{1,9}){1,9}', 'a{2000}', '^*'])(
    'refuses %s',
    (pattern) => {
      expect(judgePattern(pattern)).toBeTypeOf('string')
    },
  )

  it.each([
    '(',
    ')',
    '[a',
    '[]',
    'a{3,2}',
    '\\',
    '\\1',
    '\\k<a>',
    '(?<a>b)',
    '(?~a)',
    '\\K',
    '\\G',
    '\\X',
    '*a',
    '{',
    `${'('.repeat(20)}a${')'.repeat(20)}`,
  ])('does not read %s', (pattern) => {
    expect(judgePattern(pattern)).toBeTypeOf('string')
  })
})

describe('splitting in JavaScript', () => {
  it('joins to the text, with matches and the stretches between them as pieces', () => {
    expect(new SplitRegExp('[0-9]').split('ab12c')).toEqual(['ab', '1', '2', 'c'])
    expect(new SplitRegExp('x').split('')).toEqual([])
    expect(new SplitRegExp('(?i:It)').split('IT it aIt')).toEqual(['IT', ' ', 'it', ' a', 'It'])
  })

  it('has the Unicode classes of Oniguruma', () => {
    const spaces = new SplitRegExp('\\s+')
    expect(spaces.split('a\u0085\u00a0\u3000b\ufeffc')).toEqual(['a', '\u0085\u00a0\u3000', 'b\ufeffc'])
    expect(new SplitRegExp('\\d+').split('1٣x')).toEqual(['1٣', 'x'])
  })
})
