// Low-rank adaptation (Hu et al. 2021): y = x W^T + b + scale * dropout(x) A^T B^T with W and b frozen. A layer's
// adapter is no module: what lists the parameters of the base (its files, its optimizer, its sizes) must not see it.
import type { DType } from '../base/dtype.js'
import {
  add,
  addInto,
  affine,
  cast,
  div,
  dropout,
  fill,
  linear,
  matmul,
  mul,
  randomUniform,
  sqrt,
  sum,
} from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep, recordingTape, reshape, scope, type Tensor, withoutTape } from '../tensor/index.js'

/** Masks are numbered by pass and place: more places than any model has layers. */
const PLACES = 2 ** 20
/** Random streams of the initial A: beyond those of new weights (below 2^20) and of dropout (below 2^52). */
const FIRST_INITIAL_STREAM = 2 ** 52

/**
 * The dropout masks of one model. A mask is a function of seed, forward pass and layer, so that a block that is run
 * again for the backward pass drops the same elements, and a resumed run those of an uninterrupted one.
 */
export class DropoutMasks {
  /** Forward passes begun under a tape. With rate and seed it decides all masks to come. */
  passes = 0
  #pass: number | undefined

  constructor(
    readonly rate: number,
    readonly seed: number,
  ) {}

  /** Begins a forward pass. What it returns runs a part of that pass, now or once more later. Nothing is dropped
   *  outside a tape: in evaluation, reference log-probabilities, sampling. */
  begin(): <R>(part: () => R) => R {
    if (!recordingTape()) return (part) => part()
    const pass = ++this.passes
    return (part) => {
      const outer = this.#pass
      this.#pass = pass
      try {
        return part()
      } finally {
        this.#pass = outer
      }
    }
  }

  /** `x` with the mask of layer `place` in the pass that is running. */
  apply(x: Tensor, place: number): Tensor {
    if (this.#pass === undefined) return x
    return dropout(x, { rate: this.rate, seed: this.seed, stream: this.#pass * PLACES + place })
  }
}

/** What the adapted layers of a model share. */
export interface LoraShared {
  /** False: every layer computes what its base does. */
  enabled: boolean
  /** Undefined where nothing is ever dropped. */
  readonly masks: DropoutMasks | undefined
}

export interface LoraSizes {
  inputs: number
  outputs: number
  rank: number
}

export interface LoraScaling {
  alpha: number
  /** scale = alpha / sqrt(rank) (Kalajdzievski 2023) in place of alpha / rank. */
  rankStabilised: boolean
}

/** What is trained of a layer, in f32 whatever the dtype of the base. */
export interface LoraMatrices {
  /** [rank, inputs] */
  a: Tensor
  /** [outputs, rank] */
  b: Tensor
  /** [outputs]: the length of each row of the changed weight (DoRA, Liu et al. 2024). */
  magnitude?: Tensor
}

/** A linear layer as it is without its adapter. */
export interface BaseLayer {
  weight: Tensor
  bias: Tensor | undefined
  residual: Tensor | undefined
}

export class LoraAdapter {
  readonly scale: number

  constructor(
    readonly matrices: LoraMatrices,
    readonly scaling: LoraScaling,
    private readonly shared: LoraShared,
    /** Number of the layer among the adapted ones. */
    private readonly place: number,
  ) {
    const { alpha, rankStabilised } = scaling
    this.scale = alpha / (rankStabilised ? Math.sqrt(this.rank) : this.rank)
  }

  get rank(): number {
    return this.matrices.a.shape[0]!
  }

  /** x W^T + scale * dropout(x) A^T B^T (+ bias) (+ residual) of x [N, inputs], in the dtype of x. With a magnitude the
   *  two products are scaled, column by column, to the rows' lengths. */
  forward(x: Tensor, { weight, bias, residual }: BaseLayer): Tensor {
    if (!this.shared.enabled) return linear(x, weight, { bias, residual })
    const { magnitude } = this.matrices
    // What lies between is freed as soon as it has been added.
    if (!magnitude) return scope(() => this.#plus(linear(x, weight, { bias, residual }), x))
    return scope(() => {
      const gain = div(
        magnitude,
        withoutTape(() => rowLengths(this.#sum(weight))),
      )
      let y = mul(this.#plus(linear(x, weight), x), inDtype(gain, x.dtype))
      if (bias) y = add(y, bias)
      return residual ? add(y, residual) : y
    })
  }

  /** y + scale * dropout(x) A^T B^T. */
  #plus(y: Tensor, x: Tensor): Tensor {
    const { masks } = this.shared
    const { a, b } = this.matrices
    const low = linear(masks ? masks.apply(x, this.place) : x, inDtype(a, x.dtype))
    // The factor goes to the narrow rows: in a power of two, as alpha / rank mostly is, it rounds nothing.
    const scaled = this.scale === 1 ? low : affine(low, this.scale, 0)
    return linear(scaled, inDtype(b, x.dtype), { residual: y })
  }

  /** The weight [outputs, inputs] in f32 with which a plain layer computes what this one does. */
  merged(weight: Tensor): Tensor {
    const { magnitude } = this.matrices
    return scope(() => {
      const whole = this.#sum(weight)
      return magnitude ? mul(whole, reshape(div(magnitude, rowLengths(whole)), [-1, 1])) : whole
    })
  }

  /** W + scale * B A in f32. */
  #sum(weight: Tensor): Tensor {
    const { a, b } = this.matrices
    const [outputs, inputs] = weight.shape as [number, number]
    const product = matmul(reshape(b, [1, outputs, this.rank]), reshape(a, [1, this.rank, inputs]))
    const whole = affine(reshape(product, [outputs, inputs]), this.scale, 0)
    addInto(whole, weight)
    return whole
  }

  dispose(): void {
    for (const tensor of Object.values(this.matrices)) tensor?.dispose()
  }
}

const inDtype = (x: Tensor, dtype: DType): Tensor => (x.dtype === dtype ? x : cast(x, dtype))

/** Euclidean length of each row of `x` [F,D], as [F]. */
export function rowLengths(x: Tensor): Tensor {
  return reshape(sqrt(sum(mul(x, x), -1)), [x.shape[0]!])
}

/**
 * New matrices as PEFT makes them: A uniform in +-1 / sqrt(inputs), which is Kaiming's rule with a = sqrt(5), and B
 * zero, so that the adapted model starts out as its base. The caller owns them.
 */
export function newLoraMatrices(
  device: Device,
  { inputs, outputs, rank }: LoraSizes,
  { seed, place }: { seed: number; place: number },
): LoraMatrices {
  const bound = 1 / Math.sqrt(inputs)
  const stream = FIRST_INITIAL_STREAM + place
  const a = keep(randomUniform(device, [rank, inputs], { low: -bound, high: bound, seed, stream, dtype: 'f32' }))
  return { a, b: keep(fill(device, [outputs, rank], { value: 0, dtype: 'f32' })) }
}

/** The adapter of a model: its layers, and what they share. */
export class Lora implements LoraShared {
  enabled = true
  /** By the module's name in a Hugging Face checkpoint, in the order of the model. */
  readonly layers = new Map<string, LoraAdapter>()

  constructor(readonly masks: DropoutMasks | undefined) {}

  /** Adds the adapter of the next layer, which owns `matrices` from now on. */
  add(name: string, matrices: LoraMatrices, scaling: LoraScaling): LoraAdapter {
    const adapter = new LoraAdapter(matrices, scaling, this, this.layers.size)
    this.layers.set(name, adapter)
    return adapter
  }
}
