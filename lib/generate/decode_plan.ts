// Steps in which every sequence feeds one token, which is nearly all of them, as plans: one upload, one native call.
// The tokens stay on the device from step to step, so that a step can be given before those of the last one are read. A
// plan is for a number of sequences and a length of the page table, rounded up; the table's unused end is never read.
// On a GPU a plan is a graph, dear to make, and rows cost little beside the weights: there the number of sequences is
// rounded up too, by repeating the last one, which writes what that one writes.
import type { CausalLm } from '../models/index.js'
import { embedding, keyRow, sampleOp, scatterRows, settingsRow } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep, Plan, reshape, Tensor } from '../tensor/index.js'
import type { KeyValueCache } from './kv_cache.js'
import type { Step } from './scheduler.js'

/** What was drawn: [N] each. */
export interface DrawnTensors {
  [name: string]: Tensor
  /** i32 */
  token: Tensor
  /** f32 */
  logp: Tensor
  drawnLogp: Tensor
}

/** Plans kept at a time; the least recently used one goes. */
const MOST_PLANS = 48
/** The page table is cut to multiples of this, or of an eighth of itself: it grows a page at a time, and a plan should
 *  serve more than a few steps. */
const LEAST_TABLE_STEP = 32

export class DecodePlans {
  readonly #plans = new Map<string, DecodePlan>()
  readonly #tokens: TokenStore

  /** For at most `slots` sequences at a time. */
  constructor(
    private readonly model: CausalLm,
    private readonly cache: KeyValueCache,
    slots: number,
  ) {
    this.#tokens = new TokenStore(model.device, rowsFor(model, slots))
  }

  /** Runs `step`, or returns undefined where it is none for a plan. The tensors are those of the plan, with the rows of
   *  `step` first: read them before the next step, and leave them alive. */
  run(step: Step): DrawnTensors | undefined {
    const count = step.ids.length
    const decodes = step.segments.length === 4 * count && step.lastRows.length === count
    if (!decodes || step.draws.some(({ previous }) => previous)) return undefined
    const N = rowsFor(this.model, count)
    const entries = tableEntries(step.pages.length)
    const key = `${N} ${entries}`
    const plan =
      this.#plans.get(key) ?? new DecodePlan(this.model, { cache: this.cache, tokens: this.#tokens, N, entries })
    // Maps keep the order of insertion: the first one is the least recently used.
    this.#plans.delete(key)
    this.#plans.set(key, plan)
    const [oldest] = this.#plans
    if (this.#plans.size > MOST_PLANS && oldest) {
      oldest[1].dispose()
      this.#plans.delete(oldest[0])
    }
    return plan.run(step)
  }

  dispose(): void {
    for (const plan of this.#plans.values()) plan.dispose()
    this.#plans.clear()
    this.#tokens.dispose()
  }
}

/** Rows of a plan for `count` sequences. */
const rowsFor = ({ device }: CausalLm, count: number) => (device.kind === 'cuda' ? planRows(count) : count)

/** The tokens that the last plan drew, or those with which the next one begins. */
class TokenStore {
  readonly #values: Int32Array
  /** [most, 1] i32 */
  readonly tokens: Tensor
  /** [most] i32: 0, 1, 2, ... */
  readonly places: Tensor

  constructor(device: Device, most: number) {
    this.#values = new Int32Array(most)
    this.tokens = keep(Tensor.from(device, this.#values, [most, 1]))
    this.places = keep(
      Tensor.from(
        device,
        this.#values.map((_, i) => i),
        [most],
      ),
    )
  }

  set(ids: Int32Array): void {
    this.#values.set(ids)
    this.tokens.device.upload(this.tokens.id, this.#values)
  }

  dispose(): void {
    this.tokens.dispose()
    this.places.dispose()
  }
}

/** Rows of a plan for `count` sequences on a GPU: a power of two up to 16, then a multiple of an eighth of itself. */
export function planRows(count: number): number {
  const power = 2 ** Math.ceil(Math.log2(count))
  if (power <= 16) return power
  return Math.ceil(count / (power / 8)) * (power / 8)
}

/** Entries of the page table of a plan for `pages` pages. */
function tableEntries(pages: number): number {
  const step = Math.max(LEAST_TABLE_STEP, 2 ** Math.floor(Math.log2(Math.max(1, pages))) / 8)
  return Math.ceil(pages / step) * step
}

interface PlanParts {
  cache: KeyValueCache
  tokens: TokenStore
  N: number
  /** Entries of the page table. */
  entries: number
}

class DecodePlan {
  /** Places of the tokens, positions, cache rows [N] each; segments, keys [N,4]; pages [entries]: one upload for all of
   *  them. */
  readonly #words: Int32Array
  readonly #integers: Tensor
  readonly #settingsValues: Float64Array
  readonly #settings: Tensor
  #plan: Plan<DrawnTensors> | undefined

  constructor(
    private readonly model: CausalLm,
    private readonly parts: PlanParts,
  ) {
    const { device } = model
    const { N, entries } = parts
    this.#words = new Int32Array(11 * N + entries)
    this.#integers = keep(Tensor.empty(device, 'i32', [this.#words.length]))
    this.#settingsValues = new Float64Array(5 * N).fill(Number.NaN)
    this.#settings = keep(Tensor.empty(device, 'f64', [N, 5]))
  }

  run(step: Step): DrawnTensors {
    const { device, head } = this.model
    // A plan speaks of weights by number: they may change in place, but not be gone.
    head.assertAlive()
    this.#fill(step)
    if (!step.ahead) this.parts.tokens.set(step.ids)
    device.upload(this.#integers.id, this.#words)
    const settings = Float64Array.from(this.#padded(step.draws).flatMap((draw) => settingsRow(draw.settings)))
    if (settings.some((value, i) => value !== this.#settingsValues[i])) {
      this.#settingsValues.set(settings)
      device.upload(this.#settings.id, settings)
    }
    if (this.#plan) this.#plan.run()
    else this.#plan = new Plan(device, () => this.#forward())
    return this.#plan.outputs
  }

  dispose(): void {
    this.#plan?.dispose()
    this.#integers.dispose()
    this.#settings.dispose()
  }

  #fill({ ahead, ids, positions, cacheRows, segments, draws, pages }: Step): void {
    const { N } = this.parts
    const words = this.#words
    for (let i = 0; i < ids.length; i++) words[i] = ahead ? ids[i]! : i
    words.set(positions, N)
    words.set(cacheRows, 2 * N)
    words.set(segments, 3 * N)
    for (const [i, { key }] of draws.entries()) words.set(keyRow(key), 7 * N + 4 * i)
    for (let i = ids.length; i < N; i++) this.#repeatRow(i - 1)
    words.set(pages, 11 * N)
  }

  /** `rows` with the last one again for the rows of the plan that are too many. */
  #padded<T>(rows: readonly T[]): T[] {
    return Array.from({ length: this.parts.N }, (_, i) => rows[Math.min(i, rows.length - 1)]!)
  }

  /** Makes the row behind `row` the same; its query is the next one. */
  #repeatRow(row: number): void {
    const { N } = this.parts
    const repeat = (first: number, width: number) => {
      const from = first + row * width
      this.#words.copyWithin(from + width, from, from + width)
    }
    for (const first of [0, N, 2 * N]) repeat(first, 1)
    for (const first of [3 * N, 7 * N]) repeat(first, 4)
    this.#words.set([row + 1, row + 2], 3 * N + 4 * row + 4)
  }

  #forward(): DrawnTensors {
    const { cache, tokens, N, entries } = this.parts
    const part = (shape: number[], offset: number) => Tensor.viewOf(this.#integers, shape, offset)
    cache.place({ rows: part([N], 2 * N), pages: part([entries], 11 * N) })
    // Picking rows of a table by index is what the embedding op does.
    const ids = reshape(embedding(part([N], 0), tokens.tokens), [N])
    const rows = { ids, positions: part([N], N), segments: part([N, 4], 3 * N) }
    const hidden = this.model.hidden(rows, { store: cache })
    const { token, logp, drawn_logp } = sampleOp({
      hidden,
      head: this.model.head,
      settings: this.#settings,
      keys: part([N, 4], 7 * N),
      with_probs: 0,
    })
    scatterRows(tokens.tokens, reshape(token, [N, 1]), Tensor.viewOf(tokens.places, [N]))
    return { token, logp, drawnLogp: drawn_logp }
  }
}
