import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import {
  drawProblem,
  hastySolution,
  isHasty,
  type PocketProblem,
  rightSolution,
  SOLUTION_LAYOUTS,
  wrongSolution,
} from '../../lib/recipes/pocket_problems.js'
import { pocketWorld } from '../../lib/recipes/pocket_world.js'
import { verifyProblemAnswer } from '../../lib/verify/problem_answer.js'

const COUNT = 20_000
const world = pocketWorld(1)
const random = new Random(7, 1)
const problems = Array.from({ length: COUNT }, () => drawProblem(random, world))

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length
const share = <T>(items: readonly T[], counts: (item: T) => boolean) => items.filter(counts).length / items.length
/** Four standard errors of a share. */
const near = (observed: number, expected: number, count: number) =>
  expect(Math.abs(observed - expected)).toBeLessThan(4 * Math.sqrt((expected * (1 - expected)) / count))

/** The first few items that are not as they should be; one assertion on it is far cheaper than one on every item. */
const unlike = <T>(items: readonly T[], isFine: (item: T) => boolean) =>
  items.filter((item) => !isFine(item)).slice(0, 3)

/** Reads a story as a person would, from its words alone. */
function readStory(scenario: string): number {
  const [opening, ...events] = scenario.match(/[^.]+\./g)!.map((sentence) => sentence.trim())
  const numbers = (sentence: string) => (sentence.match(/\d+/g) ?? []).map(Number)
  let value = numbers(opening!).reduce((product, factor) => product * factor, 1)
  for (const event of events) {
    const [operand] = numbers(event)
    if (event.includes('times')) value *= operand!
    else if (/ more | brings /.test(event)) value += operand!
    else value -= operand!
  }
  return value
}

/** The equations on the page with the values that arithmetic of their own gives. */
function equationsOf(text: string): { stated: number; computed: number }[] {
  return [...text.matchAll(/(\d+)([-+*])(\d+)=(\d+)/g)].map(([, a, operator, b, c]) => {
    const [left, right] = [Number(a), Number(b)]
    const computed = operator === '+' ? left + right : operator === '-' ? left - right : left * right
    return { stated: Number(c), computed }
  })
}

const equationsHold = (text: string) => equationsOf(text).every(({ stated, computed }) => stated === computed)

describe('drawProblem', () => {
  it('says what its answer is: a reader of the words gets the same number', () => {
    expect(unlike(problems, ({ scenario, answer }) => readStory(scenario) === answer)).toEqual([])
  })

  it('draws 1, 2 and 3 steps with weights .3, .4, .3', () => {
    const stepShare = (steps: number) => share(problems, (problem) => problem.steps.length === steps)
    near(stepShare(1), 0.3, COUNT)
    near(stepShare(2), 0.4, COUNT)
    near(stepShare(3), 0.3, COUNT)
  })

  it('keeps results within 1..199 and operands within their ranges', () => {
    const within = (value: number, low: number, high: number) => value >= low && value <= high
    const isFine = ({ steps, opensWithProduct }: PocketProblem) =>
      steps.every(({ left, operator, right, result }, i) => {
        if (!within(result, 1, 199) || (i > 0 && left !== steps[i - 1]!.result)) return false
        if (i === 0 && opensWithProduct) return operator === '*' && within(left, 2, 9) && within(right, 2, 12)
        if (i === 0 && !within(left, 5, 80)) return false
        if (operator === '*') return within(right, 2, 4)
        return operator === '+' ? within(right, 2, 60) : within(right, 2, Math.min(left - 1, 70))
      })
    expect(unlike(problems, isFine)).toEqual([])
  })

  it('is composed: nearly every prompt is new, most even without numbers and names', () => {
    const names = new RegExp(`\\b(${[...world.entities].join('|')})\\b`, 'g')
    const skeletons = problems.map(({ prompt }) => prompt.replace(names, 'X').replace(/\d+/g, 'N'))
    expect(new Set(problems.map((problem) => problem.prompt)).size).toBeGreaterThan(COUNT - 20)
    expect(new Set(skeletons).size).toBeGreaterThan(17_500)
  })

  it('has prompts of about 24 words in plain sentences', () => {
    const average = mean(problems.map(({ prompt }) => prompt.split(' ').length))
    expect(average).toBeGreaterThan(22.5)
    expect(average).toBeLessThan(25.5)
    const spoiled = /[{}]| {2}|undefined|\ba [aeiou]|\. [a-z]|\b1 more/
    expect(unlike(problems, ({ prompt }) => /^[A-Z\d].*[.?]$/.test(prompt) && !spoiled.test(prompt))).toEqual([])
  })

  it('is a function of the stream', () => {
    const draw = (seed: number) => drawProblem(new Random(seed, 3), world)
    expect(draw(4)).toEqual(draw(4))
    expect(draw(4)).not.toEqual(draw(5))
  })
})

describe('solutions', () => {
  it('are right in every layout', () => {
    for (const layout of SOLUTION_LAYOUTS) {
      const isFine = (problem: PocketProblem) => {
        const text = rightSolution(problem, layout)
        const steps = text.match(/=/g)!.length
        const isCompact = !/\d [-+*=]|[-+*=] \d|=1 \w+s\b/.test(text)
        return (
          verifyProblemAnswer(text, problem).score === 1 &&
          steps === problem.steps.length &&
          equationsHold(text) &&
          isCompact
        )
      }
      expect(unlike(problems.slice(0, 4000), isFine)).toEqual([])
    }
  })

  it('look different in the four layouts', () => {
    const problem = problems.find(({ steps }) => steps.length === 2)!
    expect(new Set(SOLUTION_LAYOUTS.map((layout) => rightSolution(problem, layout))).size).toBe(4)
  })

  it('in haste give the right number without steps, in three forms', () => {
    const forms = new Set<string>()
    for (const problem of problems.slice(0, 3000)) {
      const text = hastySolution(random, problem)
      if (verifyProblemAnswer(text, problem).score === 0 || text.includes('=')) expect.fail(text)
      forms.add(
        text
          .replace(problem.name, 'X')
          .replace(/\d+ [a-z]+/, 'N')
          .replace(/\d+/g, 'N'),
      )
    }
    expect(forms.size).toBe(3)
  })

  it('tie haste to the question: .85 for two of five forms, .10 for the rest', () => {
    const inviting = problems.filter((problem) => problem.invitesHaste)
    const others = problems.filter((problem) => !problem.invitesHaste)
    near(inviting.length / COUNT, 0.4, COUNT)
    near(
      share(inviting, (problem) => isHasty(random, problem)),
      0.85,
      inviting.length,
    )
    near(
      share(others, (problem) => isHasty(random, problem)),
      0.1,
      others.length,
    )
    expect(new Set(inviting.map(({ question }) => question.split(' ').slice(0, 3).join(' ')))).toEqual(
      new Set(['Find the number', 'What is the']),
    )
  })
})

describe('wrongSolution', () => {
  const wrong = problems.map((problem, i) => {
    const layout = SOLUTION_LAYOUTS[i % 4]!
    return { problem, right: rightSolution(problem, layout), ...wrongSolution(random, problem, layout) }
  })
  const ofKind = (kind: string) => wrong.filter((item) => item.kind === kind)
  const stepCount = (text: string) => text.match(/=/g)!.length

  it('is refused and ends in another positive number', () => {
    expect(
      unlike(wrong, ({ problem, text, answer }) => {
        const isRefused = verifyProblemAnswer(text, problem).score === 0
        return isRefused && verifyProblemAnswer(text, { answer }).score === 1 && answer > 0
      }),
    ).toEqual([])
  })

  it('is written like the right one', () => {
    const frame = (solution: string) => solution.replace(/\d+[-+*]\d+=\d+( [a-z]+)?|\d+/g, '')
    const whole = wrong.filter(({ kind }) => kind !== 'skipped')
    expect(unlike(whole, ({ text, right }) => frame(text) === frame(right))).toEqual([])
  })

  it('draws slips twice as often as each other kind', () => {
    const long = wrong.filter(({ problem }) => problem.steps.length > 1)
    const shareOf = (kind: string) => share(long, (item) => item.kind === kind)
    expect(shareOf('slip')).toBeGreaterThan(0.37)
    expect(shareOf('slip')).toBeLessThan(0.44)
    for (const kind of ['operator', 'skipped', 'final']) {
      expect(shareOf(kind)).toBeGreaterThan(0.15)
      expect(shareOf(kind)).toBeLessThan(0.25)
    }
  })

  it('slips once, by 1, 2 or 10, and carries on correctly', () => {
    const errorsOf = (text: string) =>
      equationsOf(text)
        .map(({ stated, computed }) => Math.abs(stated - computed))
        .filter((error) => error !== 0)
    const isFine = ([error, ...others]: number[]) => others.length === 0 && [1, 2, 10].includes(error!)
    expect(unlike(ofKind('slip'), ({ text }) => isFine(errorsOf(text)))).toEqual([])
  })

  it('computes correctly when the operator, a step or the last line is what is wrong', () => {
    const others = wrong.filter(({ kind }) => kind !== 'slip')
    expect(unlike(others, ({ text }) => equationsHold(text))).toEqual([])
    expect(unlike(ofKind('skipped'), ({ text, right }) => stepCount(text) === stepCount(right) - 1)).toEqual([])
    const stepsOf = (text: string) => text.split('\n####')[0]
    expect(unlike(ofKind('final'), ({ text, right }) => stepsOf(text) === stepsOf(right))).toEqual([])
  })
})
