// Token embedding. A tied output head is this same table.
import { embedding } from '../ops/index.js'
import type { Tensor } from '../tensor/index.js'
import { Module, type ParameterScope } from './module.js'

export class Embedding extends Module {
  /** [V,D] */
  readonly weight: Tensor

  constructor(scope: ParameterScope, { V, D }: { V: number; D: number }) {
    super()
    this.weight = scope.parameter('weight', [V, D], 'embedding')
  }

  /** Rows [N,D] of ids [N] i32. ERR_SHAPE at the next wait when an id is not below V. */
  forward(ids: Tensor): Tensor {
    return embedding(ids, this.weight)
  }
}
