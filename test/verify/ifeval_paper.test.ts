// The functions of the Tulu 3 paper: golden rows of the reference functions, in their corrected form.
import { describe, expect, it } from 'vitest'
import { ifevalPaper, PAPER_FUNCTIONS } from '../../lib/verify/ifeval_paper.js'
import { InstructionArguments } from '../../lib/verify/instruction_arguments.js'
import { goldenRows } from './verifier_cases.js'

/** The names of the arguments of each function, in the order of the golden rows. */
const ARGUMENTS: Record<string, string[]> = {
  verify_keywords: ['keyword_list'],
  verify_keyword_frequency: ['word', 'N'],
  validate_forbidden_words: ['forbidden_words'],
  verify_letter_frequency: ['letter', 'N'],
  verify_paragraph_count: ['N'],
  validate_word_constraint: ['N', 'quantifier'],
  verify_sentence_constraint: ['N', 'quantifier'],
  validate_paragraphs: ['N', 'first_word', 'i'],
  verify_postscript: ['postscript_marker'],
  validate_placeholders: ['N'],
  verify_bullet_points: ['N'],
  validate_choice: ['options'],
  validate_highlighted_sections: ['N'],
  validate_sections: ['N', 'section_splitter'],
  validate_repeat_prompt: ['original_prompt'],
  validate_frequency_capital_words: ['N', 'quantifier'],
  validate_end: ['end_phrase'],
}

function result(name: string, [text, ...rest]: unknown[]): boolean {
  const values = Object.fromEntries((ARGUMENTS[name] ?? []).map((argument, i) => [argument, rest[i]]))
  return PAPER_FUNCTIONS[name]!(text as string, new InstructionArguments(name, values))
}

describe('golden rows', () => {
  const rows = goldenRows('tulu3_verifiers').if_functions as [string, unknown[], boolean | string][]

  it('are there for all functions but the one of language', () => {
    const names = new Set(rows.map(([name]) => name))
    expect(Object.keys(PAPER_FUNCTIONS).filter((name) => !names.has(name))).toEqual(['validate_response_language'])
    expect(Object.keys(PAPER_FUNCTIONS)).toHaveLength(25)
  })

  it.each(rows)('%s %j: %j', (name, args, wanted) => {
    // A label that the reference refuses with an exception is a fault of the data here. An unknown quantifier, which is
    // silently never met there, is one as well.
    const isFault = typeof wanted === 'string' || args.includes('less than')
    if (isFault) expect(() => result(name, args)).toThrow(expect.objectContaining({ code: 'ERR_DATA' }))
    else expect(result(name, args)).toBe(wanted)
  })
})

describe('the verifier', () => {
  it('takes labels as JSON, as Python literals and as objects', () => {
    const label = { func_name: 'validate_word_constraint', N: 2, quantifier: 'at most', word: null }
    for (const groundTruth of [label, JSON.stringify(label), JSON.stringify(label).replace('null', 'None')]) {
      expect(ifevalPaper.verify({ completion: '<think>a b c</think>d e', groundTruth }).score).toBe(1)
      expect(ifevalPaper.verify({ completion: 'c d e', groundTruth }).score).toBe(0)
    }
  })

  it('knows languages', () => {
    const groundTruth = { func_name: 'validate_response_language', language: 'de' }
    expect(ifevalPaper.verify({ completion: 'Das ist ein Satz auf Deutsch.', groundTruth }).score).toBe(1)
    expect(ifevalPaper.verify({ completion: '123', groundTruth }).score).toBe(0)
  })

  it.each([
    [{ func_name: 'verify_keyword' }, /is "verify_keywords" meant/],
    [{ func_name: 'toString' }, /a known function/],
    [{ func_name: 'validate_end' }, /validate_end: `end_phrase` must be text; got nothing/],
    ['nonsense', /JSON with func_name/],
    [[], /an object with func_name/],
  ])('names the fault of the label %j', (groundTruth, message) => {
    expect(() => ifevalPaper.verify({ completion: 'a', groundTruth })).toThrow(
      expect.objectContaining({ code: 'ERR_DATA', message: expect.stringMatching(message) }),
    )
  })
})
