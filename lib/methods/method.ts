// A training method: where batches come from, and what is minimised. Nothing else: it knows no optimizer, no device
// count and no file, and the loop knows no method.
import type { Tensor } from '../tensor/index.js'

/** One optimizer step's worth of work. */
export interface Batch<Micro> {
  /** What the summed loss of all micro-batches is divided by: tokens, sequences or pairs. */
  readonly count: number
  /** Tokens that go through the model, for throughput. */
  readonly tokens: number
  /** What is logged with the step as it is, by name. */
  readonly facts?: Readonly<Record<string, number>>
  microBatches(): Iterable<Micro>
}

export interface MicroLoss {
  /** Sum over this micro-batch, tensor [1]; the loop divides by the batch's count. */
  sum: Tensor
  /** Sums of what is logged beside the loss, in the order of the method's `metricNames`; divided alike. */
  metrics?: Tensor
}

export interface Method<Models, Micro> {
  readonly name: string
  /** Whether gradients flow from a seed of exactly 1, so that fused losses may make them in the forward pass. */
  readonly unitSeed: boolean
  /** Names of the sums in MicroLoss.metrics. */
  readonly metricNames?: readonly string[]
  /** Offline: a loader. Online: rollouts, scored. Starts where `state` (of an earlier `state()`) stopped. */
  batches(models: Models): AsyncIterable<Batch<Micro>> | Iterable<Batch<Micro>>
  /** Pure. */
  loss(models: Models, micro: Micro): MicroLoss
  /** Where the stream of batches stands: JSON, taken between two batches. */
  state(): unknown
  restore(state: unknown): void
  /** Steps in all, for schedules and progress. */
  readonly totalSteps: number
}
