// A module is a class whose own fields are its parameters and sub-modules; names follow from the field names. Where the
// values come from (a file, random numbers) is decided by whoever builds it, through a ParameterScope.
import type { Shape } from '../base/shape.js'
import { scatterRows } from '../ops/index.js'
import { reshape, scope, Tensor, withoutTape } from '../tensor/index.js'

/** What a parameter is for, which decides its initial values and whether it is decayed. `branch_output` is a matrix
 *  whose product is added to the residual stream. */
export type ParameterRole = 'embedding' | 'projection' | 'branch_output' | 'head' | 'norm' | 'bias'

export interface ParameterPlace {
  /** Dotted, from the root: `decoder.blocks.0.attention.query.weight`. */
  name: string
  shape: Shape
  role: ParameterRole
}

/** Gives the tensor for a place; the module that asked owns it. */
export type ParameterSource = (place: ParameterPlace) => Tensor

/** A place in the tree of modules, from which the parameters below it are asked for. */
export class ParameterScope {
  constructor(
    private readonly source: ParameterSource,
    private readonly path = '',
  ) {}

  /** The scope of field `name`, or of element `index` of an array field. */
  at(name: string, index?: number): ParameterScope {
    const step = index === undefined ? name : `${name}.${index}`
    return new ParameterScope(this.source, joined(this.path, step))
  }

  parameter(name: string, shape: Shape, role: ParameterRole): Tensor {
    return this.source({ name: joined(this.path, name), shape, role })
  }
}

export abstract class Module {
  /** Parameters of this module and those below it by dotted name, in the order of construction. */
  parameters(): Map<string, Tensor> {
    const found = new Map<string, Tensor>()
    for (const [name, part] of partsOf(this)) {
      if (part instanceof Tensor) found.set(name, part)
      else for (const [below, tensor] of part.parameters()) found.set(`${name}.${below}`, tensor)
    }
    return found
  }

  /** The modules below this one by dotted name, each before those inside it. */
  modules(): Map<string, Module> {
    const found = new Map<string, Module>()
    for (const [name, part] of partsOf(this)) {
      if (part instanceof Tensor) continue
      found.set(name, part)
      for (const [below, module] of part.modules()) found.set(`${name}.${below}`, module)
    }
    return found
  }

  /** Frees all parameters. A module that holds other tensors overrides this and frees them too. */
  dispose(): void {
    for (const [, part] of partsOf(this)) part.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** Makes the parameters of `to`, which have the same names and shapes, bit for bit those of `from`. */
export function copyWeights(from: Module, to: Module): void {
  const targets = to.parameters()
  withoutTape(() =>
    scope(() => {
      for (const [name, tensor] of from.parameters()) {
        // Row by row, so that any element type is copied as it is.
        const W = tensor.shape.at(-1)!
        const M = tensor.count / W
        const index = Tensor.from(
          tensor.device,
          Int32Array.from({ length: M }, (_, i) => i),
          [M],
        )
        scatterRows(reshape(targets.get(name)!, [M, W]), reshape(tensor, [M, W]), index)
      }
    }),
  )
}

function* partsOf(module: Module): Iterable<[name: string, part: Tensor | Module]> {
  for (const [name, value] of Object.entries(module)) {
    if (value instanceof Tensor || value instanceof Module) yield [name, value]
    else if (Array.isArray(value)) {
      for (const [i, item] of value.entries()) if (item instanceof Module) yield [`${name}.${i}`, item]
    }
  }
}

function joined(path: string, name: string): string {
  return path === '' ? name : `${path}.${name}`
}
