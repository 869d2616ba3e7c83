// What sampled answers are worth: a verifier's verdict on the text, a penalty in its place where an answer did not end,
// and on request the score of a reward model.
import type { Generated } from '../generate/index.js'
import type { Judge, JudgedAnswer } from '../methods/rollout.js'
import type { Tokenizer } from '../text/tokenizer.js'
import type { Verdict, VerifyInput } from '../verify/verifier.js'
import type { LabelledPrompt } from './prompt_data.js'

export interface RewardOptions {
  /** Reward of an answer that the verifier accepts; a part of it for a score below 1. */
  verifiedReward: number
  /** Reward of an answer that did not end, in place of any other; undefined: judged as it is. */
  unfinishedReward: number | undefined
}

/** Scores verdicts of many answers, in order. */
export interface VerdictSource {
  verify(tasks: readonly { verifier: string; input: VerifyInput }[], signal?: AbortSignal): Promise<Verdict[]>
}

/** Adds to the reward of answers what a model thinks of them; in the order of the answers. */
export type ModelScores = (
  prompt: LabelledPrompt,
  answers: readonly Generated[],
  texts: readonly string[],
) => Promise<number[]>

export class AnswerJudge implements Judge<LabelledPrompt> {
  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly verdicts: VerdictSource,
    private readonly options: RewardOptions,
    private readonly modelScores?: ModelScores,
  ) {}

  async judge(prompt: LabelledPrompt, answers: readonly Generated[], signal?: AbortSignal): Promise<JudgedAnswer[]> {
    const texts = await this.tokenizer.decodeBatch(
      answers.map(({ tokens }) => tokens),
      { skipSpecialTokens: true },
    )
    const tasks = answers.map(({ tokens }, i) => ({
      verifier: prompt.verifier,
      input: { ...prompt.input, completion: texts[i]!, tokenCount: tokens.length },
    }))
    const verdicts = await this.verdicts.verify(tasks, signal)
    const scores = await this.modelScores?.(prompt, answers, texts)
    const { verifiedReward, unfinishedReward } = this.options
    return answers.map(({ finishReason }, i) => {
      const { score, reason } = verdicts[i]!
      if (finishReason !== 'stop' && unfinishedReward !== undefined) {
        return { text: texts[i]!, reward: unfinishedReward, score: 0, reason: 'the answer did not end' }
      }
      return { text: texts[i]!, reward: verifiedReward * score + (scores?.[i] ?? 0), score, reason }
    })
  }
}
