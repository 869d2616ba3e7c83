// The loss of a reward model: a scalar for each answer, the chosen one above the rejected one (Bradley & Terry 1952).
import { add, affine, concat, greater, mul, neg, slice, softplus, sub, sum } from '../ops/index.js'
import { reshape, type Tensor, withoutTape } from '../tensor/index.js'

/** Names of the sums over pairs in `metrics`, in order. */
export const rewardMetrics = ['rewards/chosen', 'rewards/rejected', 'rewards/accuracy', 'rewards/margin'] as const

/** Sum over pairs of -log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected)^2, a tensor [1], and
 *  the sums of rewardMetrics [4]. `rewards` [P,2] f32; `margins` [P] f32: how much better the chosen answer is said to
 *  be. */
export function rewardLoss(
  rewards: Tensor,
  { margins, centering }: { margins?: Tensor; centering: number },
): { sum: Tensor; metrics: Tensor } {
  const P = rewards.shape[0]!
  const side = (i: number) => reshape(slice(rewards, { axis: 1, start: i, length: 1 }), [P])
  const total = (x: Tensor) => reshape(sum(x, 0), [1])
  const [chosen, rejected] = [side(0), side(1)]
  const difference = sub(chosen, rejected)
  let loss = softplus(neg(margins ? sub(difference, margins) : difference))
  if (centering > 0) {
    const both = add(chosen, rejected)
    loss = add(loss, affine(mul(both, both), centering, 0))
  }
  const metrics = withoutTape(() =>
    [chosen, rejected, greater(chosen, rejected), difference]
      .map(total)
      .reduce((joined, one) => concat(joined, one, 0)),
  )
  return { sum: total(loss), metrics }
}
