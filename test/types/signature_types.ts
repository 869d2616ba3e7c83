// Checked by the compiler alone: a signature gives an op its argument and result types, and misuse does not compile.
import type { Arguments, AttributeNames, InputNames, OutputNames, Results } from '../../lib/base/signature.js'
import { linearOp, rmsNormOp } from '../../lib/ops/index.js'
import { defineOp, type Tensor } from '../../lib/tensor/index.js'

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
/** Fails to compile unless its argument is `true`. */
function holds<_ extends true>(): void {}

type Norm = 'x[*,D] w[D] residual[*,D]? -> y[*,D] rstd[*]:f32 extra[N]? | eps axis'
holds<Equal<InputNames<Norm>, 'x' | 'w' | 'residual'>>()
holds<Equal<OutputNames<Norm>, 'y' | 'rstd' | 'extra'>>()
holds<Equal<AttributeNames<Norm>, 'eps' | 'axis'>>()
holds<Equal<Arguments<Norm, string>['x'], string>>()
holds<Equal<Arguments<Norm, string>['residual'], string | undefined>>()
holds<Equal<Arguments<Norm, string>['eps'], number>>()
holds<Equal<Results<Norm, string>['y'], string>>()
holds<Equal<Results<Norm, string>['extra'], string | undefined>>()
holds<Equal<InputNames<'-> y[N] | N'>, never>>()
holds<Equal<OutputNames<'y[...]! x[...] ->'>, never>>()
holds<Equal<AttributeNames<'x[N] -> y[N]'>, never>>()

declare const t: Tensor

export function rightCalls(): Tensor[] {
  const { y, rstd } = rmsNormOp({ x: t, w: t, eps: 1e-5 })
  const withResidual = rmsNormOp({ x: t, w: t, residual: t, eps: 1e-5 })
  return [y, rstd, withResidual.y, linearOp({ x: t, w: t, bias: undefined }).y]
}

export function wrongCalls(): void {
  // @ts-expect-error an argument is missing
  rmsNormOp({ x: t, eps: 1e-5 })
  // @ts-expect-error an attribute is missing
  rmsNormOp({ x: t, w: t })
  // @ts-expect-error an attribute is a number
  rmsNormOp({ x: t, w: t, eps: t })
  // @ts-expect-error an input is a tensor
  rmsNormOp({ x: 1, w: t, eps: 1e-5 })
  // @ts-expect-error there is no such argument
  rmsNormOp({ x: t, w: t, eps: 1e-5, epsilon: 1 })
  // @ts-expect-error there is no such result
  rmsNormOp({ x: t, w: t, eps: 1e-5 }).z
  // @ts-expect-error an optional result may be absent
  const entropy: Tensor = ({} as Results<'x[N] -> entropy[N]?', Tensor>).entropy
  void entropy
}

export function wrongDefinitions(): void {
  const signature = 'x[N,D] w[D] -> y[N,D] | eps'
  // @ts-expect-error the reference must return what the signature names
  defineOp({ name: 'a', signature, reference: ({ x }) => ({ z: x }), samples: [] })
  // @ts-expect-error the reference gets what the signature names
  defineOp({ name: 'b', signature, reference: ({ bias }) => ({ y: bias }), samples: [] })
  // @ts-expect-error only arguments and results can be saved
  defineOp({ name: 'c', signature, saved: ['q'], samples: [] })
  // @ts-expect-error what was not saved cannot be read
  defineOp({ name: 'd', signature, saved: ['x'], backward: ({ y }, { w }) => ({ x: y, w }), samples: [] })
  // @ts-expect-error a gradient must be of an input
  defineOp({ name: 'e', signature, backward: ({ y }) => ({ y }), samples: [] })
}
