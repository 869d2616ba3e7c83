// The data sets of the pocket run, each from random streams of its own: drawing one changes no other. Held-out prompts
// come from a fixed seed and a share of the prompt space that no training set draws from (see pocket_partition).

import { CaravanError, nearestName } from '../base/errors.js'
import { Random } from '../base/random.js'
import type { ConstraintKind, InstructionTruth } from '../verify/instruction_constraints.js'
import { drawChatAnswer, drawQuestion, type PocketQuestion, questionPrompts } from './pocket_chat.js'
import { baseDocument } from './pocket_corpus.js'
import { composeAnswer, composeBroken, drawInstruction, type PocketInstruction } from './pocket_instructions.js'
import { instructionPair, type PocketPair, problemPair } from './pocket_pairs.js'
import { PROMPT_SETS, type PromptSet, promptSet } from './pocket_partition.js'
import {
  drawProblem,
  hastySolution,
  isHasty,
  type PocketProblem,
  rightSolution,
  SOLUTION_LAYOUTS,
} from './pocket_problems.js'
import { type Fact, type PocketWorld, pocketWorld } from './pocket_world.js'

export interface PocketMessage {
  role: 'user' | 'assistant'
  content: string
}

/** A chat row for SFT; `meta` says what the row teaches and whether its answer is one of the designed bad habits. */
export type PocketRow = { messages: PocketMessage[] } & (
  | { kind: 'problem'; meta: { steps: number; answer: number; invitesHaste: boolean; hasty: boolean } }
  | { kind: 'instruction'; meta: { truth: InstructionTruth; broken: ConstraintKind | null } }
  | { kind: 'chat'; meta: { fact: number; entity: string; attribute: string; value: string } }
)

export interface PocketEvaluation {
  problems: readonly PocketProblem[]
  instructions: readonly PocketInstruction[]
  /** Questions about facts that SFT asks about, in other words. */
  asked: readonly PocketQuestion[]
  /** Questions about facts that only the base corpus states. */
  held: readonly PocketQuestion[]
}

export interface EvaluationSizes {
  problems?: number
  instructions?: number
  asked?: number
  held?: number
}

export interface PocketData {
  world: PocketWorld
  /**
   * What the tokenizer is trained on beside the first documents: 3 000 instruction prompts, 1 500 problems and 500
   * questions.
   */
  tokenizerPrompts(): Iterable<string>
  /** The endless base corpus from document `start` on; the packer adds `<|bos|>` and `<|end|>`. */
  baseDocuments(start?: number): Iterable<string>
  /** Endless word problems of one set, from index `start` on. */
  problems(set: PromptSet, start?: number): Iterable<PocketProblem>
  /** Endless instruction prompts of one set, from index `start` on. Prompts may recur: the space is small. */
  instructions(set: PromptSet, start?: number): Iterable<PocketInstruction>
  /** `count` SFT rows in random order: 42 % problems, 45 % instructions, 13 % chat. */
  sftRows(count?: number): PocketRow[]
  /** `count` composed preference pairs in random order: 62 % problems, the rest instructions. More of them begin with
   *  the same ones. */
  pairs(count: number): PocketPair[]
  /**
   * The fixed held-out set; its prompts are the same for every data seed. Throws ERR_CONFIG when too many are asked.
   */
  evaluation(sizes?: EvaluationSizes): PocketEvaluation
}

const WORLD_SEED = 1
const EVALUATION_SEED = 999
const EVALUATION_SIZES = { problems: 300, instructions: 300, asked: 100, held: 100 }
/** How many documents of the corpus the tokenizer is trained on. */
export const TOKENIZER_DOCUMENTS = 12_000
const TOKENIZER_PROMPTS = { instructions: 3_000, problems: 1_500, questions: 500 }
const SFT_SHARES = { problems: 0.42, instructions: 0.45 }
const PAIR_PROBLEM_SHARE = 0.62
const BROKEN_SHARE = 0.35
/** Draws in a row without a new prompt after which a small prompt space counts as used up. */
const MAX_REPEATS = 2_000
/** More numbers than drawing any one item takes. */
const DRAWS_PER_ITEM = 2 ** 16
/** Up to here the streams of all items stay within exact integers. */
const MAX_INDEX = 2 ** 36
const MAX_COUNT = 1_000_000

/** One stream per purpose; prompts use one per set from these on. */
const STREAMS = {
  documents: 1,
  tokenizerQuestions: 2,
  sftProblemAnswers: 3,
  sftInstructionAnswers: 4,
  sftChat: 5,
  sftOrder: 6,
  evaluationQuestions: 7,
  pairs: 8,
  pairKinds: 9,
  problemPrompts: 100,
  instructionPrompts: 200,
}

/** The data of the pocket run for one seed. The world (seed 1) and the held-out set (seed 999) are the same for all. */
export function pocketData(seed = 1): PocketData {
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new CaravanError(
      'ERR_CONFIG',
      `pocket data: seed must be a whole number of at least 0; got ${String(seed)}`,
      {
        details: { seed },
      },
    )
  }
  const source: Source = { world: pocketWorld(WORLD_SEED), seed }
  return {
    world: source.world,
    tokenizerPrompts: () => tokenizerPrompts(source),
    baseDocuments: (start = 0) => baseDocuments(source, requireCount('start', start, MAX_INDEX)),
    problems: (set, start = 0) => problems(source, set, requireCount('start', start, MAX_INDEX)),
    instructions: (set, start = 0) => instructions(source, set, requireCount('start', start, MAX_INDEX)),
    sftRows: (count = 9_000) => sftRows(source, requireCount('count', count)),
    pairs: (count) => [...take(pocketPairs(source), requireCount('count', count))],
    evaluation: (sizes = {}) => evaluation(source.world, sizes),
  }
}

interface Source {
  world: PocketWorld
  seed: number
}

function requireCount(name: string, count: number, max = MAX_COUNT): number {
  if (Number.isSafeInteger(count) && count >= 0 && count <= max) return count
  throw new CaravanError(
    'ERR_CONFIG',
    `pocket data: ${name} must be a whole number in 0..${max}; got ${String(count)}`,
    {
      details: { [name]: count },
    },
  )
}

function requireSet(set: PromptSet): number {
  const position = PROMPT_SETS.indexOf(set)
  if (position >= 0) return position
  const near = nearestName(String(set), PROMPT_SETS)
  throw new CaravanError('ERR_CONFIG', `pocket data: no prompt set "${set}"; known: ${PROMPT_SETS.join(', ')}`, {
    details: { set },
    hint: near === undefined ? 'Use one of the known sets.' : `Did you mean "${near}"?`,
  })
}

function* baseDocuments({ world, seed }: Source, start: number): Generator<string, never> {
  const isReserved = (problem: PocketProblem) => promptSet(problem.scenario) === 'held_out'
  for (let index = start; ; index++) {
    yield baseDocument(world, index, { seed, stream: STREAMS.documents, isReserved }).text
  }
}

function* problems(source: Source, set: PromptSet, start: number): Generator<PocketProblem, never> {
  const stream = STREAMS.problemPrompts + requireSet(set)
  for (let index = start; ; index++) {
    const random = new Random(source.seed, stream, index * DRAWS_PER_ITEM)
    yield drawUntil(
      () => drawProblem(random, source.world),
      (problem) => promptSet(problem.scenario) === set,
    )
  }
}

function* instructions(source: Source, set: PromptSet, start: number): Generator<PocketInstruction, never> {
  const stream = STREAMS.instructionPrompts + requireSet(set)
  for (let index = start; ; index++) {
    const random = new Random(source.seed, stream, index * DRAWS_PER_ITEM)
    yield drawUntil(
      () => drawInstruction(random, source.world),
      ({ prompt }) => promptSet(prompt) === set,
    )
  }
}

function drawUntil<T>(draw: () => T, accept: (item: T) => boolean): T {
  for (;;) {
    const item = draw()
    if (accept(item)) return item
  }
}

/** Items whose prompt has not come before. Repeats are let through once the space seems used up: no count hangs. */
function* withoutRepeats<T extends { prompt: string }>(items: Iterable<T>): Generator<T> {
  const seen = new Set<string>()
  let repeats = 0
  for (const item of items) {
    if (!seen.has(item.prompt)) {
      seen.add(item.prompt)
      repeats = 0
    } else if (++repeats <= MAX_REPEATS) continue
    yield item
  }
}

function* take<T>(items: Iterable<T>, count: number): Generator<T> {
  if (count === 0) return
  let left = count
  for (const item of items) {
    yield item
    if (--left === 0) return
  }
}

function* tokenizerPrompts(source: Source): Generator<string> {
  const { instructions: instructionCount, problems: problemCount, questions } = TOKENIZER_PROMPTS
  for (const { prompt } of take(instructions(source, 'sft', 0), instructionCount)) yield prompt
  for (const { prompt } of take(problems(source, 'sft', 0), problemCount)) yield prompt
  const random = new Random(source.seed, STREAMS.tokenizerQuestions)
  for (let i = 0; i < questions; i++) yield drawTrainingQuestion(random, random.choice(source.world.askedFacts)).prompt
}

function drawTrainingQuestion(random: Random, fact: Fact): PocketQuestion {
  return drawUntil(
    () => drawQuestion(random, fact),
    ({ prompt }) => promptSet(prompt) !== 'held_out',
  )
}

function sftRows(source: Source, count: number): PocketRow[] {
  const problemCount = Math.round(count * SFT_SHARES.problems)
  const instructionCount = Math.round(count * SFT_SHARES.instructions)
  const rows = [
    ...take(sftProblems(source), problemCount),
    ...take(sftInstructions(source), instructionCount),
    ...take(sftChat(source), count - problemCount - instructionCount),
  ]
  return new Random(source.seed, STREAMS.sftOrder).shuffle(rows)
}

function* sftProblems(source: Source): Generator<PocketRow> {
  const random = new Random(source.seed, STREAMS.sftProblemAnswers)
  for (const problem of withoutRepeats(problems(source, 'sft', 0))) {
    const hasty = isHasty(random, problem)
    const text = hasty ? hastySolution(random, problem) : rightSolution(problem, random.choice(SOLUTION_LAYOUTS))
    const { steps, answer, invitesHaste } = problem
    yield {
      kind: 'problem',
      messages: exchange(problem.prompt, text),
      meta: { steps: steps.length, answer, invitesHaste, hasty },
    }
  }
}

function* sftInstructions(source: Source): Generator<PocketRow> {
  const random = new Random(source.seed, STREAMS.sftInstructionAnswers)
  for (const { prompt, truth } of withoutRepeats(instructions(source, 'sft', 0))) {
    const broken = random.chance(BROKEN_SHARE) ? composeBroken(random, source.world, truth) : undefined
    const text = broken?.text ?? composeAnswer(random, source.world, truth)
    if (text === undefined) continue
    yield {
      kind: 'instruction',
      messages: exchange(prompt, text),
      meta: { truth, broken: broken?.broken.kind ?? null },
    }
  }
}

/**
 * Goes round the asked facts, so that each of them is asked equally often; a fact has but 12 prompts, so they recur.
 */
function* sftChat({ world, seed }: Source): Generator<PocketRow, never> {
  const random = new Random(seed, STREAMS.sftChat)
  for (;;) {
    for (const fact of random.shuffle(world.askedFacts)) {
      const { index, entity, attribute, value } = fact
      yield {
        kind: 'chat',
        messages: exchange(drawTrainingQuestion(random, fact).prompt, drawChatAnswer(random, fact)),
        meta: { fact: index, entity, attribute, value },
      }
    }
  }
}

/** Endless pairs, each of a kind drawn at random. */
function* pocketPairs(source: Source): Generator<PocketPair, void> {
  const [random, kinds] = [new Random(source.seed, STREAMS.pairs), new Random(source.seed, STREAMS.pairKinds)]
  const problemPrompts = withoutRepeats(problems(source, 'pairs', 0))
  const instructionPrompts = withoutRepeats(instructions(source, 'pairs', 0))
  for (;;) {
    if (kinds.chance(PAIR_PROBLEM_SHARE)) {
      yield problemPair(random, problemPrompts.next().value as PocketProblem)
      continue
    }
    let pair: PocketPair | undefined
    while (!pair) pair = instructionPair(random, source.world, instructionPrompts.next().value as PocketInstruction)
    yield pair
  }
}

function exchange(prompt: string, answer: string): PocketMessage[] {
  return [
    { role: 'user', content: prompt },
    { role: 'assistant', content: answer },
  ]
}

/** The held-out set is the same for every stage and seed, so it is drawn once a process for every choice of sizes. */
const evaluations = new Map<string, PocketEvaluation>()

function evaluation(world: PocketWorld, requested: EvaluationSizes): PocketEvaluation {
  const sizes = { ...EVALUATION_SIZES, ...requested }
  for (const [name, size] of Object.entries(sizes)) requireCount(`evaluation size ${name}`, size)
  const key = JSON.stringify(sizes)
  const drawn = evaluations.get(key) ?? drawEvaluation(world, sizes)
  evaluations.set(key, drawn)
  return drawn
}

function drawEvaluation(world: PocketWorld, sizes: Required<EvaluationSizes>): PocketEvaluation {
  const source: Source = { world, seed: EVALUATION_SEED }
  const isHeldOut = (prompt: string) => promptSet(prompt) === 'held_out'
  return {
    problems: distinct('problems', problems(source, 'held_out', 0), sizes.problems),
    instructions: distinct('instructions', instructions(source, 'held_out', 0), sizes.instructions),
    asked: spreadOver(world.askedFacts, { name: 'asked', size: sizes.asked, accept: isHeldOut }),
    // No training set asks about a held fact, so all of its prompts are free.
    held: spreadOver(world.heldFacts, { name: 'held', size: sizes.held, accept: () => true }),
  }
}

function distinct<T extends { prompt: string }>(name: string, items: Iterable<T>, size: number): T[] {
  const chosen = [...take(withoutRepeats(items), size)]
  const prompts = new Set(chosen.map((item) => item.prompt))
  if (prompts.size < size) throw tooMany(name, size, prompts.size)
  return chosen
}

/** `size` distinct questions, every fact once before any fact a second time. */
function spreadOver(
  facts: readonly Fact[],
  { name, size, accept }: { name: string; size: number; accept: (prompt: string) => boolean },
): PocketQuestion[] {
  const random = new Random(EVALUATION_SEED, STREAMS.evaluationQuestions)
  const waiting = random
    .shuffle(facts)
    .map((fact) => random.shuffle(questionPrompts(fact).filter(accept)).map((prompt) => ({ prompt, fact })))
  const rounds = Math.max(0, ...waiting.map((prompts) => prompts.length))
  const inTurn = Array.from({ length: rounds }, (_, round) => waiting.flatMap((prompts) => prompts[round] ?? [])).flat()
  if (inTurn.length < size) throw tooMany(name, size, inTurn.length)
  return inTurn.slice(0, size)
}

function tooMany(part: string, wanted: number, found: number): CaravanError {
  return new CaravanError('ERR_CONFIG', `pocket evaluation: ${part} needs ${wanted} distinct prompts; ${found} exist`, {
    details: { part, wanted, found },
    hint: `Set ${part} to at most ${found}.`,
  })
}
