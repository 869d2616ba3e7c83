import { describe, expect, it } from 'vitest'
import { finalAnswer, verifyProblemAnswer } from '../../lib/verify/problem_answer.js'

describe('finalAnswer', () => {
  it.each([
    ['#### 41', '41'],
    ['48-9=39\n#### 39', '39'],
    ['#### -7', '-7'],
    ['#### 0042', '42'],
    ['#### -0', '0'],
    ['#### 000', '0'],
    ['#### 41\n', '41'],
    ['#### 41  \r\n', '41'],
    ['#### 1\n#### 2', '2'],
    ['#### 123456789012345678901234567890', '123456789012345678901234567890'],
  ])('reads %j', (text, expected) => expect(finalAnswer(text)).toBe(expected))

  it.each([
    '',
    '####',
    '#### ',
    '#### -',
    '####41',
    '###  41',
    '##### 41',
    ' #### 41',
    'so #### 41',
    '#### 41.',
    '#### 4 1',
    '#### 4e1',
    '#### +41',
    '#### 4.0',
    '#### 41 loaves',
    '#### 41\nThat is all.',
    '#### \u0664\u0661',
    '#### --4',
  ])('finds no answer line in %j', (text) => expect(finalAnswer(text)).toBeUndefined())
})

describe('verifyProblemAnswer', () => {
  it('accepts the right integer however it is written', () => {
    expect(verifyProblemAnswer('8*6=48\n#### 48', { answer: 48 })).toEqual({ score: 1, reason: 'the answer is 48' })
    expect(verifyProblemAnswer('#### 048', { answer: 48 }).score).toBe(1)
    expect(verifyProblemAnswer('#### -0', { answer: 0 }).score).toBe(1)
    expect(verifyProblemAnswer('#### 0', { answer: -0 }).score).toBe(1)
  })

  it('refuses with the reason', () => {
    expect(verifyProblemAnswer('#### 47', { answer: 48 })).toEqual({ score: 0, reason: 'expected 48, got 47' })
    expect(verifyProblemAnswer('#### -48', { answer: 48 }).score).toBe(0)
    expect(verifyProblemAnswer('It is 48.', { answer: 48 }).reason).toContain('last line')
    expect(verifyProblemAnswer('#### 48', { answer: 48 }, false).reason).toContain('did not end')
  })

  it('does not round a long number to the right one', () => {
    expect(verifyProblemAnswer('#### 9007199254740992', { answer: 9007199254740991 }).score).toBe(0)
    expect(verifyProblemAnswer('#### 9007199254740991', { answer: 9007199254740991 }).score).toBe(1)
  })

  it.each([Number.NaN, 1.5, 2 ** 60])('calls the truth %s a data error', (answer) => {
    expect(() => verifyProblemAnswer('#### 1', { answer })).toThrow(expect.objectContaining({ code: 'ERR_DATA' }))
  })

  it('is linear in hostile text', () => {
    const million = 2 ** 20
    const texts = [
      `#### ${'9'.repeat(million)}`,
      '#### -'.repeat(million / 6),
      ' '.repeat(million),
      '\n'.repeat(million),
    ]
    const begin = performance.now()
    for (const text of texts) {
      const verdict = verifyProblemAnswer(text, { answer: 9 })
      expect(verdict.score).toBe(0)
      expect(verdict.reason.length).toBeLessThan(120)
    }
    expect(performance.now() - begin).toBeLessThan(500)
  })
})
