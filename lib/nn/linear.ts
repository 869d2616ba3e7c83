// A linear layer with the weight as Hugging Face stores it: [out, in].
import { linear } from '../ops/index.js'
import type { Tensor } from '../tensor/index.js'
import type { LoraAdapter } from './lora.js'
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
  /** A low-rank change of the weight, which stays as it is. Freed with this layer. */
  adapter: LoraAdapter | undefined

  constructor(scope: ParameterScope, { inputs, outputs, bias = false, role = 'projection' }: LinearOptions) {
    super()
    this.weight = scope.parameter('weight', [outputs, inputs], role)
    this.bias = bias ? scope.parameter('bias', [outputs], 'bias') : undefined
  }

  /** [N, outputs] from x [N, inputs]; `residual` [N, outputs] is added where the sum is stored. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    const { adapter, weight, bias } = this
    return adapter ? adapter.forward(x, { weight, bias, residual }) : linear(x, weight, { bias, residual })
  }

  override dispose(): void {
    super.dispose()
    this.adapter?.dispose()
  }
}
