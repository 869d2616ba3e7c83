// Preference tuning: DPO and its relatives (lib/losses/preference) on pairs that lie in one row. What the reference
// model thinks of each answer is a number that comes with the data, so no second model is in memory.
import type { GlobalBatch, Loader } from '../data/loader.js'
import type { PairBatch } from '../data/pairs.js'
import { type PreferenceLossOptions, preferenceLoss } from '../losses/preference.js'
import type { CausalLm } from '../models/index.js'
import { linearLogprob, preferenceMetrics, targetsOn } from '../ops/index.js'
import { type Checkpointing, Tensor } from '../tensor/index.js'
import { answerRows } from './answer_rows.js'
import type { MicroLoss } from './method.js'
import { OfflineMethod } from './offline_method.js'

export interface DpoOptions extends PreferenceLossOptions {
  activationCheckpointing: Checkpointing
  /** Steps after which the method ends although the loader has more; 0 = all of it. */
  maxSteps: number
}

export interface DpoModels {
  policy: CausalLm
}

export class Dpo extends OfflineMethod<DpoModels, PairBatch> {
  readonly name = 'dpo'
  readonly unitSeed = true
  override readonly metricNames = preferenceMetrics

  /** `reference`: summed log-probabilities of the reference model by example (2i chosen, 2i+1 rejected); undefined
   *  where the loss needs none. */
  constructor(
    loader: Loader<PairBatch>,
    private readonly reference: Float64Array | undefined,
    private readonly options: DpoOptions,
  ) {
    super(loader, options.maxSteps)
  }

  protected countOf(batch: GlobalBatch<PairBatch>): number {
    return batch.examples.length
  }

  loss({ policy }: DpoModels, micro: PairBatch): MicroLoss {
    const logp = pairLogprobs(policy, micro, this.options.activationCheckpointing)
    const P = micro.pairs.length
    const known = new Float64Array(2 * P)
    for (const [p, pair] of this.reference ? micro.pairs.entries() : []) {
      known.set(this.reference!.subarray(2 * pair, 2 * pair + 2), 2 * p)
    }
    const { device } = policy
    const spans = Tensor.from(device, micro.spans, [P, 2, 3])
    return preferenceLoss(logp, { spans, reference: Tensor.from(device, known, [P, 2]) }, this.options)
  }
}

/** Log-probability of each row's target, [N] f32; 0 where a row has none. */
export function pairLogprobs(policy: CausalLm, micro: PairBatch, checkpoint: Checkpointing = 'none'): Tensor {
  const { device } = policy
  const hidden = policy.hidden(answerRows(device, micro), { checkpoint })
  return linearLogprob(hidden, policy.head, targetsOn(device, micro.labels)).logp
}
