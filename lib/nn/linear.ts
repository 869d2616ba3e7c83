// A linear layer with the weight as Hugging Face stores it: [out, in].
import { linear } from '../ops/index.js'
import type { Tensor } from '../tensor/index.js'
import { Module, type ParameterScope } from './module.js'

export interface LinearOptions {
  inputs: number
  outputs: number
  bias?: boolean
  role?: 'projection' | 'branch_output' | 'head'
}

export class Linear extends Module {
  /** [outputs, inputs] */
  readonly weight: Tensor
  /** [outputs] */
  readonly bias: Tensor | undefined

  constructor(scope: ParameterScope, { inputs, outputs, bias = false, role = 'projection' }: LinearOptions) {
    super()
    this.weight = scope.parameter('weight', [outputs, inputs], role)
    this.bias = bias ? scope.parameter('bias', [outputs], 'bias') : undefined
  }

  /** [N, outputs] from x [N, inputs]; `residual` [N, outputs] is added where the sum is stored. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    return linear(x, this.weight, { bias: this.bias, residual })
  }
}
