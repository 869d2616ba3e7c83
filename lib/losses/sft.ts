// Supervised fine-tuning: minus the log-probability of the targets. How the sum is divided is the whole difference
// between recipes, so it has a name.
import { affine, crossEntropy } from '../ops/index.js'
import type { Tensor } from '../tensor/index.js'

/** token_mean: by the target tokens of the global batch (any split of it gives the same gradient).
 *  sequence_mean_of_sums: by its sequences, each contributing the sum over its tokens: what Tulu 3 trained with
 *  (open-instruct `--reduce_loss sum` with one sequence per micro-batch, averaged over accumulation and ranks).
 *  micro_batch_mean: mean over micro-batches of each one's token mean, which weights short answers more. */
export const lossReductions = ['token_mean', 'sequence_mean_of_sums', 'micro_batch_mean'] as const
export type LossReduction = (typeof lossReductions)[number]

/** Cross-entropy summed over the rows of `hidden` [N,D] that have a target, plus zLoss * lse^2 each, as a tensor [1].
 *  `targets` is the number of such rows, by which it is divided for micro_batch_mean. */
export function sftLoss(
  hidden: Tensor,
  head: Tensor,
  options: { target: Tensor; zLoss: number; reduction: LossReduction; targets: number },
): Tensor {
  const { loss } = crossEntropy(hidden, head, options)
  return options.reduction === 'micro_batch_mean' ? affine(loss, 1 / Math.max(1, options.targets), 0) : loss
}
