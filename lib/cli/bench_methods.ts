// The work of `caravan bench step`: the real losses on batches of random tokens, as bench/torch_peer.py makes them.
import { Random } from '../base/random.js'
import { AnswerLayout } from '../data/answer_layout.js'
import type { PairBatch } from '../data/pairs.js'
import { type PreferenceLossOptions, preferenceLoss } from '../losses/preference.js'
import { sftLoss } from '../losses/sft.js'
import { pairLogprobs } from '../methods/dpo.js'
import type { Batch, Method, MicroLoss } from '../methods/method.js'
import type { CausalLm } from '../models/index.js'
import { selfSegments } from '../ops/index.js'
import { type Checkpointing, scope, Tensor } from '../tensor/index.js'
import type { BenchShape } from './bench_shapes.js'

export const benchMethods = ['sft', 'dpo'] as const
export type BenchMethod = (typeof benchMethods)[number]

export interface BenchWork {
  model: CausalLm
  shape: BenchShape
  steps: number
  /** Tokens computed at a time, whole sequences and one at least; absent: all of a step. */
  microBatchTokens?: number
  cachedReference: boolean
  checkpointing?: Checkpointing
}

/** How many of the `units` of a step, of `tokens` each, every micro-batch has. */
function dividedUnits({ microBatchTokens = Infinity }: BenchWork, units: number, tokens: number): number[] {
  const most = Math.max(1, Math.min(units, Math.floor(microBatchTokens / tokens)))
  return Array.from({ length: Math.ceil(units / most) }, (_, i) => Math.min(most, units - i * most))
}

export function benchMethod(name: BenchMethod, work: BenchWork): Method<CausalLm, unknown> {
  return (name === 'sft' ? new RandomTokens(work) : new RandomPairs(work)) as Method<CausalLm, unknown>
}

interface TokenBatch {
  ids: Int32Array
  labels: Int32Array
}

/** Batches of random tokens; every token but the first of a sequence is a target. */
class RandomTokens implements Method<CausalLm, TokenBatch> {
  readonly name = 'bench'
  readonly unitSeed = true
  readonly totalSteps: number
  readonly #random = new Random(0, 1)

  constructor(private readonly work: BenchWork) {
    this.totalSteps = work.steps
  }

  *batches(): Iterable<Batch<TokenBatch>> {
    const { B, T } = this.work.shape
    for (let step = 0; step < this.totalSteps; step++) {
      const micros = dividedUnits(this.work, B, T).map((sequences) => this.#tokens(sequences))
      yield { count: B * (T - 1), tokens: B * T, microBatches: () => micros }
    }
  }

  #tokens(sequences: number): TokenBatch {
    const { T, config } = this.work.shape
    const ids = Int32Array.from({ length: sequences * T }, () => this.#random.integer(0, config.V))
    return { ids, labels: ids.map((_, i) => ((i + 1) % T === 0 ? -100 : ids[i + 1]!)) }
  }

  loss(model: CausalLm, { ids, labels }: TokenBatch): MicroLoss {
    const { device } = model
    const { shape: sizes, checkpointing } = this.work
    const { T } = sizes
    const N = ids.length
    const { data, shape } = selfSegments(Array.from({ length: N / T + 1 }, (_, i) => i * T))
    const places = ids.map((_, i) => i % T)
    const rows = {
      ids: Tensor.from(device, ids, [N]),
      positions: Tensor.from(device, places, [N]),
      segments: Tensor.from(device, data, shape),
    }
    const hidden = model.hidden(rows, { checkpoint: checkpointing })
    const target = Tensor.from(device, labels, [N])
    const targets = (N / T) * (T - 1)
    return { sum: sftLoss(hidden, model.head, { target, zLoss: 0, reduction: 'token_mean', targets }) }
  }

  state(): null {
    return null
  }

  restore(): void {}
}

const tuluDpo: PreferenceLossOptions = {
  loss: 'dpo_norm',
  beta: 5,
  gammaBetaRatio: 0,
  labelSmoothing: 0,
  referenceFree: false,
}

interface PairsAndReference {
  batch: PairBatch
  reference: Float64Array
}

/** B / 2 pairs of random tokens a step, the first quarter of each side being the prompt that both have, laid down once
 *  as in a run. The reference pass is a forward pass of the same model: it costs what one of a second model would. */
class RandomPairs implements Method<CausalLm, PairsAndReference> {
  readonly name = 'bench'
  readonly unitSeed = true
  readonly totalSteps: number
  readonly #random = new Random(0, 1)

  constructor(private readonly work: BenchWork) {
    this.totalSteps = work.steps
  }

  async *batches(): AsyncIterable<Batch<PairsAndReference>> {
    const { B, T } = this.work.shape
    for (let step = 0; step < this.totalSteps; step++) {
      const micros: PairsAndReference[] = []
      for (const pairs of dividedUnits(this.work, B / 2, 2 * T)) {
        const batch = this.#pairs(pairs)
        micros.push({ batch, reference: await this.#reference(batch) })
      }
      yield { count: B / 2, tokens: B * T, microBatches: () => micros }
    }
  }

  /** [2 P] sums over the answers, known as zeros where the pass is left out. */
  async #reference(batch: PairBatch): Promise<Float64Array> {
    const reference = new Float64Array(2 * batch.pairs.length)
    if (this.work.cachedReference) return reference
    using logp = scope(() => pairLogprobs(this.work.model, batch))
    const values = (await logp.read()) as Float32Array
    for (let side = 0; side < reference.length; side++) {
      const answer = values.subarray(batch.spans[3 * side]!, batch.spans[3 * side + 1]!)
      reference[side] = answer.reduce((sum, value) => sum + value, 0)
    }
    return reference
  }

  #pairs(count: number): PairBatch {
    const { T, config } = this.work.shape
    const prompt = T / 4
    const draw = (length: number) => Int32Array.from({ length }, () => this.#random.integer(0, config.V))
    // The last token of a prompt predicts something else on each side, so it stays with its side.
    const side = T - prompt + 1
    const layout = new AnswerLayout({ tokens: count * (prompt - 1 + 2 * side), answers: 2 * count })
    const trained = new Uint8Array(side).fill(1, 1)
    for (let pair = 0; pair < count; pair++) {
      const ids = draw(prompt)
      layout.addPrompt(ids.subarray(0, -1))
      for (let s = 0; s < 2; s++) layout.addAnswer(Int32Array.of(ids.at(-1)!, ...draw(T - prompt)), trained)
    }
    return { ...layout.finish(), pairs: Int32Array.from({ length: count }, (_, pair) => pair) }
  }

  loss(model: CausalLm, { batch, reference }: PairsAndReference): MicroLoss {
    const { device } = model
    const P = batch.pairs.length
    const spans = Tensor.from(device, batch.spans, [P, 2, 3])
    const known = Tensor.from(device, reference, [P, 2])
    const logp = pairLogprobs(model, batch, this.work.checkpointing)
    return { sum: preferenceLoss(logp, { spans, reference: known }, tuluDpo).sum }
  }

  state(): null {
    return null
  }

  restore(): void {}
}
