// Judges a fine-tuned pocket model: greedy answers to the fixed held-out set, the table, the gates, and ten prompts
// answered before and after.
import { generateGreedy } from '../generate/index.js'
import type { CausalLm } from '../models/index.js'
import { encodePromptBatch } from '../text/chat_encoding.js'
import type { ChatTemplate } from '../text/chat_template.js'
import type { Tokenizer } from '../text/tokenizer.js'
import { pocketData } from './pocket_data.js'
import { type PocketAnswer, pocketGates, pocketTable, scorePocket } from './pocket_eval.js'
import type { PreparedStage } from './prepared_stage.js'

/** The longest greedy answers end before this; one that does not is wrong. */
const MAX_ANSWER_TOKENS = 112
const SAMPLES = { problems: 4, instructions: 4, chat: 2 }

/** Answers the sample prompts now, so that they can be shown beside those of the trained model. */
export async function pocketJudge(
  model: CausalLm,
  tokenizer: Tokenizer,
  template: ChatTemplate,
): Promise<Pick<PreparedStage, 'samples' | 'gates'>> {
  const evaluation = pocketData().evaluation()
  const answer = (prompts: readonly string[], signal?: AbortSignal) =>
    answers(model, { tokenizer, template, prompts, signal })
  const shown = [
    ...evaluation.problems.slice(0, SAMPLES.problems),
    ...evaluation.instructions.slice(0, SAMPLES.instructions),
    ...evaluation.asked.slice(0, SAMPLES.chat),
  ].map(({ prompt }) => prompt)
  const before = await answer(shown)
  return {
    async *samples(signal) {
      const after = await answer(shown, signal)
      for (const [i, prompt] of shown.entries()) {
        yield { type: 'sample', stage: 'sft', prompt, before: before[i]!.answer, after: after[i]!.answer }
      }
    },
    async gates({ signal }) {
      const { problems, instructions, asked, held } = evaluation
      const prompts = [...problems, ...instructions, ...asked, ...held].map(({ prompt }) => prompt)
      const metrics = scorePocket(evaluation, await answer(prompts, signal))
      return { gates: pocketGates('sft', metrics), metrics: Object.fromEntries(pocketTable(metrics)) }
    },
  }
}

async function answers(
  model: CausalLm,
  options: { tokenizer: Tokenizer; template: ChatTemplate; prompts: readonly string[]; signal?: AbortSignal },
): Promise<PocketAnswer[]> {
  const { tokenizer, template, prompts, signal } = options
  const conversations = prompts.map((content) => [{ role: 'user', content }])
  const ids = await encodePromptBatch(tokenizer, template, conversations, { signal })
  const stopIds = [tokenizer.eosId!]
  const results = await generateGreedy(model, ids, { maxTokens: MAX_ANSWER_TOKENS, stopIds, signal })
  return await Promise.all(
    results.map(async ({ tokens, finishReason }, i) => ({
      prompt: prompts[i]!,
      answer: await tokenizer.decode(tokens, { skipSpecialTokens: true }),
      ended: finishReason === 'stop',
      tokens: tokens.length,
    })),
  )
}
