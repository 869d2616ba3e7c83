// Judges a pocket model: greedy answers to the fixed held-out set, and ten prompts answered before and after a stage.
import { generateAll } from '../generate/index.js'
import type { CausalLm } from '../models/index.js'
import { encodePromptBatch } from '../text/chat_encoding.js'
import type { ChatText } from './chat_data.js'
import { pocketData } from './pocket_data.js'
import { type PocketAnswer, type PocketMetrics, scorePocket } from './pocket_eval.js'
import type { PreparedStage } from './prepared_stage.js'

/** The longest greedy answers end before this; one that does not is wrong. */
const MAX_ANSWER_TOKENS = 112
const SAMPLES = { problems: 4, instructions: 4, chat: 2 }

type Judged = ChatText & { model: CausalLm }

/** Answers the sample prompts now, so that they can be shown beside those of the trained model. */
export async function pocketSamples(stage: string, judged: Judged): Promise<NonNullable<PreparedStage['samples']>> {
  const evaluation = pocketData().evaluation()
  const shown = [
    ...evaluation.problems.slice(0, SAMPLES.problems),
    ...evaluation.instructions.slice(0, SAMPLES.instructions),
    ...evaluation.asked.slice(0, SAMPLES.chat),
  ].map(({ prompt }) => prompt)
  const before = await answers(judged, shown)
  return async function* samples(signal) {
    const after = await answers(judged, shown, signal)
    for (const [i, prompt] of shown.entries()) {
      yield { type: 'sample', stage, prompt, before: before[i]!.answer, after: after[i]!.answer }
    }
  }
}

/** Scores of the model's greedy answers to the whole held-out set. */
export async function measurePocket(judged: Judged, signal?: AbortSignal): Promise<PocketMetrics> {
  const evaluation = pocketData().evaluation()
  const { problems, instructions, asked, held } = evaluation
  const prompts = [...problems, ...instructions, ...asked, ...held].map(({ prompt }) => prompt)
  return scorePocket(evaluation, await answers(judged, prompts, signal))
}

async function answers(
  { model, tokenizer, template }: Judged,
  prompts: readonly string[],
  signal?: AbortSignal,
): Promise<PocketAnswer[]> {
  const conversations = prompts.map((content) => [{ role: 'user', content }])
  const ids = await encodePromptBatch(tokenizer, template, conversations, { signal })
  const stopIds = [tokenizer.eosId!]
  const requests = ids.map((prompt) => ({ prompt, maxTokens: MAX_ANSWER_TOKENS, temperature: 0, stopIds }))
  const results = await generateAll(model, requests, { signal })
  return await Promise.all(
    results.map(async ([result], i) => {
      const { tokens, finishReason } = result!
      return {
        prompt: prompts[i]!,
        answer: await tokenizer.decode(tokens, { skipSpecialTokens: true }),
        ended: finishReason === 'stop',
        tokens: tokens.length,
      }
    }),
  )
}
