// Deterministic batches of tokenised examples. The order of an epoch depends on (seed, epoch) alone, so the cursor is
// two integers, and a restored loader gives the very batches that the first one would have given.
import { CaravanError } from '../base/errors.js'
import { Random } from '../base/random.js'
import { type PackedBatch, type PackPlan, type PackStrategy, planPacking } from './pack.js'

/** What a loader draws from: tokenised examples, or pairs of them. */
export interface BatchSource<Micro> {
  readonly count: number
  /** Whether an example stays whole where it exceeds a micro-batch, which then holds nothing else; else it is cut. */
  readonly whole: boolean
  lengthOf(example: number): number
  /** Predicted tokens among the first `limit` of an example; one without any is left out. */
  targetsOf(example: number, limit: number): number
  /** Builds row `row` of the plan as a micro-batch. */
  pack(plan: PackPlan, row: number): Micro
  /** Predicted tokens in row `row` of the plan. */
  targetsIn(plan: PackPlan, row: number): number
}

export interface LoaderOptions {
  /** Size of a global batch: exactly so many examples, or as many examples as fit in so many tokens (at least one). */
  batch: { sequences: number } | { tokens: number }
  /** Upper limit of a micro-batch in tokens. With packing `none`, a micro-batch is one example and this is not used. */
  microBatchTokens: number
  /** How a global batch is divided into micro-batches. Default `bfd`. */
  packing?: PackStrategy
  seed: number
  /** Passes over the data; may be Infinity. Default 1. */
  epochs?: number
  /** A new order in each epoch. Default true. */
  shuffle?: boolean
  /** The incomplete batch at an epoch's end. Default `keep`. */
  last?: 'keep' | 'drop'
}

/** Where a loader stands; plain JSON. */
export interface LoaderState {
  version: 1
  /** Epoch of the next batch, from 0. */
  epoch: number
  /** How many examples of that epoch's order have been given out. */
  position: number
  /** Batches given out since the start. */
  batch: number
  /** What the order depends on; a state is refused where it differs. */
  order: LoaderOrder
}

interface LoaderOrder {
  seed: number
  shuffle: boolean
  batch: { sequences: number } | { tokens: number }
  last: 'keep' | 'drop'
  examples: number
  tokens: number
}

/** Keeps the loader's random streams apart from everyone else's under the same seed. */
const LOADER_STREAM = 0x10ad * 2 ** 32

/** One optimizer step's examples, divided into packed micro-batches. */
export class GlobalBatch<Micro = PackedBatch> {
  /** Predicted tokens in all micro-batches: the denominator of a token-mean loss. */
  readonly targetCount: number
  readonly tokenCount: number
  readonly #plan: PackPlan

  constructor(
    private readonly data: BatchSource<Micro>,
    /** Indices into the loader's examples, in the order drawn. */
    readonly examples: Uint32Array,
    /** Epoch and number (from 0, over all epochs) of this batch. */
    readonly place: { epoch: number; batch: number },
    packing: { strategy: PackStrategy; tokens: number },
  ) {
    const lengths = Int32Array.from(examples, (example) => data.lengthOf(example))
    // What stays whole is planned as if it filled its row.
    const most = data.whole && packing.strategy !== 'none' ? packing.tokens : Number.POSITIVE_INFINITY
    const plan = planPacking(
      lengths.map((length) => Math.min(length, most)),
      packing.tokens,
      packing.strategy,
    )
    for (let piece = 0; piece < plan.example.length; piece++) plan.example[piece] = examples[plan.example[piece]!]!
    this.#plan = plan
    const tokens = data.whole ? lengths : plan.length
    this.tokenCount = tokens.reduce((sum, length) => sum + length, 0)
    let targetCount = 0
    for (let row = 0; row < plan.rowCount; row++) targetCount += data.targetsIn(plan, row)
    this.targetCount = targetCount
  }

  get microBatchCount(): number {
    return this.#plan.rowCount
  }

  /** Builds micro-batch `index`; ranks build only their own. */
  microBatch(index: number): Micro {
    return this.data.pack(this.#plan, index)
  }

  *microBatches(): Generator<Micro> {
    for (let i = 0; i < this.microBatchCount; i++) yield this.microBatch(i)
  }
}

/**
 * Iterates global batches over `data`. Examples without a single predicted token are left out (`withoutTarget` says how
 * many): they would cost time and change nothing. ERR_DATA when none is left, ERR_CONFIG for impossible options.
 */
export class Loader<Micro = PackedBatch> implements Iterable<GlobalBatch<Micro>> {
  readonly withoutTarget: number
  /** Examples and tokens that packing `bfd` cuts off because they exceed `microBatchTokens`. */
  readonly cut: { examples: number; tokens: number }
  readonly #usable: Uint32Array
  readonly #options: Required<LoaderOptions>
  readonly #order: LoaderOrder
  #epoch = 0
  #position = 0
  #batch = 0
  #permutation: { epoch: number; order: Uint32Array } | undefined

  constructor(
    private readonly data: BatchSource<Micro>,
    options: LoaderOptions,
  ) {
    this.#options = { packing: 'bfd', epochs: 1, shuffle: true, last: 'keep', ...options }
    checkOptions(this.#options)
    const { packing, microBatchTokens, seed, shuffle, batch, last } = this.#options
    const limit = packing === 'bfd' && !data.whole ? microBatchTokens : Number.POSITIVE_INFINITY
    this.#usable = Uint32Array.from(indices(data.count)).filter((i) => data.targetsOf(i, limit) > 0)
    this.withoutTarget = data.count - this.#usable.length
    if (this.#usable.length === 0) {
      throw new CaravanError('ERR_DATA', `none of the ${data.count} examples has a token to be trained on`, {
        details: { examples: data.count },
        hint: 'check that the rows have assistant messages, and that maxTokens does not cut them off',
      })
    }
    this.cut = { examples: 0, tokens: 0 }
    let tokens = 0
    for (const example of this.#usable) {
      const length = data.lengthOf(example)
      tokens += length
      if (length <= limit) continue
      this.cut.examples++
      this.cut.tokens += length - limit
    }
    this.#order = { seed, shuffle, batch: { ...batch }, last, examples: this.#usable.length, tokens }
  }

  /** Examples of one epoch. */
  get exampleCount(): number {
    return this.#usable.length
  }

  /** The next global batch, or undefined after the last epoch. */
  next(): GlobalBatch<Micro> | undefined {
    const { packing, microBatchTokens, epochs } = this.#options
    while (this.#epoch < epochs) {
      const end = this.#endOfBatch(this.#epoch, this.#position)
      if (end === undefined) {
        this.#epoch++
        this.#position = 0
        continue
      }
      const examples = this.#orderOf(this.#epoch).slice(this.#position, end)
      const place = { epoch: this.#epoch, batch: this.#batch }
      const batch = new GlobalBatch(this.data, examples, place, { strategy: packing, tokens: microBatchTokens })
      this.#position = end
      this.#batch++
      return batch
    }
    return undefined
  }

  *[Symbol.iterator](): Generator<GlobalBatch<Micro>> {
    for (let batch = this.next(); batch !== undefined; batch = this.next()) yield batch
  }

  /**
   * All batches from the start to the end, for learning-rate schedules. With batches by tokens this walks every epoch.
   */
  totalBatches(): number {
    const { batch, epochs, last } = this.#options
    if (epochs === Number.POSITIVE_INFINITY) return epochs
    if ('sequences' in batch) {
      const perEpoch = this.#usable.length / batch.sequences
      return epochs * (last === 'keep' ? Math.ceil(perEpoch) : Math.floor(perEpoch))
    }
    let total = 0
    for (let epoch = 0; epoch < epochs; epoch++) {
      let end = this.#endOfBatch(epoch, 0)
      for (; end !== undefined; end = this.#endOfBatch(epoch, end)) total++
    }
    return total
  }

  /** Where the loader stands: the state before the batch that `next` would give. */
  state(): LoaderState {
    const { ...order } = this.#order
    return { version: 1, epoch: this.#epoch, position: this.#position, batch: this.#batch, order }
  }

  /** Goes to a saved place. ERR_CONFIG when the state belongs to other data or another order of it. */
  restore(state: LoaderState): void {
    const differing = Object.entries(this.#order).find(
      ([key, value]) => JSON.stringify(value) !== JSON.stringify(state.order?.[key as keyof LoaderOrder]),
    )
    if (state.version !== 1 || differing !== undefined) {
      const [key, now] = differing ?? ['version', 1]
      const then = key === 'version' ? state.version : state.order?.[key as keyof LoaderOrder]
      const message = `the saved place in the data has ${key} ${JSON.stringify(then)}; now it is ${JSON.stringify(now)}`
      throw new CaravanError('ERR_CONFIG', message, {
        details: { key, saved: then, current: now },
        hint: 'resume with the data, batch size and seed that the run began with, or start a new run',
      })
    }
    const { epoch, position, batch } = state
    const whole = [epoch, position, batch].every((value) => Number.isSafeInteger(value) && value >= 0)
    if (!whole || position > this.#usable.length) {
      const place = JSON.stringify({ epoch, position, batch })
      throw new CaravanError('ERR_CONFIG', `the saved place in the data is impossible: ${place}`, {
        details: { place },
      })
    }
    this.#epoch = epoch
    this.#position = position
    this.#batch = batch
  }

  /** End of the batch that begins at `position` of an epoch's order, or undefined when the epoch has none left. */
  #endOfBatch(epoch: number, position: number): number | undefined {
    const count = this.#usable.length
    if (position >= count) return undefined
    const { batch, last } = this.#options
    if ('sequences' in batch) {
      const end = position + batch.sequences
      if (end <= count) return end
      return last === 'keep' ? count : undefined
    }
    const order = this.#orderOf(epoch)
    let end = position
    let tokens = 0
    while (end < count) {
      tokens += this.data.lengthOf(order[end]!)
      if (tokens > batch.tokens && end > position) return end
      end++
    }
    return last === 'keep' || tokens >= batch.tokens ? count : undefined
  }

  #orderOf(epoch: number): Uint32Array {
    if (!this.#options.shuffle) return this.#usable
    if (this.#permutation?.epoch !== epoch) {
      const permutation = new Random(this.#options.seed, LOADER_STREAM + epoch).permutation(this.#usable.length)
      this.#permutation = { epoch, order: permutation.map((i) => this.#usable[i]!) }
    }
    return this.#permutation.order
  }
}

function* indices(count: number): Generator<number> {
  for (let i = 0; i < count; i++) yield i
}

function checkOptions(options: Required<LoaderOptions>): void {
  const { batch, epochs, microBatchTokens, packing, seed } = options
  const size = 'sequences' in batch ? batch.sequences : batch.tokens
  const name = 'sequences' in batch ? 'batch.sequences' : 'batch.tokens'
  requireInteger(name, size, 1)
  requireInteger('seed', seed, 0)
  if (packing !== 'none') requireInteger('microBatchTokens', microBatchTokens, 1)
  if (epochs !== Number.POSITIVE_INFINITY) requireInteger('epochs', epochs, 1)
}

function requireInteger(name: string, value: number, least: number): void {
  if (Number.isSafeInteger(value) && value >= least) return
  throw new CaravanError('ERR_CONFIG', `${name} must be an integer >= ${least}; got ${value}`, {
    details: { name, value },
  })
}
