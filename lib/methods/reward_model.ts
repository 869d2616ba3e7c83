// Training a reward model on preference pairs: both answers of a pair go through the model in one row, and their scores
// at the last token are compared.
import type { GlobalBatch, Loader } from '../data/loader.js'
import type { PairBatch } from '../data/pairs.js'
import { rewardLoss, rewardMetrics } from '../losses/reward.js'
import type { RewardModel } from '../models/index.js'
import { type Checkpointing, reshape, Tensor } from '../tensor/index.js'
import { answerRows } from './answer_rows.js'
import type { MicroLoss } from './method.js'
import { OfflineMethod } from './offline_method.js'

export interface RewardOptions {
  /** Weight of (chosen + rejected)^2, which keeps the scores around 0 (Eisenstein et al. 2023); 0 = off. */
  centering: number
  activationCheckpointing: Checkpointing
  /** Steps after which the method ends although the loader has more; 0 = all of it. */
  maxSteps: number
}

export interface RewardModels {
  policy: RewardModel
}

export class RewardTraining extends OfflineMethod<RewardModels, PairBatch> {
  readonly name = 'reward_model'
  readonly unitSeed = true
  override readonly metricNames = rewardMetrics

  /** `margins`: by pair, how much better the chosen answer is said to be; undefined: not known. */
  constructor(
    loader: Loader<PairBatch>,
    private readonly margins: Float32Array | undefined,
    private readonly options: RewardOptions,
  ) {
    super(loader, options.maxSteps)
  }

  protected countOf(batch: GlobalBatch<PairBatch>): number {
    return batch.examples.length
  }

  loss({ policy }: RewardModels, micro: PairBatch): MicroLoss {
    const { centering, activationCheckpointing } = this.options
    const rewards = pairRewards(policy, micro, activationCheckpointing)
    const { margins } = this
    const wanted = margins && Float32Array.from(micro.pairs, (pair) => margins[pair]!)
    return rewardLoss(rewards, {
      centering,
      margins: wanted && Tensor.from(policy.device, wanted, [wanted.length]),
    })
  }
}

/** Scores [P,2] f32 of the chosen and the rejected answer of each pair. */
export function pairRewards(model: RewardModel, micro: PairBatch, checkpoint: Checkpointing = 'none'): Tensor {
  const P = micro.pairs.length
  const last = Int32Array.from({ length: 2 * P }, (_, side) => micro.spans[3 * side + 1]! - 1)
  const { device } = model
  const packed = answerRows(device, micro, (row) => last.includes(row))
  const scores = model.scores(packed, Tensor.from(device, last, [2 * P]), { checkpoint })
  return reshape(scores, [P, 2])
}
