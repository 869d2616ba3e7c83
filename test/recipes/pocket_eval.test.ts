import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { pocketData } from '../../lib/recipes/pocket_data.js'
import {
  type GateMetrics,
  type PocketAnswer,
  type PocketMetrics,
  pocketGates,
  pocketTable,
  scorePocket,
} from '../../lib/recipes/pocket_eval.js'
import { composeAnswer } from '../../lib/recipes/pocket_instructions.js'
import { rightSolution } from '../../lib/recipes/pocket_problems.js'

const data = pocketData(1)
const evaluation = data.evaluation()
const random = new Random(1, 50)

const reply = (prompt: string, answer: string, ended = true, tokens = 10): PocketAnswer => ({
  prompt,
  answer,
  ended,
  tokens,
})
const problemReplies = evaluation.problems.map((problem) =>
  reply(problem.prompt, rightSolution(problem, 'lines'), true, 20),
)
const instructionReplies = evaluation.instructions.map(({ prompt, truth }) =>
  reply(prompt, composeAnswer(random, data.world, truth) ?? ''),
)
const chatReplies = [...evaluation.asked, ...evaluation.held].map(({ prompt, fact }) =>
  reply(prompt, fact.statements[0]!),
)
const perfect = [...problemReplies, ...instructionReplies, ...chatReplies]

describe('scorePocket', () => {
  it('gives right answers full marks, in any order', () => {
    const metrics = scorePocket(evaluation, random.shuffle(perfect))
    expect(metrics.problems).toEqual({
      count: 300,
      accuracy: 1,
      accuracyBySteps: { 1: 1, 2: 1, 3: 1 },
      answerLineShare: 1,
      workedShare: 1,
      workedAccuracy: 1,
      directAccuracy: null,
      endedShare: 1,
      meanTokens: 20,
    })
    expect(metrics.instructions.accuracy).toBeGreaterThan(0.99)
    expect(metrics.instructions.accuracyByKind.caps).toBe(1)
    expect(metrics.chat).toEqual({ count: 200, askedAccuracy: 1, heldAccuracy: 1, endedShare: 1 })
    expect(metrics.endedShare).toBe(1)
    expect(metrics.instructions.meanTokens).toBe(10)
  })

  it('counts a hand-worked mixture', () => {
    const byStep = (steps: number) => evaluation.problems.filter((problem) => problem.steps.length === steps)
    const [first] = byStep(1)
    const [second] = byStep(2)
    const [third, fourth] = byStep(3)
    const set = { ...evaluation, problems: [first!, second!, third!, fourth!], instructions: [], asked: [], held: [] }
    const metrics = scorePocket(set, [
      reply(first!.prompt, `#### ${first!.answer}`, true, 4), //             direct and right
      reply(second!.prompt, `1+1=2\n#### ${second!.answer + 1}`, true, 8), // worked and wrong
      reply(third!.prompt, `1+1=2\n#### ${third!.answer}`, true, 12), //      worked and right
      reply(fourth!.prompt, `1+1=2\n#### ${fourth!.answer}`, false, 96), //   right, but never ended
    ])
    expect(metrics.problems).toEqual({
      count: 4,
      accuracy: 2 / 4,
      accuracyBySteps: { 1: 1, 2: 0, 3: 1 / 2 },
      answerLineShare: 1,
      workedShare: 3 / 4,
      workedAccuracy: 1 / 3,
      directAccuracy: 1,
      endedShare: 3 / 4,
      meanTokens: 30,
    })
    expect(metrics.endedShare).toBe(3 / 4)
    expect(metrics.instructions).toMatchObject({ count: 0, accuracy: null, endedShare: null, meanTokens: null })
    expect(metrics.chat).toEqual({ count: 0, askedAccuracy: null, heldAccuracy: null, endedShare: null })
  })

  it('scores constraints one by one', () => {
    const truth = { entity: 'Windle', constraints: [{ kind: 'caps' as const }, { kind: 'nocomma' as const }] }
    const set = {
      problems: [],
      asked: [],
      held: [],
      instructions: ['a', 'b', 'c'].map((prompt) => ({ prompt, truth })),
    }
    const metrics = scorePocket(set, [
      reply('a', 'WINDLE SELLS FINE ROPE.'),
      reply('b', 'Windle sells fine rope.'),
      reply('c', 'WINDLE SELLS FINE ROPE.', false),
    ])
    expect(metrics.instructions.accuracy).toBe(1 / 3)
    expect(metrics.instructions.accuracyByKind).toMatchObject({ caps: 1 / 3, nocomma: 2 / 3, lower: null })
  })

  it('wants the right value as a word and an end from a chat answer', () => {
    const fact = data.world.facts.find((candidate) => candidate.attribute === 'animal')!
    const asked = ['a', 'b', 'c', 'd'].map((prompt) => ({ prompt, fact }))
    const metrics = scorePocket({ problems: [], instructions: [], asked, held: [] }, [
      reply('a', `It is the ${fact.value.toUpperCase()}!`),
      reply('b', `It is the un${fact.value}.`),
      reply('c', fact.statements[1]!, false),
      reply('d', ''),
    ])
    expect(metrics.chat.askedAccuracy).toBe(1 / 4)
  })

  it('counts every sample of a prompt', () => {
    const problem = evaluation.problems[0]!
    const set = { problems: [problem], instructions: [], asked: [], held: [] }
    const replies = [problem.answer, problem.answer, problem.answer + 1, problem.answer].map((answer) =>
      reply(problem.prompt, `#### ${answer}`),
    )
    expect(scorePocket(set, replies).problems).toMatchObject({ count: 4, accuracy: 3 / 4 })
  })

  it('lets a whole part be left out, but not a part of one, nor a prompt from elsewhere', () => {
    expect(scorePocket(evaluation, problemReplies).chat.askedAccuracy).toBeNull()
    const code = expect.objectContaining({ code: 'ERR_DATA' })
    expect(() => scorePocket(evaluation, perfect.slice(1))).toThrow(code)
    expect(() => scorePocket(evaluation, [...perfect, reply('Who are you?', 'A model.')])).toThrow(code)
  })
})

describe('pocketGates', () => {
  const good: PocketMetrics = {
    ...scorePocket(evaluation, perfect),
    endedShare: 1,
  }
  good.problems = { ...good.problems, accuracy: 0.423, workedShare: 0.64, answerLineShare: 1 }
  good.instructions = { ...good.instructions, accuracy: 0.527 }
  const failed = (metrics: PocketMetrics) =>
    pocketGates('sft', metrics).flatMap(({ name, passed }) => (passed ? [] : [name]))

  it('passes the measured run', () => {
    expect(pocketGates('base', { lastWindowLoss: 0.893 })).toEqual([
      { name: 'last-window loss (nats/token)', value: 0.893, bound: '< 1', passed: true },
    ])
    expect(failed(good)).toEqual([])
    expect(pocketGates('sft', good)).toHaveLength(6)
  })

  it('stops what lies outside', () => {
    for (const loss of [1, 1.2, Number.NaN])
      expect(pocketGates('base', { lastWindowLoss: loss })[0]!.passed).toBe(false)
    expect(failed({ ...good, problems: { ...good.problems, accuracy: 0.34 } })).toEqual(['problem accuracy'])
    expect(failed({ ...good, problems: { ...good.problems, accuracy: 0.61 } })).toEqual(['problem accuracy'])
    expect(failed({ ...good, problems: { ...good.problems, workedShare: 0.71 } })).toEqual(['worked share'])
    expect(failed({ ...good, problems: { ...good.problems, answerLineShare: 0.98 } })).toEqual(['#### line share'])
    expect(failed({ ...good, instructions: { ...good.instructions, accuracy: 0.45 } })).toEqual([
      'instruction accuracy',
    ])
    expect(failed({ ...good, chat: { ...good.chat, askedAccuracy: null } })).toEqual(['chat accuracy, asked facts'])
    expect(failed({ ...good, endedShare: 0.99 })).toEqual(['ended share'])
  })

  it('stops a preference stage that learns nothing, or unlearns', () => {
    const shares = (all: number, instruction = all) => ({ all, problem: all, instruction })
    const tuned: GateMetrics['dpo'] = {
      before: good,
      after: good,
      likelihoodBefore: shares(0.85),
      likelihoodAfter: shares(0.9),
      reward: shares(0.85),
      chosenChange: -0.02,
      rejectedChange: -0.2,
    }
    const stopped = (changed: Partial<GateMetrics['dpo']>) =>
      pocketGates('dpo', { ...tuned, ...changed }).flatMap(({ name, passed }) => (passed ? [] : [name]))
    expect(stopped({})).toEqual([])
    expect(stopped({ likelihoodBefore: shares(0.9) })).toEqual(['pair accuracy by likelihood, gained'])
    expect(stopped({ likelihoodBefore: shares(0.8), likelihoodAfter: shares(0.86) })).toHaveLength(1)
    expect(stopped({ reward: shares(0.9, 0.8) })).toEqual(['reward accuracy, instruction pairs'])
    const worse = { ...good, problems: { ...good.problems, accuracy: 0.42 } }
    expect(stopped({ after: worse })).toEqual(['problem accuracy, not below the start'])
    expect(stopped({ after: { ...good, chat: { ...good.chat, askedAccuracy: 0.8 } } })).toHaveLength(1)
    expect(stopped({ chosenChange: -0.25 })).toHaveLength(1)
  })

  it('stops a reward model that orders too few pairs', () => {
    const stopped = (all: number, problem: number, instruction: number) =>
      pocketGates('reward_model', { all, problem, instruction }).filter(({ passed }) => !passed).length
    expect([
      stopped(0.69, 0.6, 0.8),
      stopped(0.68, 0.6, 0.8),
      stopped(0.69, 0.5, 0.8),
      stopped(0.69, 0.6, 0.7),
    ]).toEqual([0, 1, 1, 1])
  })

  it('stops a stage with rewards that gains too little, strays, or changes how long answers are', () => {
    type Changes = { problems?: number; instructions?: number; tokens?: number; chat?: number; ended?: number }
    const of = ({
      problems = 0.5,
      instructions = 0.5,
      tokens = 20,
      chat = 0.95,
      ended = 1,
    }: Changes): PocketMetrics => ({
      problems: { ...good.problems, accuracy: problems, meanTokens: tokens },
      instructions: { ...good.instructions, accuracy: instructions, meanTokens: tokens },
      chat: { ...good.chat, askedAccuracy: chat },
      endedShare: ended,
    })
    const learned: GateMetrics['rlvr'] = {
      before: of({ problems: 0.55, instructions: 0.55 }),
      // .67 - .55 and .4 - .35 are a little less than they look.
      after: of({ problems: 0.67, instructions: 0.6 }),
      sampledSft: of({ problems: 0.4 }),
      sampledBefore: of({ problems: 0.45, instructions: 0.35 }),
      sampledAfter: of({ problems: 0.6, instructions: 0.4 }),
      kl: 1.5,
    }
    const stopped = (changed: Partial<GateMetrics['rlvr']>) =>
      pocketGates('rlvr', { ...learned, ...changed }).flatMap(({ name, passed }) => (passed ? [] : [name]))
    expect(stopped({})).toEqual([])
    expect(stopped({ after: of({ problems: 0.66, instructions: 0.6 }) })).toEqual(['problem accuracy, gained'])
    expect(stopped({ after: of({ problems: 0.67, instructions: 0.59 }) })).toEqual(['instruction accuracy, gained'])
    expect(stopped({ sampledSft: of({ problems: 0.41 }) })).toEqual(['problem accuracy sampled, gained on SFT'])
    expect(stopped({ sampledSft: undefined })).toEqual([])
    expect(stopped({ sampledBefore: of({ instructions: 0.36 }) })).toEqual(['instruction accuracy sampled, gained'])
    for (const kl of [0.4, 3.1, Number.NaN]) expect(stopped({ kl })).toHaveLength(1)
    const after = { problems: 0.67, instructions: 0.6 }
    expect(stopped({ after: of({ ...after, chat: 0.8 }) })).toEqual(['chat accuracy, asked facts'])
    expect(stopped({ after: of({ ...after, ended: 0.99 }) })).toEqual(['ended share'])
    for (const tokens of [14, 26])
      expect(stopped({ after: of({ ...after, tokens }) })).toEqual(['length of answers, ratio'])
  })

  it('refuses a stage that has no gates', () => {
    expect(() => pocketGates('pretrain' as 'base', { lastWindowLoss: 1 })).toThrow(
      expect.objectContaining({ code: 'ERR_CONFIG' }),
    )
  })
})

describe('pocketTable', () => {
  it('names every number once', () => {
    const rows = pocketTable(scorePocket(evaluation, perfect))
    expect(new Set(rows.map(([name]) => name)).size).toBe(rows.length)
    expect(rows).toContainEqual(['problems, 3 steps', 1])
    expect(rows).toContainEqual(['problems: mean tokens', 20])
    expect(rows).toHaveLength(26)
  })
})
