// Rollouts: what the policy answered, and what the answers are worth. A rollout is a fixed set of prompts with G
// answers each; what it holds depends on the weights, the seed and its number alone, so groups that an earlier process
// has finished can be taken from its log.
import { CaravanError } from '../base/errors.js'
import { philox } from '../base/random.js'
import { type Generated, generate } from '../generate/index.js'
import type { CausalLm } from '../models/index.js'

export interface RolloutPrompt {
  ids: Int32Array
}

/** One sampled answer. */
export interface Answer {
  /** With the token that ended it, if one did. */
  tokens: Int32Array
  /** Natural logarithm of each token's probability when it was drawn. */
  logprobs: Float32Array
  finishReason: 'stop' | 'length'
  /** What the whole answer is worth. */
  reward: number
  /** Verdict of the verifier, from 0 to 1. */
  score: number
}

/** The answers to one prompt. */
export interface RolloutGroup<P extends RolloutPrompt = RolloutPrompt> {
  /** Place in its rollout. */
  index: number
  prompt: P
  answers: Answer[]
}

/** Says what answers are worth; all answers to a prompt come together. */
export interface Judge<P extends RolloutPrompt> {
  /** A verifier's fault gives reward 0 with a reason; a fault of the prompt's label is thrown (ERR_DATA). */
  judge(prompt: P, answers: readonly Generated[], signal?: AbortSignal): Promise<JudgedAnswer[]>
}

export interface JudgedAnswer {
  reward: number
  score: number
  reason: string
  text: string
}

/** A group with the texts and reasons that are kept for people. */
export interface LoggedGroup<P extends RolloutPrompt> extends RolloutGroup<P> {
  texts: string[]
  reasons: string[]
}

/** Where finished groups are kept. A group that `read` gives is used in place of a new one. */
export interface RolloutStore<P extends RolloutPrompt> {
  /** Finished groups of a rollout by index, as `append` was given them, and the numbers kept beside them. */
  read(rollout: number, prompts: readonly P[]): Promise<StoredRollout>
  /** Resolves when the group survives a crash. */
  append(rollout: number, group: LoggedGroup<P>): Promise<void>
  /** Numbers that belong to a whole rollout and cannot be computed again, by name. */
  appendNumbers(rollout: number, numbers: Record<string, Float32Array>): Promise<void>
}

export interface StoredRollout {
  groups: Map<number, Answer[]>
  numbers: Record<string, Float32Array> | undefined
}

export interface RolloutOptions<P extends RolloutPrompt> {
  /** Prompts of rollout number `rollout`, from 0: the same ones whenever it is asked. */
  prompts: (rollout: number) => readonly P[] | Promise<readonly P[]>
  judge: Judge<P>
  store?: RolloutStore<P>
  samplesPerPrompt: number
  maxNewTokens: number
  /** Of the distribution that is sampled from and trained, above 0. */
  temperature: number
  stopIds: readonly number[]
  seed: number
  /** Sequences in work at the same time. */
  slots: number
  /** The store must have all of it: it cannot be made again. */
  complete?: boolean
  signal?: AbortSignal
}

export interface Rollout<P extends RolloutPrompt> {
  groups: RolloutGroup<P>[]
  numbers: Record<string, Float32Array> | undefined
  seconds: number
}

/** Stream of the seeds of requests. */
const SEED_STREAM = 0x2011

/** ERR_CHECKPOINT_CORRUPT: a rollout that is partly trained on cannot be made again, for its policy is gone. */
function incompleteRollout(rollout: number, { found, wanted }: { found: number; wanted: number }): CaravanError {
  return new CaravanError(
    'ERR_CHECKPOINT_CORRUPT',
    `rollout ${rollout + 1} is partly trained on, but of its ${wanted} groups the rollout log has ${found}`,
    {
      details: { rollout: rollout + 1, found, wanted },
      hint: 'put the files of the rollout log back, or remove the newest checkpoint to continue from the one before it',
    },
  )
}

/** Generates, judges and keeps the groups of a rollout that the store does not have. */
export async function collectRollout<P extends RolloutPrompt>(
  policy: CausalLm,
  rollout: number,
  options: RolloutOptions<P>,
): Promise<Rollout<P>> {
  const started = performance.now()
  const prompts = await options.prompts(rollout)
  const stored = (await options.store?.read(rollout, prompts)) ?? {
    groups: new Map<number, Answer[]>(),
    numbers: undefined,
  }
  const missing = prompts.map((_, index) => index).filter((index) => !stored.groups.has(index))
  if (options.complete && (missing.length > 0 || !stored.numbers)) {
    throw incompleteRollout(rollout, { found: prompts.length - missing.length, wanted: prompts.length })
  }
  const made = missing.length > 0 ? await generateGroups(policy, { rollout, prompts, missing }, options) : new Map()
  return {
    groups: prompts.map((prompt, index) => ({
      index,
      prompt,
      answers: stored.groups.get(index) ?? made.get(index)!,
    })),
    numbers: stored.numbers,
    seconds: (performance.now() - started) / 1000,
  }
}

interface Wanted<P> {
  rollout: number
  prompts: readonly P[]
  /** Indices into `prompts`. */
  missing: readonly number[]
}

async function generateGroups<P extends RolloutPrompt>(
  policy: CausalLm,
  { rollout, prompts, missing }: Wanted<P>,
  options: RolloutOptions<P>,
): Promise<Map<number, Answer[]>> {
  const { samplesPerPrompt: samples, maxNewTokens: maxTokens, temperature, stopIds, slots, signal } = options
  const requests = missing.map((index) => ({
    prompt: prompts[index]!.ids,
    maxTokens,
    temperature,
    stopIds,
    samples,
    seed: seedOf(options.seed, rollout, index),
  }))
  const finished = new Map<number, Generated[]>()
  const judged: Promise<void>[] = []
  const groups = new Map<number, Answer[]>()
  try {
    for await (const event of generate(policy, requests, { slots, signal })) {
      if (event.type !== 'finished') continue
      const answers = finished.get(event.request) ?? []
      finished.set(event.request, answers)
      answers[event.sample] = event
      if (Object.keys(answers).length < samples) continue
      // Judging goes on beside generation.
      const index = missing[event.request]!
      const judging = judgeGroup(rollout, { index, prompt: prompts[index]!, answers }, options)
      judged.push(judging.then((group) => void groups.set(index, group)))
      judging.catch(() => {}) // awaited below
    }
  } finally {
    await Promise.allSettled(judged)
  }
  await Promise.all(judged)
  return groups
}

async function judgeGroup<P extends RolloutPrompt>(
  rollout: number,
  { index, prompt, answers }: { index: number; prompt: P; answers: readonly Generated[] },
  { judge, store, temperature, signal }: RolloutOptions<P>,
): Promise<Answer[]> {
  const verdicts = await judge.judge(prompt, answers, signal)
  const kept = answers.map((answer, i): Answer => {
    const { reward, score } = verdicts[i]!
    const { tokens, finishReason } = answer
    // At temperature 1 the very number that the trainer computes; drawn ones have been divided first.
    const logprobs = temperature === 1 ? answer.logprobs : answer.drawnLogprobs
    return { tokens, logprobs, finishReason: finishReason === 'stop' ? 'stop' : 'length', reward, score }
  })
  const [texts, reasons] = [verdicts.map(({ text }) => text), verdicts.map(({ reason }) => reason)]
  await store?.append(rollout, { index, prompt, answers: kept, texts, reasons })
  return kept
}

/** Seed of the answers to prompt `index` of a rollout. */
function seedOf(seed: number, rollout: number, index: number): number {
  const [high, low] = philox(seed, SEED_STREAM, rollout * 2 ** 24 + index)
  return (high % 2 ** 21) * 2 ** 32 + low
}
