// Judges a pocket model: greedy answers to the fixed held-out set, and ten prompts answered before and after a stage.
import { type Generated, generateAll } from '../generate/index.js'
import type { CausalLm } from '../models/index.js'
import { encodePromptBatch } from '../text/chat_encoding.js'
import type { ChatText } from './chat_data.js'
import { type PocketEvaluation, pocketData } from './pocket_data.js'
import { type PocketAnswer, type PocketMetrics, scorePocket } from './pocket_eval.js'
import type { PreparedStage } from './prepared_stage.js'

/** The longest greedy answers end before this; one that does not is wrong. */
const MAX_ANSWER_TOKENS = 112
const SAMPLES = { problems: 4, instructions: 4, chat: 2 }

type Judged = ChatText & { model: CausalLm }

/** The ten prompts that are shown. */
export function shownPrompts(): string[] {
  const evaluation = pocketData().evaluation()
  return [
    ...evaluation.problems.slice(0, SAMPLES.problems),
    ...evaluation.instructions.slice(0, SAMPLES.instructions),
    ...evaluation.asked.slice(0, SAMPLES.chat),
  ].map(({ prompt }) => prompt)
}

/** Answers the sample prompts now, so that they can be shown beside those of the trained model. */
export async function pocketSamples(stage: string, judged: Judged): Promise<NonNullable<PreparedStage['samples']>> {
  const shown = shownPrompts()
  const before = await answersTo(judged, shown)
  return async function* samples(signal) {
    const after = await answersTo(judged, shown, { signal })
    for (const [i, prompt] of shown.entries()) {
      yield { type: 'sample', stage, prompt, before: before[i]!.answer, after: after[i]!.answer }
    }
  }
}

export interface AnswerOptions {
  /** 0 takes the most probable token, 1 samples from the model; default 0. */
  temperature?: number
  /** Most prompts of each kind; default all of the held-out set. */
  limit?: number
  signal?: AbortSignal
}

function heldOut(limit: number | undefined): PocketEvaluation {
  const { problems, instructions, asked, held } = pocketData().evaluation()
  const first = <T>(items: readonly T[]) => items.slice(0, limit)
  return { problems: first(problems), instructions: first(instructions), asked: first(asked), held: first(held) }
}

/** Scores of the model's answers to the whole held-out set. */
export async function measurePocket(judged: Judged, options: AnswerOptions = {}): Promise<PocketMetrics> {
  const evaluation = heldOut(options.limit)
  const { problems, instructions, asked, held } = evaluation
  const prompts = [...problems, ...instructions, ...asked, ...held].map(({ prompt }) => prompt)
  return scorePocket(evaluation, await answersTo(judged, prompts, options))
}

/** A sampled answer to every held-out problem and instruction, with its log-probabilities. */
export async function sampledAnswers(
  judged: Judged,
  { limit, signal }: Omit<AnswerOptions, 'temperature'> = {},
): Promise<{ prompt: Int32Array; samples: Generated[] }[]> {
  const { problems, instructions } = heldOut(limit)
  const prompts = [...problems, ...instructions].map(({ prompt }) => prompt)
  const { ids, results } = await generated(judged, prompts, { temperature: 1, signal })
  return ids.map((prompt, i) => ({ prompt, samples: results[i]! }))
}

async function generated(
  { model, tokenizer, template }: Judged,
  prompts: readonly string[],
  { temperature = 0, signal }: AnswerOptions,
): Promise<{ ids: Int32Array[]; results: Generated[][] }> {
  const conversations = prompts.map((content) => [{ role: 'user', content }])
  const ids = await encodePromptBatch(tokenizer, template, conversations, { signal })
  const stopIds = [tokenizer.eosId!]
  const requests = ids.map((prompt) => ({ prompt, maxTokens: MAX_ANSWER_TOKENS, temperature, stopIds }))
  return { ids, results: await generateAll(model, requests, { signal }) }
}

/** The model's answers to prompts, in order. */
export async function answersTo(
  judged: Judged,
  prompts: readonly string[],
  options: AnswerOptions = {},
): Promise<PocketAnswer[]> {
  const { results } = await generated(judged, prompts, options)
  const tokens = results.map(([result]) => result!.tokens)
  const texts = await judged.tokenizer.decodeBatch(tokens, { skipSpecialTokens: true })
  return results.map(([result], i) => ({
    prompt: prompts[i]!,
    answer: texts[i]!,
    ended: result!.finishReason === 'stop',
    tokens: result!.tokens.length,
  }))
}
