// What the loop needs of an optimizer, and several of them as one: models that are trained together, each with a
// learning rate, a gradient norm and a skipped step of its own.
import type { Gradients, Tensor } from '../tensor/index.js'

export interface StepOptions {
  lr: number
  /** Factor of the collected gradients: 1 / count when they are gradients of a sum. */
  scale: number
  /** Largest gradient norm after scaling; 0 = no clipping. */
  maxNorm: number
}

/** What a step did. */
export interface StepResult {
  /** Gradient norm after scaling, before clipping. */
  gradientNorm: number
  /** False when the norm was NaN or infinite: nothing has changed. */
  finite: boolean
  /** The first parameter whose gradient is not finite, when `finite` is false because of one. */
  notFinite?: string
  /** Gradient norms of further parts, by the name under which they are logged. */
  norms?: Record<string, number>
}

export interface Optimizer {
  /** Applies one update from `gradients`. */
  step(gradients: Gradients, options: StepOptions): Promise<StepResult>
  /** The tensors to be saved, by name. */
  tensors(): Map<string, Tensor>
  /** What is saved beside the tensors: JSON. */
  state(): unknown
  restore(state: unknown): void
  dispose(): void
}

export interface OptimizerPart {
  name: string
  optimizer: Optimizer
  /** Learning rate of this part over that of the step. */
  lrRatio: number
}

/** Steps all parts. The first one gives the norm of a step; `finite` is that of all of them. */
export class JointOptimizer implements Optimizer {
  constructor(private readonly parts: readonly [OptimizerPart, ...OptimizerPart[]]) {}

  async step(gradients: Gradients, options: StepOptions): Promise<StepResult> {
    const results = await Promise.all(
      this.parts.map(({ optimizer, lrRatio }) => optimizer.step(gradients, { ...options, lr: options.lr * lrRatio })),
    )
    const failed = results.findIndex(({ finite }) => !finite)
    const norms = results.slice(1).map(({ gradientNorm }, i) => [`${this.parts[i + 1]!.name}/gradNorm`, gradientNorm])
    return {
      gradientNorm: results[0]!.gradientNorm,
      finite: failed < 0,
      notFinite: failed < 0 ? undefined : `${this.parts[failed]!.name}: ${results[failed]!.notFinite}`,
      norms: Object.fromEntries(norms),
    }
  }

  tensors(): Map<string, Tensor> {
    return new Map(
      this.parts.flatMap(({ name, optimizer }) =>
        [...optimizer.tensors()].map(([key, tensor]) => [`${name}.${key}`, tensor] as const),
      ),
    )
  }

  state(): unknown[] {
    return this.parts.map(({ optimizer }) => optimizer.state())
  }

  restore(state: unknown): void {
    for (const [i, { optimizer }] of this.parts.entries()) optimizer.restore((state as unknown[])[i])
  }

  dispose(): void {
    for (const { optimizer } of this.parts) optimizer.dispose()
  }
}
