// The two normalisations of the decoders here, behind one face: RMSNorm with a weight, and LayerNorm without parameters
// (OLMo 1).
import { add, layerNorm, rmsNorm } from '../ops/index.js'
import type { Tensor } from '../tensor/index.js'
import { Module, type ParameterScope } from './module.js'

export type NormKind = 'rms' | 'layer'

export class Norm extends Module {
  /** [width]; absent for kind 'layer'. */
  readonly weight: Tensor | undefined
  readonly eps: number

  constructor(scope: ParameterScope, { kind, width, eps }: { kind: NormKind; width: number; eps: number }) {
    super()
    this.weight = kind === 'rms' ? scope.parameter('weight', [width], 'norm') : undefined
    this.eps = eps
  }

  /** Norm over the last axis of x [..,width], plus `residual` of the same shape when given. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    if (this.weight) return rmsNorm(x, this.weight, { eps: this.eps, residual })
    const y = layerNorm(x, this.eps)
    return residual ? add(y, residual) : y
  }
}
