// PPO as Tulu 3 trains with verifiable rewards (open-instruct 26b732590, ppo_vllm_thread_ray_gtrl.py): the divergence
// from the reference is a penalty on every token's reward, a value model estimates returns, advantages are GAE,
// whitened over the whole rollout (upstream: over a rank's share of it).
import { CaravanError } from '../base/errors.js'
import { deviationOf, gae, klEstimate, whiten } from '../losses/advantage.js'
import { valueLoss } from '../losses/policy.js'
import type { RewardModel } from '../models/index.js'
import { add, concat, type KlKind, policyMetrics, valueMetrics } from '../ops/index.js'
import { Tensor, withoutTape } from '../tensor/index.js'
import type { MicroLoss } from './method.js'
import {
  OnlineMethod,
  type OnlineMicro,
  type OnlineModels,
  type OnlineOptions,
  type Prepared,
} from './online_method.js'
import { type PolicySample, sampleLogprobs, sampleValues, stateValues } from './policy_batch.js'
import type { Answer, RolloutPrompt } from './rollout.js'
import { divergenceFacts } from './rollout_facts.js'
import type { Sampled } from './rollout_source.js'

export interface PpoOptions<P extends RolloutPrompt> extends OnlineOptions<P> {
  gamma: number
  lambda: number
  /** Estimator and weight of the penalty on each token's reward. */
  rewardKl: KlKind
  rewardKlCoefficient: number
  /** The reward of an answer that ended lies on the state after its last token, which then has a value too (upstream);
   *  else on the last token. */
  rewardAfterEnd: boolean
  whitenAdvantages: boolean
  /** Values are let move this far from those of the rollout; 0 = freely. */
  clipValue: number
  /** Weight of the value loss beside that of the policy. */
  valueWeight: number
}

export class Ppo<P extends RolloutPrompt = RolloutPrompt> extends OnlineMethod<P> {
  readonly name = 'ppo'
  override readonly metricNames = [...policyMetrics, ...valueMetrics]

  constructor(protected override readonly options: PpoOptions<P>) {
    super(options)
    for (const [name, value] of Object.entries({ gamma: options.gamma, lambda: options.lambda })) {
      if (value >= 0 && value <= 1) continue
      throw new CaravanError('ERR_CONFIG', `${name} must be in [0, 1]; got ${value}`, { details: { [name]: value } })
    }
  }

  /** Values of all states, one answer after the other. */
  protected override async measure(
    { value }: OnlineModels,
    { groups }: Sampled<P>,
  ): Promise<Record<string, Float32Array>> {
    const { microBatchTokens: tokens, signal } = this.options
    const answers = groups.map(({ prompt, answers }) => ({ prompt: prompt.ids, samples: answers }))
    const found = await sampleValues(value!, answers, { tokens, signal, after: (answer) => this.#hasEndState(answer) })
    const inOrder = groups.flatMap((group) => group.answers).map((answer) => found.get(answer)!)
    const values = new Float32Array(inOrder.reduce((sum, part) => sum + part.length, 0))
    let at = 0
    for (const part of inOrder) {
      values.set(part, at)
      at += part.length
    }
    return { values }
  }

  protected async prepare(
    { reference }: OnlineModels,
    { groups }: Sampled<P>,
    numbers: Record<string, Float32Array>,
  ): Promise<Prepared> {
    const { microBatchTokens: tokens, signal, temperature, whitenAdvantages } = this.options
    const answers = groups.map(({ prompt, answers }) => ({ prompt: prompt.ids, samples: answers }))
    const references = reference ? await sampleLogprobs(reference, answers, { tokens, signal, temperature }) : undefined
    let at = 0
    const estimated = answers.map(({ prompt, samples }) => ({
      prompt,
      samples: samples.map((answer) => {
        const states = answer.tokens.length + Number(this.#hasEndState(answer))
        const values = numbers.values!.subarray(at, at + states)
        at += states
        return this.#estimate(answer, values, references?.get(answer))
      }),
    }))
    const all = estimated.flatMap(({ samples }) => samples)
    const advantages = all.map((sample) => sample.advantages)
    const scaled = whitenAdvantages ? whiten(advantages) : advantages
    for (const [i, sample] of all.entries()) sample.advantages = scaled[i]!
    return { groups: estimated, facts: { ...divergenceFacts(all), ...valueFacts(all) } }
  }

  #hasEndState({ finishReason }: Answer): boolean {
    return this.options.rewardAfterEnd && finishReason === 'stop'
  }

  #estimate(answer: Answer, values: Float32Array, reference: Float32Array | undefined): Estimated {
    const { gamma, lambda, rewardKl, rewardKlCoefficient } = this.options
    const { tokens, logprobs: old, reward } = answer
    const rewards = new Float64Array(values.length)
    for (let t = 0; t < tokens.length && reference; t++) {
      rewards[t] = -rewardKlCoefficient * klEstimate(old[t]!, reference[t]!, rewardKl)
    }
    rewards[rewards.length - 1]! += reward
    const { advantages, returns } = gae({ rewards, values }, { gamma, lambda })
    return { tokens, old, reference, values, returns, advantages: advantages.subarray(0, tokens.length), weight: 1 }
  }

  protected override withValues(model: RewardModel, micro: OnlineMicro, ofPolicy: Required<MicroLoss>): MicroLoss {
    const { activationCheckpointing: checkpoint, clipValue: clip, valueWeight: coefficient } = this.options
    const { samples, valueScale } = micro
    const after = (s: number) => samples[s]!.returns!.length > samples[s]!.tokens.length
    const values = stateValues(model, micro, { after, checkpoint })
    const row = (of: (sample: PolicySample) => ArrayLike<number>) => {
      const all = Float32Array.from(samples.flatMap((sample) => Array.from(of(sample))))
      return Tensor.from(model.device, all, [all.length])
    }
    const weight = row(({ returns, weight: own }) => new Float32Array(returns!.length).fill(own * valueScale))
    const rows = { old: row((sample) => sample.values!), returns: row(({ returns }) => returns!), weight }
    const ofValues = valueLoss(values, rows, { clip, coefficient })
    const metrics = withoutTape(() => concat(ofPolicy.metrics, ofValues.metrics, 0))
    return { sum: add(ofPolicy.sum, ofValues.sum), metrics }
  }
}

interface Estimated extends PolicySample {
  values: Float32Array
  returns: Float64Array
  advantages: Float64Array
}

/** Share of the variance of returns that the values explain, and their means. */
function valueFacts(samples: readonly Estimated[]): Record<string, number> {
  const returns = samples.flatMap((sample) => Array.from(sample.returns))
  const values = samples.flatMap((sample) => Array.from(sample.values))
  const spread = deviationOf(returns) ** 2
  const unexplained = deviationOf(returns.map((target, i) => target - values[i]!)) ** 2
  return {
    'value/explained_variance': spread === 0 ? 0 : 1 - unexplained / spread,
    'value/mean': values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length),
    'value/return_mean': returns.reduce((sum, value) => sum + value, 0) / Math.max(1, returns.length),
  }
}
