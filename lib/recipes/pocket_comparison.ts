// The stages of a pocket run side by side: each model on the held-out set, greedy and sampled, with its loss on right
// answers and its distance from the model of the stage before.
import { meanOf } from '../losses/advantage.js'
import { sampleLogprobs } from '../methods/policy_batch.js'
import type { CausalLm } from '../models/index.js'
import { encodeChatBatch } from '../text/chat_encoding.js'
import { pocketData } from './pocket_data.js'
import { answersTo, measurePocket, sampledAnswers, shownPrompts } from './pocket_judge.js'
import { rightSolution, SOLUTION_LAYOUTS } from './pocket_problems.js'
import type { Measure, StageModel } from './stage_eval.js'

/** Tokens that go through a model at once. */
const TOKENS = 4096

interface LimitOptions {
  /** Most prompts of each kind; default all. */
  limit?: number
  signal?: AbortSignal
}

/** Metrics of one model and its answers to the ten prompts that all stages are asked. */
export const comparePocket =
  (limit: number | undefined): Measure =>
  async (stage, before, signal) => {
    const greedy = await measurePocket(stage, { limit, signal })
    const sampled = await measurePocket(stage, { limit, temperature: 1, signal })
    const metrics = {
      'held-out loss (nats/token)': await solutionLoss(stage, { limit, signal }),
      'problems, greedy': greedy.problems.accuracy,
      'problems, sampled': sampled.problems.accuracy,
      'problems: worked': greedy.problems.workedShare,
      'instructions, greedy': greedy.instructions.accuracy,
      'instructions, sampled': sampled.instructions.accuracy,
      'chat, asked facts': greedy.chat.askedAccuracy,
      'chat, held facts': greedy.chat.heldAccuracy,
      'ended by itself': greedy.endedShare,
      'tokens of a problem answer': greedy.problems.meanTokens,
      'tokens of an instruction answer': greedy.instructions.meanTokens,
      'divergence from the stage before (nats/answer)': before
        ? await divergence(stage, before.model, { limit, signal })
        : null,
    }
    const prompts = shownPrompts()
    const answers = await answersTo(stage, prompts, { signal })
    return { metrics, answers: answers.map(({ prompt, answer }) => ({ prompt, answer })) }
  }

/** Mean over sampled held-out answers of log model - log other, summed over the answer. */
export async function divergence(
  stage: Omit<StageModel, 'name'>,
  other: CausalLm,
  options: LimitOptions = {},
): Promise<number> {
  const { signal } = options
  const groups = await sampledAnswers(stage, options)
  const under = await sampleLogprobs(other, groups, { tokens: TOKENS, temperature: 1, signal })
  const gaps = groups
    .flatMap(({ samples }) => samples)
    .map((sample) => {
      const there = under.get(sample)!
      return sample.logprobs.reduce((sum, logprob, t) => sum + logprob - there[t]!, 0)
    })
  return meanOf(gaps)
}

/** Mean negative log-probability per token of worked right answers to the held-out problems. */
async function solutionLoss(
  { model, tokenizer, template }: StageModel,
  { limit, signal }: LimitOptions,
): Promise<number> {
  const conversations = pocketData()
    .evaluation()
    .problems.slice(0, limit)
    .map((problem, i) => [
      { role: 'user' as const, content: problem.prompt },
      { role: 'assistant' as const, content: rightSolution(problem, SOLUTION_LAYOUTS[i % SOLUTION_LAYOUTS.length]!) },
    ])
  const encoded = await encodeChatBatch(tokenizer, template, conversations, { signal })
  const groups = encoded.map(({ ids, mask }) => {
    const begin = mask.indexOf(1)
    return { prompt: ids.subarray(0, begin), samples: [{ tokens: ids.subarray(begin) }] }
  })
  const found = await sampleLogprobs(model, groups, { tokens: TOKENS, temperature: 1, signal })
  const all = [...found.values()].flatMap((logprobs) => Array.from(logprobs))
  return -meanOf(all)
}
