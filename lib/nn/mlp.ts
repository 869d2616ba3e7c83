// The gated feed-forward layer of every decoder here: down(silu(gate(x)) * up(x)).
import { swiglu } from '../ops/index.js'
import type { Tensor } from '../tensor/index.js'
import { Linear } from './linear.js'
import { Module, type ParameterScope } from './module.js'

export class Mlp extends Module {
  readonly gate: Linear
  readonly up: Linear
  readonly down: Linear

  constructor(scope: ParameterScope, { D, F, bias }: { D: number; F: number; bias: boolean }) {
    super()
    this.gate = new Linear(scope.at('gate'), { inputs: D, outputs: F, bias })
    this.up = new Linear(scope.at('up'), { inputs: D, outputs: F, bias })
    this.down = new Linear(scope.at('down'), { inputs: F, outputs: D, bias, role: 'branch_output' })
  }

  /** [N,D] from x [N,D]; `residual` [N,D] is added where the sum is stored. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    return this.down.forward(swiglu(this.gate.forward(x), this.up.forward(x)), residual)
  }
}
