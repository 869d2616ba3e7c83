// Supervised fine-tuning, and plain language modelling, which is the same with every token a target.
import type { GlobalBatch, Loader } from '../data/loader.js'
import type { PackedBatch } from '../data/pack.js'
import { type LossReduction, sftLoss } from '../losses/sft.js'
import type { CausalLm } from '../models/index.js'
import { type Checkpointing, Tensor } from '../tensor/index.js'
import type { MicroLoss } from './method.js'
import { OfflineMethod } from './offline_method.js'
import { packedRows } from './packed_logprobs.js'

export interface SftOptions {
  reduction: LossReduction
  /** Weight of lse^2 (OLMo 2 uses 1e-5); 0 = off. */
  zLoss: number
  activationCheckpointing: Checkpointing
  /** Steps after which the method ends although the loader has more; 0 = all of it. */
  maxSteps: number
}

export interface SftModels {
  policy: CausalLm
}

export class Sft extends OfflineMethod<SftModels, PackedBatch> {
  readonly name = 'sft'
  readonly unitSeed: boolean

  constructor(
    loader: Loader,
    private readonly options: SftOptions,
  ) {
    super(loader, options.maxSteps)
    this.unitSeed = options.reduction !== 'micro_batch_mean'
  }

  protected countOf(batch: GlobalBatch): number {
    const counts = {
      token_mean: batch.targetCount,
      sequence_mean_of_sums: batch.examples.length,
      micro_batch_mean: batch.microBatchCount,
    }
    return counts[this.options.reduction]
  }

  loss({ policy }: SftModels, micro: PackedBatch): MicroLoss {
    const { device } = policy
    const hidden = policy.hidden(packedRows(device, micro), { checkpoint: this.options.activationCheckpointing })
    const target = Tensor.from(device, micro.labels, [micro.labels.length])
    const { reduction, zLoss } = this.options
    return { sum: sftLoss(hidden, policy.head, { target, zLoss, reduction, targets: micro.targetCount }) }
  }
}
