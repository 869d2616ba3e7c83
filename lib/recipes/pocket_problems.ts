// Word problems composed from parts (subject, opening, events, question) and their right, hasty and wrong solutions.
// A story's person, trade and home are drawn freely, not taken from the world: a story that followed the world would
// state held facts in training prompts.

import type { Random } from '../base/random.js'
import { capitalise, continued, counted, fill, type Noun, withArticle } from './pocket_english.js'
import { TRADES, type Trade } from './pocket_trades.js'
import type { Person, PocketWorld } from './pocket_world.js'

export type Operator = '+' | '-' | '*'

export interface ProblemStep {
  left: number
  operator: Operator
  right: number
  result: number
}

export interface PocketProblem {
  /** The story without the question. Problems of different sets never share it. */
  scenario: string
  question: string
  /** The user turn: scenario, a space, question. */
  prompt: string
  /** 1, 2 or 3 steps; each `left` is the `result` before it. */
  steps: readonly ProblemStep[]
  answer: number
  /** Whether the story opens with containers of items, so that the first step is their product. */
  opensWithProduct: boolean
  /** Whether the question form is one that annotators answer in haste (see `isHasty`). */
  invitesHaste: boolean
  name: string
  trade: Trade
}

/** How the steps of a solution are laid out on the page. */
export type SolutionLayout = 'lines' | 'first_then' | 'with_items' | 'we_find'

export const SOLUTION_LAYOUTS: readonly SolutionLayout[] = ['lines', 'first_then', 'with_items', 'we_find']

export type WrongKind = 'slip' | 'operator' | 'skipped' | 'final'

export interface WrongSolution {
  text: string
  kind: WrongKind
  /** The number on the last line; never the right answer. */
  answer: number
}

const STEP_WEIGHTS = [0.3, 0.4, 0.3]
const EVENT_WEIGHTS = [0.43, 0.43, 0.14]
const OPERATORS: readonly Operator[] = ['+', '-', '*']
const PRODUCT_OPENING = { oneStep: 0.3, moreSteps: 0.5 }
const ADVERB_SHARE = 0.6
const MAX_RESULT = 199
const HASTE = { inviting: 0.85, other: 0.1 }

// {S} the subject at first mention (lower-case article in mid-sentence), {N} the name, {P} the pronoun where it is
// clear, {O} somebody else, {items} {more} counted items, {k} a factor.
const SUBJECTS = ['{N} the {trade}', '{N}', '{aTrade} named {N}', '{N}, {aTrade} from {town},']

const COUNT_OPENINGS = [
  '{S} has {items}.',
  '{S} starts with {items}.',
  'On Monday {S} counts {items}.',
  'At first {S} has {items}.',
]

const PRODUCT_OPENINGS = [
  '{S} has {containers} of {items}.',
  'There are {items} in every {container}, and {S} has {containers}.',
  '{S} fills {containers} with {items} each.',
  'One {container} holds {items}, and {S} owns {containers}.',
]

const EVENTS: Readonly<Record<Operator, readonly string[]>> = {
  '+': ['{N} {gains} {more}.', '{P} gets {more}.', '{O} brings {N} {items}.', '{more} arrive.'],
  '-': ['{N} {loses} {items}.', '{P} gives {items} to {O}.', '{O} takes {items}.', '{items} get lost.'],
  '*': [
    'The stock grows to {k} times its size.',
    '{P} ends up with {k} times as many.',
    '{N} soon has {k} times as many.',
  ],
}

const ADVERBS = ['Then', 'Later', 'After lunch', 'Next']

const QUESTIONS = [
  { form: 'How many {plural} does {N} have now?', invitesHaste: false },
  { form: 'How many {plural} are there now?', invitesHaste: false },
  { form: 'Work out how many {plural} {N} has now.', invitesHaste: false },
  { form: 'Find the number of {plural} now.', invitesHaste: true },
  { form: 'What is the final count of {plural}?', invitesHaste: true },
]

/** The parts of a story that its sentences share. */
interface Cast {
  world: PocketWorld
  person: Person
  trade: Trade
}

/** Draws one problem: 1, 2 or 3 steps with weights .3, .4, .3; every result lies in 1..199. */
export function drawProblem(random: Random, world: PocketWorld): PocketProblem {
  const stepCount = random.weighted(STEP_WEIGHTS) + 1
  const cast: Cast = { world, person: random.choice(world.people), trade: random.choice(TRADES) }
  const { sentences, steps, opensWithProduct } = drawStory(random, cast, stepCount)
  const { form, invitesHaste } = random.choice(QUESTIONS)
  const name = cast.person.name
  const question = fill(form, { plural: cast.trade.item.many, N: name })
  const scenario = sentences.join(' ')
  const answer = steps[steps.length - 1]!.result
  const prompt = `${scenario} ${question}`
  return { scenario, question, prompt, steps, answer, opensWithProduct, invitesHaste, name, trade: cast.trade }
}

function drawStory(random: Random, cast: Cast, stepCount: number) {
  for (;;) {
    const sentences: string[] = []
    const steps: ProblemStep[] = []
    const opensWithProduct = random.chance(stepCount === 1 ? PRODUCT_OPENING.oneStep : PRODUCT_OPENING.moreSteps)
    let value = opensWithProduct
      ? openWithProduct(random, cast, sentences, steps)
      : openWithCount(random, cast, sentences)
    let pronounIsClear = true
    while (steps.length < stepCount && value <= MAX_RESULT) {
      const step = drawEvent(random, value)
      const form = random.choice(EVENTS[step.operator])
      sentences.push(eventSentence(random, cast, step, { form, pronounIsClear }))
      steps.push(step)
      value = step.result
      pronounIsClear &&= !form.includes('{O}')
    }
    if (value <= MAX_RESULT) return { sentences, steps, opensWithProduct }
  }
}

function openWithCount(random: Random, cast: Cast, sentences: string[]): number {
  const count = random.integer(5, 81)
  sentences.push(
    openingSentence(random, cast, random.choice(COUNT_OPENINGS), { items: counted(count, cast.trade.item) }),
  )
  return count
}

function openWithProduct(random: Random, cast: Cast, sentences: string[], steps: ProblemStep[]): number {
  const left = random.integer(2, 10)
  const right = random.integer(2, 13)
  const { item, container } = cast.trade
  const words = { items: counted(right, item), containers: counted(left, container), container: container.one }
  sentences.push(openingSentence(random, cast, random.choice(PRODUCT_OPENINGS), words))
  steps.push(applied(left, '*', right))
  return left * right
}

function openingSentence(random: Random, cast: Cast, form: string, words: Record<string, string>): string {
  const { person, trade, world } = cast
  const subject = fill(random.choice(SUBJECTS), {
    N: person.name,
    trade: trade.name,
    aTrade: withArticle(trade.name),
    town: random.choice(world.towns),
  })
  return capitalise(fill(form, { ...words, S: subject }))
}

/** An event that leaves at least one item. */
function drawEvent(random: Random, value: number): ProblemStep {
  const operator = OPERATORS[random.weighted(EVENT_WEIGHTS)]!
  if (operator === '*') return applied(value, '*', random.integer(2, 5))
  if (operator === '-' && value > 2) return applied(value, '-', random.integer(2, Math.min(value - 1, 70) + 1))
  return applied(value, '+', random.integer(2, 61))
}

/** One event as a sentence; once somebody else has been named, the name stands where a pronoun would be unclear. */
function eventSentence(
  random: Random,
  cast: Cast,
  step: ProblemStep,
  { form, pronounIsClear }: { form: string; pronounIsClear: boolean },
): string {
  const { person, trade, world } = cast
  const { one, many } = trade.item
  const items = counted(step.right, trade.item)
  const more = counted(step.right, { one: `more ${one}`, many: `more ${many}` })
  const sentence = fill(form, {
    N: person.name,
    P: pronounIsClear ? capitalise(person.pronoun) : person.name,
    O: otherPerson(random, cast),
    gains: trade.gains,
    loses: trade.loses,
    items,
    more,
    k: step.right,
  })
  if (!random.chance(ADVERB_SHARE)) return sentence
  return `${random.choice(ADVERBS)} ${continued(sentence, world.properNames)}`
}

function otherPerson(random: Random, { world, person }: Cast): string {
  for (;;) {
    const other = random.choice(world.people)
    if (other !== person) return other.name
  }
}

function applied(left: number, operator: Operator, right: number): ProblemStep {
  const result = operator === '+' ? left + right : operator === '-' ? left - right : left * right
  return { left, operator, right, result }
}

/** The steps `a*b=c` on the page, without the final line. */
export function layOutSteps(steps: readonly ProblemStep[], layout: SolutionLayout, item: Noun): string {
  const equations = steps.map(({ left, operator, right, result }) => `${left}${operator}${right}=${result}`)
  switch (layout) {
    case 'lines':
      return equations.join('\n')
    case 'first_then':
      return equations.map((equation, i) => `${i === 0 ? 'First' : 'Then'} ${equation}.`).join(' ')
    case 'with_items':
      return equations.map((equation, i) => `${equation} ${steps[i]!.result === 1 ? item.one : item.many}.`).join(' ')
    case 'we_find':
      return `We find ${equations.join(' and then ')}.`
  }
}

/** The worked solution: the steps, then the line `#### N`. */
export function rightSolution(problem: PocketProblem, layout: SolutionLayout): string {
  return solution(problem, problem.steps, layout)
}

function solution(problem: PocketProblem, steps: readonly ProblemStep[], layout: SolutionLayout): string {
  return `${layOutSteps(steps, layout, problem.trade.item)}\n#### ${steps[steps.length - 1]!.result}`
}

/**
 * Whether an annotator answers this problem in haste: .85 for the two inviting question forms, .10 for the others.
 * Haste hangs on something visible in the prompt because greedy decoding of an independent coin would follow the more
 * likely side everywhere.
 */
export function isHasty(random: Random, problem: PocketProblem): boolean {
  return random.chance(problem.invitesHaste ? HASTE.inviting : HASTE.other)
}

/** The right number with no steps. A small model that imitates this can only guess. */
export function hastySolution(random: Random, problem: PocketProblem): string {
  const { answer, name, trade } = problem
  const lead = random.choice([`The answer is ${answer}.\n`, `${name} has ${counted(answer, trade.item)}.\n`, ''])
  return `${lead}#### ${answer}`
}

const WRONG_KINDS: readonly WrongKind[] = ['slip', 'operator', 'skipped', 'final']
const WRONG_WEIGHTS = [2, 1, 1, 1]
const SLIPS = [-10, -2, -1, 1, 2, 10]

/**
 * A plausible wrong solution in the layout of the right one: an arithmetic slip of 1, 2 or 10 carried forward (weight
 * 2/5), a wrong operator carried forward, a skipped step (problems of two or three steps), or right steps with a wrong
 * last line. The number on the last line differs from the answer and is positive.
 */
export function wrongSolution(random: Random, problem: PocketProblem, layout: SolutionLayout): WrongSolution {
  for (;;) {
    const kind = WRONG_KINDS[random.weighted(WRONG_WEIGHTS)]!
    if (kind === 'final') return wrongLastLine(random, problem, layout)
    if (kind === 'skipped' && problem.steps.length === 1) continue
    const steps = wrongSteps(random, problem, kind)
    const answer = steps[steps.length - 1]!.result
    if (answer === problem.answer || steps.some((step) => step.result < 1)) continue
    return { text: solution(problem, steps, layout), kind, answer }
  }
}

function wrongSteps(random: Random, problem: PocketProblem, kind: Exclude<WrongKind, 'final'>): ProblemStep[] {
  const { steps, opensWithProduct } = problem
  const at = random.integer(0, steps.length)
  const step = steps[at]!
  if (kind === 'slip') {
    return carriedForward([...steps.slice(0, at), { ...step, result: step.result + random.choice(SLIPS) }], steps)
  }
  if (kind === 'operator') {
    return carriedForward([...steps.slice(0, at), applied(step.left, swapped(step.operator), step.right)], steps)
  }
  const kept = steps.filter((_, i) => i !== at)
  // Who overlooks an opening product goes on from the items of one container.
  const start = at === 0 && opensWithProduct ? step.right : steps[0]!.left
  return recomputed(start, kept)
}

function swapped(operator: Operator): Operator {
  return operator === '+' ? '-' : '+'
}

/** The wrong beginning, then the remaining steps computed correctly from its last result. */
function carriedForward(beginning: ProblemStep[], steps: readonly ProblemStep[]): ProblemStep[] {
  const value = beginning[beginning.length - 1]!.result
  return [...beginning, ...recomputed(value, steps.slice(beginning.length))]
}

function recomputed(start: number, steps: readonly ProblemStep[]): ProblemStep[] {
  let value = start
  return steps.map(({ operator, right }) => {
    const step = applied(value, operator, right)
    value = step.result
    return step
  })
}

function wrongLastLine(random: Random, problem: PocketProblem, layout: SolutionLayout): WrongSolution {
  const candidates = [...SLIPS.map((slip) => problem.answer + slip), ...problem.steps.map((step) => step.left)]
  const answer = random.choice(candidates.filter((value) => value > 0 && value !== problem.answer))
  const steps = layOutSteps(problem.steps, layout, problem.trade.item)
  return { text: `${steps}\n#### ${answer}`, kind: 'final', answer }
}
