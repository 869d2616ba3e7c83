// GRPO and RLOO: several answers to a prompt, each judged by how much better it is than the others (Shao et al. 2024;
// DAPO: Yu et al. 2025; Dr. GRPO: Liu et al. 2025; RLOO: Ahmadian et al. 2024). No value model. Advantages come first,
// then groups and answers are left out, so that leaving out changes no other advantage.
import { CaravanError } from '../base/errors.js'
import { type GroupAdvantage, groupAdvantages } from '../losses/advantage.js'
import { OnlineMethod, type OnlineModels, type OnlineOptions, type Prepared } from './online_method.js'
import { type PolicySample, sampleLogprobs } from './policy_batch.js'
import type { RolloutPrompt } from './rollout.js'
import { divergenceFacts } from './rollout_facts.js'
import type { Sampled } from './rollout_source.js'

export interface GrpoOptions<P extends RolloutPrompt> extends OnlineOptions<P> {
  advantage: GroupAdvantage
  /** Leaves out groups whose answers are all worth the same: they have no gradient. */
  filterZeroVariance: boolean
  /** Answers that did not end have no loss. */
  maskTruncated: boolean
}

export class Grpo<P extends RolloutPrompt = RolloutPrompt> extends OnlineMethod<P> {
  readonly name = 'grpo'

  constructor(protected override readonly options: GrpoOptions<P>) {
    super(options)
    if (options.samplesPerPrompt >= 2 || options.advantage === 'none') return
    throw new CaravanError(
      'ERR_CONFIG',
      `samplesPerPrompt must be at least 2, so that answers can be compared; got ${options.samplesPerPrompt}`,
    )
  }

  protected async prepare({ reference }: OnlineModels, { groups }: Sampled<P>): Promise<Prepared> {
    const { microBatchTokens: tokens, signal, temperature, advantage, maskTruncated } = this.options
    const answers = groups.map(({ prompt, answers }) => ({ prompt: prompt.ids, samples: answers }))
    const references = reference ? await sampleLogprobs(reference, answers, { tokens, signal, temperature }) : undefined
    const advantages = groupAdvantages(
      groups.map((group) => group.answers.map(({ reward }) => reward)),
      advantage,
    )
    const estimated = answers.map(({ prompt, samples }, g) => ({
      prompt,
      samples: samples.map((answer, i): PolicySample => {
        const { tokens: ids, logprobs: old, finishReason } = answer
        const weight = maskTruncated && finishReason !== 'stop' ? 0 : 1
        const own = new Float64Array(ids.length).fill(advantages[g]![i]!)
        return { tokens: ids, old, reference: references?.get(answer), advantages: own, weight }
      }),
    }))
    const varied = groups.map((group) => new Set(group.answers.map(({ reward }) => reward)).size > 1)
    const kept = estimated.filter((_, g) => varied[g] || !this.options.filterZeroVariance)
    const all = estimated.flatMap(({ samples }) => samples)
    const share = varied.filter(Boolean).length / Math.max(1, varied.length)
    return { groups: kept, facts: { ...divergenceFacts(all), 'rollout/mixed_groups': share } }
  }
}
