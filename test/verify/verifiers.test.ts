// What holds for every verifier: its name, its guard, and that no completion makes it throw or takes it long. The small
// verifiers are here, too.
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { INSTRUCTION_IDS } from '../../lib/verify/ifeval.js'
import { chosenLetter, multipleChoice } from '../../lib/verify/multiple_choice.js'
import { findVerifier, VERIFIERS } from '../../lib/verify/registry.js'
import { stringF1, stringMatch } from '../../lib/verify/string_match.js'
import { thinkFormat } from '../../lib/verify/think_format.js'
import { withoutThinking } from '../../lib/verify/thinking.js'
import { maxLength, upToMaxLength } from '../../lib/verify/token_length.js'
import { guardedVerify, type Verifier, type VerifyInput } from '../../lib/verify/verifier.js'
import { HOSTILE } from './verifier_cases.js'

/** Rows for each verifier; of the instructions those that do most work. */
const ROWS: Record<string, Omit<VerifyInput, 'completion'>[]> = {
  gsm8k: [{ groundTruth: '18' }],
  gsm8k_v1: [{ groundTruth: '18' }],
  gsm8k_v2: [{ groundTruth: '18' }],
  math: [{ groundTruth: '\\frac{1}{2}' }, { groundTruth: '9^{9^9}' }],
  strict_math: [{ groundTruth: '\\frac{1}{2}' }],
  ifeval: [
    row('keywords:existence', { keywords: ['a.b', 'c'] }),
    row('keywords:forbidden_words', { forbidden_words: ['aa', '(a+)+b'] }),
    row('language:response_language', { language: 'sw' }),
    row('length_constraints:number_sentences', { num_sentences: 3, relation: 'at least' }),
    row('length_constraints:number_words', { num_words: 3, relation: 'at least' }),
    row('detectable_content:number_placeholders', { num_placeholders: 1 }),
    row('detectable_content:postscript', { postscript_marker: 'P.S.' }),
    row('detectable_format:number_bullet_lists', { num_bullets: 3 }),
    row('detectable_format:number_highlighted_sections', { num_highlights: 3 }),
    row('detectable_format:multiple_sections', { section_spliter: 'a', num_sections: 3 }),
    row('detectable_format:json_format', {}),
    row('detectable_format:title', {}),
    row('change_case:capital_word_frequency', { capital_frequency: 3, capital_relation: 'at least' }),
    row('change_case:english_lowercase', {}),
    row('copy:repeat_phrase', { phrase: 'a b a', small_n: 2 }),
    row('detectable_format:sentence_hyphens', {}),
    row('count:counting_composition', { n_sent: 1, n_words: 1 }),
    row('count:count_unique', {}),
    row('last_word:last_word_sent', { last_word: 'a' }),
    row('keywords:palindrome', {}),
  ],
  ifeval_paper: [
    { groundTruth: { func_name: 'verify_sentence_constraint', N: 3, quantifier: 'around' } },
    { groundTruth: { func_name: 'validate_response_language', language: 'sw' } },
    { groundTruth: { func_name: 'validate_highlighted_sections', N: 3 } },
  ],
  string_f1: [{ groundTruth: ['hello world', 'a'] }],
  string_match: [{ groundTruth: 'hello world' }],
  multiple_choice: [{ groundTruth: 'B' }],
  format: [{}],
  max_length: [{ groundTruth: 100 }],
  up_to_max_length: [{ groundTruth: 100 }],
  problem_answer: [{ groundTruth: 42 }],
  instruction_constraints: [
    {
      groundTruth: {
        entity: 'Mara',
        distinctSentences: true,
        constraints: [
          { kind: 'caps' },
          { kind: 'lower' },
          { kind: 'nocomma' },
          { kind: 'end', phrase: 'That is all.' },
          { kind: 'start', phrase: 'In short' },
          { kind: 'bullets', count: 3 },
          { kind: 'kw', word: 'bridge', count: 2 },
          { kind: 'quote' },
          { kind: 'nsent', count: 2 },
          { kind: 'avoid', word: 'has' },
          { kind: 'title' },
          { kind: 'ps' },
        ],
      },
    },
  ],
}

function row(id: string, kwargs: object): { row: Record<string, unknown> } {
  return { row: { instruction_id_list: [id], kwargs: [kwargs] } }
}

describe('the list of verifiers', () => {
  it('has names of its own, and rows for this test', () => {
    const names = VERIFIERS.map(({ name }) => name)
    expect(new Set(names).size).toBe(names.length)
    expect(Object.keys(ROWS).sort()).toEqual([...names].sort())
    for (const { name, summary } of VERIFIERS)
      expect([name, summary]).toEqual([expect.stringMatching(/^[a-z0-9_]+$/), expect.stringMatching(/.{20}/)])
  })

  it('is searched by name, with the nearest one at hand', () => {
    expect(findVerifier('math').name).toBe('math')
    expect(() => findVerifier('gms8k')).toThrow(
      expect.objectContaining({ code: 'ERR_CONFIG', hint: "did you mean 'gsm8k'?" }),
    )
  })
})

/** Milliseconds of processor time that a verdict may take; one on instructions judges up to eight readings. */
const LIMIT_MS = 50
const INSTRUCTIONS_LIMIT_MS = 150
const TRIES = 4

describe.each(VERIFIERS.map((verifier): [string, Verifier] => [verifier.name, verifier]))('%s', (name, verifier) => {
  it.each(HOSTILE)('neither throws nor takes long: %s', (_, completion) => {
    const limit = name === 'ifeval' ? INSTRUCTIONS_LIMIT_MS : LIMIT_MS
    for (const other of ROWS[name]!) {
      const input = { ...other, completion }
      let fastest = Number.POSITIVE_INFINITY
      for (let i = 0; i < TRIES && fastest > limit; i++) {
        const started = process.cpuUsage()
        const { score, reason } = guardedVerify(verifier, input)
        const { user, system } = process.cpuUsage(started)
        fastest = Math.min(fastest, (user + system) / 1000)
        expect(score).toBeGreaterThanOrEqual(0)
        expect(score).toBeLessThanOrEqual(1)
        expect(reason).not.toMatch(/failed/)
        expect(reason.length).toBeLessThan(400)
      }
      expect([other, fastest]).toEqual([other, expect.toSatisfy((ms: number) => ms <= limit)])
    }
  })
})

describe('the guard', () => {
  const faulty = (verify: Verifier['verify']): Verifier => ({ name: 'faulty', summary: '', verify })

  it('turns an exception, and a score that is none, into 0 with a reason', () => {
    const thrower = faulty(() => {
      throw new RangeError('too deep')
    })
    expect(guardedVerify(thrower, { completion: 'a' })).toEqual({ score: 0, reason: 'faulty failed: too deep' })
    for (const score of [Number.NaN, 2, -1]) {
      expect(
        guardedVerify(
          faulty(() => ({ score, reason: '' })),
          { completion: 'a' },
        ),
      ).toMatchObject({
        score: 0,
        reason: expect.stringContaining('not within [0, 1]'),
      })
    }
  })

  it('passes on that a file of its own is missing', () => {
    const incomplete = faulty(() => {
      throw new CaravanError('ERR_FILE', 'no profiles')
    })
    expect(() => guardedVerify(incomplete, { completion: 'a' })).toThrow('no profiles')
  })

  it('passes the faults of rows on, and refuses what is too long to read', () => {
    expect(() => guardedVerify(findVerifier('gsm8k'), { completion: '1' })).toThrow(
      expect.objectContaining({ code: 'ERR_DATA' }),
    )
    const broken = { completion: 1 } as unknown as VerifyInput
    expect(() => guardedVerify(findVerifier('gsm8k'), broken)).toThrow(/`completion` must be text; got 1/)
    const long = { completion: 'a'.repeat(2 ** 20), groundTruth: '1' }
    expect(guardedVerify(findVerifier('gsm8k'), long)).toMatchObject({
      score: 0,
      reason: expect.stringMatching(/1048576 characters; at most 262144/),
    })
  })
})

describe('words', () => {
  it.each([
    ['hello world', 'hello', 2 / 3],
    ['hello world', ['goodbye', 'hello world'], 1],
    ['The Hello, world!', 'hello world', 1],
    ['a a a', 'the', 1],
    ['b b b', 'b', 0.5],
    ['', 'b', 0],
    ['<think>b</think><answer>c d</answer>', 'c d', 1],
  ])('F1 of %j with %j is %d', (completion, groundTruth, score) => {
    expect(stringF1.verify({ completion, groundTruth }).score).toBeCloseTo(score as number, 12)
  })

  it.each([
    ['answer is 42.', 'Answer is 42', 1],
    ['<think>hm</think>Paris', 'paris', 1],
    ['<answer>New York City!</answer>', ['London', 'new york city'], 1],
    ['A simple test.', 'simple test', 1],
    ['', '42', 0],
    ['Paris, France', 'Paris', 0],
  ])('%j matches %j: %d', (completion, groundTruth, score) => {
    expect(stringMatch.verify({ completion, groundTruth }).score).toBe(score)
  })
})

describe('multiple choice', () => {
  it.each([
    ['The answer is (B).', 'B'],
    ['The answer is B', 'B'],
    ['Answer: **C**', 'C'],
    ['**Answer: C**', 'C'],
    ['the answer is A. No: the answer is D.', 'D'],
    ['so \\boxed{B}', 'B'],
    ['so \\boxed{\\text{B}}', 'B'],
    ['B', 'B'],
    ['(B)', 'B'],
    ['B) because it is', 'B'],
    ['Because it is.\n\nC.', 'C'],
    ['A dog ate it', undefined],
    ['The answer is A dog', undefined],
    ['I am sure', undefined],
    ['', undefined],
  ])('%j states %j', (answer, letter) => expect(chosenLetter(answer)).toBe(letter))

  it('compares letters, and wants one as label', () => {
    expect(
      multipleChoice.verify({ completion: '<think>A</think> The answer is (b) B', groundTruth: '(B)' }).score,
    ).toBe(0)
    expect(multipleChoice.verify({ completion: 'The answer is B', groundTruth: 'b' }).score).toBe(1)
    expect(multipleChoice.verify({ completion: 'The answer is C', groundTruth: 'B' }).reason).toBe('expected B, got C')
    expect(() => multipleChoice.verify({ completion: 'B', groundTruth: 'Paris' })).toThrow(
      /`ground_truth` must be one letter/,
    )
  })
})

describe('the form', () => {
  it.each([
    ['<think>a</think><answer>b</answer>', 1, /kept/],
    [' <think></think>\n\n<answer> b </answer>\n', 1, /kept/],
    ['<think>a</think>b', 0, /<answer> is missing/],
    ['<answer>b</answer><think>a</think>', 0, /<answer> stands too early/],
    ['<think>a</think><think>a</think><answer>b</answer>', 0, /<think> occurs more than once/],
    ['<think>a</think> so <answer>b</answer>', 0, /text between/],
    ['well <think>a</think><answer>b</answer>', 0, /text before/],
    ['<think>a</think><answer>b</answer>.', 0, /text after/],
    ['<think>a</think><answer> </answer>', 0, /empty/],
    ['a</think><answer>b</answer>', 0, /<think> is missing/],
  ])('%j: %d', (completion, score, reason) => {
    expect(thinkFormat.verify({ completion })).toEqual({ score, reason: expect.stringMatching(reason) })
  })

  it('may begin in the prompt', () => {
    expect(thinkFormat.verify({ completion: 'a</think><answer>b</answer>', prompt: 'Q <think>\n' }).score).toBe(1)
  })

  it.each([
    ['a', 'a'],
    [' a ', ' a '],
    ['<think>x</think> a ', 'a'],
    ['x</think>y</think><answer>a</answer>', 'a'],
    ['<|assistant|>\na', 'a'],
  ])('thinking is left out of %j', (completion, answer) => expect(withoutThinking(completion)).toBe(answer))
})

describe('length', () => {
  it('is best at the target', () => {
    const score = (tokenCount: number) => maxLength.verify({ completion: '', tokenCount, groundTruth: 100 }).score
    expect(score(100)).toBe(1)
    expect(score(100 + 16384)).toBe(0.5)
    expect(score(1_000_000)).toBe(0)
    expect(maxLength.verify({ completion: 'one two', groundTruth: '2' })).toEqual({
      score: 1,
      reason: '2 words, the target is 2',
    })
  })

  it('is free up to a most', () => {
    const score = (tokenCount: number) => upToMaxLength.verify({ completion: '', tokenCount, groundTruth: 100 }).score
    expect([score(0), score(100), score(150), score(300)]).toEqual([1, 1, 0.5, 0])
    for (const groundTruth of ['', '-1', 0, 1.5, 'x', null]) {
      expect(() => upToMaxLength.verify({ completion: '', groundTruth })).toThrow(/must be a number of tokens/)
    }
  })
})

describe('docs/verifiers.md', () => {
  const text = readFileSync(new URL('../../docs/verifiers.md', import.meta.url), 'utf8')

  it('has a section for each verifier, in the order of the list', () => {
    const sections = [...text.matchAll(/^## (\w+)$/gm)].map(([, name]) => name)
    expect(sections).toEqual(VERIFIERS.map(({ name }) => name))
  })

  it('names every instruction', () => {
    expect(INSTRUCTION_IDS.filter((id) => !text.includes(`\`${id}\``))).toEqual([])
  })
})

describe('the verifiers of the pocket run, by name', () => {
  const verdict = (name: string, completion: string, groundTruth: unknown) =>
    findVerifier(name).verify({ completion, groundTruth }).score

  it('problem_answer wants the integer on the last line', () => {
    expect(verdict('problem_answer', '40+2=42\n#### 42', 42)).toBe(1)
    expect(verdict('problem_answer', '40+2=42', 42)).toBe(0)
    expect(() => verdict('problem_answer', '', '42')).toThrow(/`ground_truth` must be an integer/)
  })

  it('instruction_constraints wants the entity and every constraint', () => {
    const truth = { entity: 'Mara', constraints: [{ kind: 'nocomma' }] }
    expect(verdict('instruction_constraints', 'Mara is a baker here.', truth)).toBe(1)
    expect(verdict('instruction_constraints', 'Mara, a baker, lives here.', truth)).toBe(0)
    expect(() => verdict('instruction_constraints', '', { entity: 'Mara' })).toThrow(
      /an entity and a list of constraints/,
    )
  })
})
