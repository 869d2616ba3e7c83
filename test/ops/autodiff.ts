// Gradients of an op or of its reference by the tape, for the tests.
import { isFloating } from '../../lib/base/dtype.js'
import { Random } from '../../lib/base/random.js'
import type { Device } from '../../lib/runtime/index.js'
import { Gradients, type Op, scope, Tape, type Tensor } from '../../lib/tensor/index.js'
import { type AnyCall, rounded, type Tensors, tensorsOf, upload } from '../../lib/tensor/sample_call.js'

/** Results of `op` through which a gradient flows. */
export function differentiable(op: Op, results: { [name: string]: Tensor | undefined }): Tensors {
  const skipped: readonly string[] = op.definition.auxiliary ?? []
  return Object.fromEntries(tensorsOf(results).filter(([name]) => !skipped.includes(name)))
}

/** Names of the arguments of `op` for which it has a gradient. */
export function variableInputs(op: Op, call: AnyCall): string[] {
  const constant = (op.definition.constant ?? []) as readonly string[]
  return tensorsOf(call)
    .filter(([name, tensor]) => isFloating(tensor.dtype) && !constant.includes(name))
    .map(([name]) => name)
}

/**
 * The gradient of differentiable output number `index`: random, and the same in every dtype that a sample is run in.
 */
export function seedValues(count: number, index: number): Float64Array {
  const random = new Random(11, index)
  return Float64Array.from({ length: count }, () => rounded(random.normal(), 'bf16'))
}

/** Gradients of all variable inputs of `body`, by input name, under random output gradients. */
export async function gradientsBy(
  device: Device,
  op: Op,
  call: AnyCall,
  body: (call: AnyCall) => { [name: string]: Tensor | undefined },
): Promise<{ values: Map<string, Float64Array>; dtypes: Map<string, Tensor['dtype']> }> {
  const names = variableInputs(op, call)
  for (const name of names) (call[name] as Tensor).tracked = true
  const gradients = new Gradients()
  scope(() => {
    const tape = new Tape()
    const outputs = Object.values(tape.record(() => differentiable(op, body(call))))
    const seeds = outputs.map((output, i) => upload(device, output.dtype, seedValues(output.count, i), output.shape))
    for (const [i, output] of outputs.entries()) if (i > 0) gradients.accumulate(output, seeds[i]!)
    tape.backward(outputs[0]!, seeds[0]!, gradients)
  })
  const values = new Map<string, Float64Array>()
  const dtypes = new Map<string, Tensor['dtype']>()
  for (const name of names) {
    const gradient = gradients.get(call[name] as Tensor)
    if (!gradient) continue
    dtypes.set(name, gradient.dtype)
    values.set(name, Float64Array.from(await gradient.read()))
  }
  gradients.dispose()
  return { values, dtypes }
}
