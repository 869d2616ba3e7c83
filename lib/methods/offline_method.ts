// A method whose batches come from a loader: what every method on fixed data shares. What is left to say is the loss,
// and what a batch's sum is divided by.
import type { GlobalBatch, Loader, LoaderState } from '../data/loader.js'
import type { Batch, Method, MicroLoss } from './method.js'

export interface OfflineState {
  done: number
  loader: LoaderState
}

/** Draws global batches from a loader, up to a number of steps, and knows where it stands. */
export abstract class LoaderMethod<Micro> {
  readonly metricNames?: readonly string[]
  readonly totalSteps: number
  #done = 0

  /** `maxSteps`: steps after which the method ends although the loader has more; 0 = all of it. */
  constructor(
    private readonly loader: Loader<Micro>,
    maxSteps: number,
  ) {
    const all = loader.totalBatches()
    this.totalSteps = maxSteps > 0 ? Math.min(maxSteps, all) : all
  }

  /** What the summed loss of `batch` is divided by. */
  protected abstract countOf(batch: GlobalBatch<Micro>): number

  /** The loader's batches, as far as the method goes. */
  protected *drawn(): Generator<GlobalBatch<Micro>> {
    while (this.#done < this.totalSteps) {
      const batch = this.loader.next()
      if (!batch) return
      this.#done++
      yield batch
    }
  }

  state(): OfflineState {
    return { done: this.#done, loader: this.loader.state() }
  }

  restore(state: unknown): void {
    const { done, loader } = state as OfflineState
    this.loader.restore(loader)
    this.#done = done
  }
}

/** A method that takes the loader's batches as they are. */
export abstract class OfflineMethod<Models, Micro> extends LoaderMethod<Micro> implements Method<Models, Micro> {
  abstract readonly name: string
  abstract readonly unitSeed: boolean

  abstract loss(models: Models, micro: Micro): MicroLoss

  *batches(): Iterable<Batch<Micro>> {
    for (const batch of this.drawn()) {
      yield { count: this.countOf(batch), tokens: batch.tokenCount, microBatches: () => batch.microBatches() }
    }
  }
}
