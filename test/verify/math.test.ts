// Mathematics: hand-made pairs of answers, where the answer is looked for, the vote, and texts that must stay cheap.
import { describe, expect, it } from 'vitest'
import { MATH_VOTES, majorityVote, NUMBER_VOTES } from '../../lib/verify/majority_vote.js'
import { math, strictMath } from '../../lib/verify/math.js'
import { answerCandidates, boxedAnswer } from '../../lib/verify/math_answer.js'
import { equalAnswers } from '../../lib/verify/math_equal.js'
import { hendrycksEqual } from '../../lib/verify/math_published.js'
import { EQUAL, UNEQUAL } from './math_pairs.js'

function isEqual(a: string, b: string): boolean {
  return a === b || hendrycksEqual(a, b) || equalAnswers(a, b)
}

describe('answers', () => {
  it.each(EQUAL)('%s equals %s', (a, b) => {
    expect([isEqual(a, b), isEqual(b, a)]).toEqual([true, true])
  })
  it.each(UNEQUAL)('%s is not %s', (a, b) => {
    expect([isEqual(a, b), isEqual(b, a)]).toEqual([false, false])
  })
  it.each(EQUAL.flat().filter((answer) => answer !== ''))('%s equals itself with spaces around', (answer) => {
    expect(isEqual(answer, ` ${answer} `)).toBe(true)
  })
})

describe('the answer of a solution', () => {
  it.each([
    ['so \\boxed{\\frac{1}{2}}.', '\\frac{1}{2}'],
    ['\\boxed{1}, no: \\boxed {2}', '2'],
    ['\\boxed 5$ done', '5'],
    ['\\boxed 5$, no, \\boxed{6}', '6'],
    ['\\fbox{7}', '7'],
    ['\\boxed{\\{1, 2\\}}', '\\{1, 2\\}'],
    ['\\boxed{\\left\\{ x \\right.}', '\\left\\{ x \\right.'],
    ['unclosed \\boxed{12', undefined],
    ['none', undefined],
  ])('the box of %j', (solution, answer) => expect(boxedAnswer(solution)).toBe(answer))

  it.each([
    ['Final Answer: The final answer is $42$. I hope it is correct.', '$42$'],
    ['we get $x=3$ and so $y = 4$.', 'y = 4'],
    ['we get $$y = 4$$', 'y = 4'],
    ['we get \\(y = 4\\), \\[z = 5\\].', 'z = 5'],
    ['Work.\n**Answer:** 17', '17'],
    ['The answer is 17.', '17'],
    ['17', '17'],
  ])('outside a box: %j', (solution, answer) => expect(answerCandidates(solution)[0]).toBe(answer))

  it.each([
    ['so $x = \\boxed{-2}$ and $x = \\boxed{1}$.', '1, -2', 1],
    ['\\boxed{-2} \\text{ and } \\boxed{1}', '1, -2', 1],
    ['\\boxed{3}. Then, after a long computation of something else, \\boxed{1}', '3, 1', 0],
    ['\\boxed{1}, \\boxed{2}, \\boxed{3}', '\\{1,2,3\\}', 1],
    ['\\boxed{2,3}', 'so $\\boxed{3} \\quad \\text{and} \\quad \\boxed{2}$', 1],
    ['$y_1 = \\boxed{2} \\) and \\( y_2 = \\boxed{3}$', '2, 3', 1],
  ])('several boxes: %j for %j: %d', (completion, groundTruth, score) => {
    expect(math.verify({ completion, groundTruth }).score).toBe(score)
  })

  it('is not looked for elsewhere where a box says it', () => {
    expect(answerCandidates('\\boxed{1} so the answer is $2$')).toEqual(['1'])
    expect(answerCandidates('')).toEqual([])
  })
})

describe('the verifiers', () => {
  it('accept and refuse, with what they read', () => {
    expect(math.verify({ completion: 'so \\boxed{0.5}', groundTruth: '\\frac{1}{2}' })).toEqual({
      score: 1,
      reason: 'the answer is \\frac{1}{2}',
      extracted: '0.5',
    })
    expect(math.verify({ completion: 'so \\boxed{2}', groundTruth: '\\frac{1}{2}' })).toEqual({
      score: 0,
      reason: 'expected \\frac{1}{2}, got 2',
      extracted: '2',
    })
    expect(math.verify({ completion: ' ', groundTruth: '2' }).reason).toBe('the completion states no answer')
  })

  it('read the box of a solution as label, numbers, and no other types', () => {
    expect(math.verify({ completion: '\\boxed{3}', groundTruth: 'we get $\\boxed{3}$.' }).score).toBe(1)
    expect(math.verify({ completion: '\\boxed{3}', groundTruth: 3 }).score).toBe(1)
    for (const groundTruth of ['', null, {}]) {
      expect(() => math.verify({ completion: '3', groundTruth })).toThrow(expect.objectContaining({ code: 'ERR_DATA' }))
    }
  })

  it('do not read thoughts', () => {
    expect(math.verify({ completion: '<think>\\boxed{3}</think> \\boxed{4}', groundTruth: '3' }).score).toBe(0)
  })

  it('strictly, take the final line alone', () => {
    const final = 'Final Answer: The final answer is $1,000$. I hope it is correct.'
    expect(strictMath.verify({ completion: final, groundTruth: '1000' }).score).toBe(1)
    expect(strictMath.verify({ completion: 'so \\boxed{1000} it is', groundTruth: '1000' }).score).toBe(0)
  })
})

describe('the majority vote', () => {
  it('clusters equal answers', () => {
    const completions = ['\\boxed{1/2}', '\\boxed{2}', 'so \\boxed{0.5}', '', '\\boxed{\\frac{2}{4}}']
    expect(majorityVote(completions, MATH_VOTES)).toEqual({ answer: '1/2', votes: 3, share: 0.6, voters: [0, 2, 4] })
  })
  it('of equals takes the first, and of none says so', () => {
    expect(majorityVote(['so 2', 'so 3'], NUMBER_VOTES)).toMatchObject({ answer: '2', votes: 1, share: 0.5 })
    expect(majorityVote(['', 'none'], NUMBER_VOTES)).toEqual({ answer: undefined, votes: 0, share: 0, voters: [] })
    expect(majorityVote([], MATH_VOTES).share).toBe(0)
  })
})

/** Answers of at most 2000 characters that take much work to compute, or would without bounds. */
const LABORIOUS: [name: string, answer: string][] = [
  ['factorials', `${'500!+x+'.repeat(200)}1`],
  ['binomials', `${'\\binom{9999}{5000}+'.repeat(80)}x`],
  ['high powers', `${'x^{800}+'.repeat(200)}1`],
  ['towers', `${'2^{2^{12}}+'.repeat(150)}x`],
  ['high roots', `${'\\sqrt[64]{7^{2000}}+'.repeat(80)}x`],
  ['nested fractions', `${'\\frac{1}{x+'.repeat(40)}1${'}'.repeat(40)}`],
  ['many symbols', 'a+b*c^d-f/g+h'.repeat(70)],
  ['a list of radicals', Array.from({ length: 40 }, (_, i) => `\\sqrt{${i}}+x`).join(',')],
  ['plus-minus signs', 'x\\pm1'.repeat(150)],
  ['nested powers', `${'('.repeat(45)}x+1${')^{9}'.repeat(45)}`],
  ['a long quotient', `${'1/x/'.repeat(300)}2`],
  ['signs', `${'-'.repeat(900)}x`],
]

describe('laborious answers', () => {
  it.each(LABORIOUS)('are compared, or given up, in time: %s', (_, answer) => {
    for (const other of ['x^2+1', '\\sqrt{2}+x', '1,2,3,4,5,6,7,8', ` ${answer}`]) {
      let fastest = Number.POSITIVE_INFINITY
      for (let i = 0; i < 3 && fastest > 50; i++) {
        const started = process.cpuUsage()
        equalAnswers(answer, other)
        const { user, system } = process.cpuUsage(started)
        fastest = Math.min(fastest, (user + system) / 1000)
      }
      // 50 on a machine of one's own.
      expect(fastest).toBeLessThan(150)
    }
  })
})
