// GSM8K: the published rules against golden rows, the rule by value against hand-made cases and against the verdicts
// that were published with the data set.
import { existsSync, readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { gsm8k, publishedAnswer, publishedGsm8k } from '../../lib/verify/gsm8k.js'
import { goldenRows, realData } from './verifier_cases.js'

type GoldenRow = [text: string, label: string, v1: string, v1Right: boolean, v2: string, v2Right: boolean]

describe('the published rules', () => {
  const rows = goldenRows('tulu3_verifiers').gsm8k as GoldenRow[]

  it.for(rows)('%j with label %j', ([completion, groundTruth, v1, v1Right, v2, v2Right]) => {
    expect(publishedAnswer(completion, 'v1')).toBe(v1)
    expect(publishedAnswer(completion, 'v2')).toBe(v2)
    expect(publishedGsm8k('v1').verify({ completion, groundTruth }).score).toBe(v1Right ? 1 : 0)
    expect(publishedGsm8k('v2').verify({ completion, groundTruth }).score).toBe(v2Right ? 1 : 0)
  })

  it('v1 reads only what follows the last turn marker', () => {
    const completion = '<|user|>\nIs it 5?\n<|assistant|>\n  It is so  '
    expect(publishedAnswer(completion, 'v1')).toBe('It is so')
    expect(publishedAnswer(completion, 'v2')).toBe('5')
  })
})

describe('numbers by value', () => {
  const right: [completion: string, label: string][] = [
    ['So the answer is $18.00', '18'],
    ['So the answer is $18.00.', '18'],
    ['#### 18', '18'],
    ['#### 18\n\nNote: 2 eggs were eaten', '18'],
    ['#### $1,234.50 in all', '1234.5'],
    ['#### 3\nNo, wait.\n#### 4', '4'],
    ['The answer is 4\n####', '4'],
    ['it costs -3', '-3'],
    ['it is \u22123 degrees', '-3'],
    ['a loss of -$3', '-3'],
    ['a loss of $-3', '-3'],
    ['10-3', '3'],
    ['it is +7', '7'],
    ['pages 5-10', '10'],
    ['x = .5', '0.5'],
    ['x = 0.50', '1/2'],
    ['x = 1 1/2', '1.5'],
    ['x = -1 1/2', '-1.5'],
    ['x = 3/4', '0.75'],
    ['on 7/8/9', '9'],
    ['12,345,678', '12345678'],
    ['1,00,000 rupees', '100000'],
    ['1{,}234', '1234'],
    ['the sizes are 1,2,3', '3'],
    ['the sizes are 1,2,345', '2345'],
    ['007', '7'],
    ['-0.0', '0'],
    ['50%', '50'],
    ['The result is \\boxed{-3}', '-3'],
    ['A: 18', 'She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nA: 18'],
    ['So 72 clips', 'Natalia sold 48/2 = <<48/2=24>>24 clips\n#### 72'],
    ['10000000000000000000001', '10,000,000,000,000,000,000,001'],
  ]
  const wrong: [completion: string, label: string][] = [
    ['it costs 3', '-3'],
    ['it costs -3', '3'],
    ['answer 72 (see step 2)', '72'],
    ['#### 2 of 72', '72'],
    ['1.80', '18'],
    ['1/3', '0.3333'],
    ['1/0', '1'],
    ['no digits here', '7'],
    ['', '0'],
    ['10000000000000000000001', '10000000000000000000000'],
  ]

  it.each(right)('%j is %s', (completion, groundTruth) => {
    expect(gsm8k.verify({ completion, groundTruth })).toMatchObject({ score: 1 })
  })
  it.each(wrong)('%j is not %s', (completion, groundTruth) => {
    expect(gsm8k.verify({ completion, groundTruth })).toMatchObject({ score: 0 })
  })

  it('takes labels that are numbers, and names labels without one', () => {
    expect(gsm8k.verify({ completion: 'so 18', groundTruth: 18 }).score).toBe(1)
    for (const groundTruth of ['none', undefined, null, [1]]) {
      expect(() => gsm8k.verify({ completion: '1', groundTruth })).toThrow(
        expect.objectContaining({ code: 'ERR_DATA' }),
      )
    }
  })

  it('says what it read and what was expected', () => {
    expect(gsm8k.verify({ completion: 'so 19', groundTruth: '18' })).toEqual({
      score: 0,
      reason: 'expected 18, got 19',
      extracted: '19',
    })
  })
})

const solutions = realData('gsm8k/model_solutions_200.jsonl')

describe.skipIf(!existsSync(solutions))(`verdicts published with the data set (${solutions})`, () => {
  it('are reproduced one and all', () => {
    let judged = 0
    for (const line of readFileSync(solutions, 'utf8').trim().split('\n')) {
      const row = JSON.parse(line) as { ground_truth: string } & Record<
        string,
        { is_correct: boolean; solution: string }
      >
      for (const value of Object.values(row)) {
        if (typeof value !== 'object') continue
        const verdict = gsm8k.verify({ completion: value.solution, groundTruth: row.ground_truth })
        expect([value.solution, verdict.score]).toEqual([value.solution, value.is_correct ? 1 : 0])
        judged++
      }
    }
    expect(judged).toBe(800)
  })
})
