// Supervised fine-tuning, and plain language modelling, which is the same with every token a target.
import type { Loader, LoaderState } from '../data/loader.js'
import type { PackedBatch } from '../data/pack.js'
import { type LossReduction, sftLoss } from '../losses/sft.js'
import type { CausalLm } from '../models/index.js'
import { selfSegments } from '../ops/index.js'
import { Tensor } from '../tensor/index.js'
import type { Batch, Method } from './method.js'

export interface SftOptions {
  reduction: LossReduction
  /** Weight of lse^2 (OLMo 2 uses 1e-5); 0 = off. */
  zLoss: number
  activationCheckpointing: boolean
  /** Steps after which the method ends although the loader has more; 0 = all of it. */
  maxSteps: number
}

export interface SftModels {
  policy: CausalLm
}

export class Sft implements Method<SftModels, PackedBatch> {
  readonly name = 'sft'
  readonly unitSeed: boolean
  readonly totalSteps: number
  #done = 0

  constructor(
    private readonly loader: Loader,
    private readonly options: SftOptions,
  ) {
    this.unitSeed = options.reduction !== 'micro_batch_mean'
    const all = loader.totalBatches()
    this.totalSteps = options.maxSteps > 0 ? Math.min(options.maxSteps, all) : all
  }

  *batches(): Iterable<Batch<PackedBatch>> {
    while (this.#done < this.totalSteps) {
      const batch = this.loader.next()
      if (!batch) return
      this.#done++
      const counts = {
        token_mean: batch.targetCount,
        sequence_mean_of_sums: batch.examples.length,
        micro_batch_mean: batch.microBatchCount,
      }
      yield {
        count: counts[this.options.reduction],
        tokens: batch.tokenCount,
        microBatches: () => batch.microBatches(),
      }
    }
  }

  loss({ policy }: SftModels, micro: PackedBatch): { sum: Tensor } {
    const { device } = policy
    const { data, shape } = selfSegments(micro.cuSeqlens)
    const N = micro.inputIds.length
    const hidden = policy.hidden(
      {
        ids: Tensor.from(device, micro.inputIds, [N]),
        positions: Tensor.from(device, micro.positions, [N]),
        segments: Tensor.from(device, data, shape),
      },
      { checkpoint: this.options.activationCheckpointing },
    )
    const target = Tensor.from(device, micro.labels, [N])
    const { reduction, zLoss } = this.options
    return { sum: sftLoss(hidden, policy.head, { target, zLoss, reduction, targets: micro.targetCount }) }
  }

  state(): { done: number; loader: LoaderState } {
    return { done: this.#done, loader: this.loader.state() }
  }

  restore(state: unknown): void {
    const { done, loader } = state as { done: number; loader: LoaderState }
    this.loader.restore(loader)
    this.#done = done
  }
}
