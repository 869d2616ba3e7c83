// AdamW over a table of parameters. Norm, clip factor, finite flag and learning rate stay on the device, so a step is a
// row of commands without a wait; the caller reads `control` when it wants the numbers.
import {
  adamwBf16MomentsOp,
  adamwOp,
  adamwSplitBf16MomentsOp,
  adamwSplitOp,
  cast,
  clipControlOp,
  fill,
  squaredSumAddOp,
} from '../ops/index.js'
import { type Gradients, keep, scope, Tensor } from '../tensor/index.js'
import type { Optimizer, StepOptions, StepResult } from './optimizer.js'

export interface AdamWOptions {
  beta1: number
  beta2: number
  eps: number
  /** Decoupled decay, applied to matrices (two or more dimensions) only. */
  weightDecay: number
  /** Beside bf16 parameters: the lower halves of the f32 numbers whose upper halves the parameters are (split, the
   *  default), or f32 copies (full): 2 bytes a parameter more, and the same numbers. */
  master?: MasterForm
  /** Type of the two moments: f32 (the default), or bf16 rounded at random: 4 bytes a parameter less. */
  moments?: MomentType
}

export const masterForms = ['full', 'split'] as const
export type MasterForm = (typeof masterForms)[number]
export const momentTypes = ['f32', 'bf16'] as const
export type MomentType = (typeof momentTypes)[number]

interface ParameterState {
  parameter: Tensor
  /** Of a bf16 parameter: its f32 copy, or what its rounding took away. */
  master: Tensor | undefined
  m: Tensor
  v: Tensor
}

export class AdamW implements Optimizer {
  readonly #states = new Map<string, ParameterState>()
  readonly #options: AdamWOptions
  /** Updates made so far: the t of the bias correction. */
  updates = 0

  constructor(parameters: ReadonlyMap<string, Tensor>, options: AdamWOptions) {
    this.#options = options
    for (const [name, parameter] of parameters) this.#states.set(name, newState(parameter, options))
  }

  /** Applies one update from `gradients` and reports what happened. Parameters without a gradient stay as they are. */
  async step(gradients: Gradients, options: StepOptions): Promise<StepResult> {
    const control = this.#enqueue(gradients, options)
    if (!control) return { gradientNorm: 0, finite: true }
    try {
      const [, , finite, , , gradientNorm] = await control.read()
      if (finite === 1) this.updates++
      else return { gradientNorm: gradientNorm!, finite: false, notFinite: await this.#firstNotFinite(gradients) }
      return { gradientNorm: gradientNorm!, finite: true }
    } finally {
      control.dispose()
    }
  }

  #enqueue(gradients: Gradients, { lr, scale, maxNorm }: StepOptions): Tensor | undefined {
    const { beta1, beta2, eps, weightDecay, moments } = this.#options
    const inBf16 = moments === 'bf16'
    const present = [...this.#states.values()].filter(({ parameter }) => gradients.get(parameter))
    const device = present[0]?.parameter.device
    if (!device) return undefined
    return scope(() => {
      const t = this.updates + 1
      const numbers = new Float32Array([lr, 0, 0, 1 - beta1 ** t, 1 - beta2 ** t, 0, t, 0])
      const control = keep(Tensor.from(device, numbers, [8]))
      const sum = fill(device, [1], { value: 0, dtype: 'f64' })
      for (const { parameter } of present) squaredSumAddOp({ g: gradients.get(parameter)!, sum })
      clipControlOp({ sum, control, scale, max_norm: maxNorm })
      for (const { parameter, master, m, v } of present) {
        const weight_decay = parameter.shape.length >= 2 ? weightDecay : 0
        const g = gradients.get(parameter)!
        const call = { p: parameter, g, m, v, control, beta1, beta2, eps, weight_decay }
        if (master && isSplit(this.#options))
          (inBf16 ? adamwSplitBf16MomentsOp : adamwSplitOp)({ ...call, low: master })
        else (inBf16 ? adamwBf16MomentsOp : adamwOp)({ ...call, master })
      }
      return control
    })
  }

  async #firstNotFinite(gradients: Gradients): Promise<string | undefined> {
    for (const [name, { parameter }] of this.#states) {
      const g = gradients.get(parameter)
      if (!g) continue
      using sum = keep(fill(g.device, [1], { value: 0, dtype: 'f64' }))
      squaredSumAddOp({ g, sum })
      if (!Number.isFinite(await sum.item())) return name
    }
    return undefined
  }

  /** The tensors to be saved, by name: `<parameter>.m`, `.v` and for bf16 parameters `.master` or, split, `.low`. */
  tensors(): Map<string, Tensor> {
    const table = new Map<string, Tensor>()
    for (const [name, { master, m, v }] of this.#states) {
      table.set(`${name}.m`, m)
      table.set(`${name}.v`, v)
      if (master) table.set(`${name}.${isSplit(this.#options) ? 'low' : 'master'}`, master)
    }
    return table
  }

  /** Updates made so far. */
  state(): number {
    return this.updates
  }

  restore(state: unknown): void {
    this.updates = state as number
  }

  dispose(): void {
    for (const tensor of this.tensors().values()) tensor.dispose()
    this.#states.clear()
  }
}

const isSplit = ({ master = 'split' }: AdamWOptions) => master === 'split'

function newState(parameter: Tensor, options: AdamWOptions): ParameterState {
  const { moments = 'f32' } = options
  const { device, shape, dtype } = parameter
  const zeros = (type: MomentType) => keep(fill(device, shape, { value: 0, dtype: type }))
  const state = { parameter, master: undefined as Tensor | undefined, m: zeros(moments), v: zeros(moments) }
  // A parameter that is bf16 to begin with has lost nothing yet: its lower half is 0.
  if (dtype === 'bf16') state.master = isSplit(options) ? zeros('bf16') : keep(cast(parameter, 'f32'))
  return state
}
