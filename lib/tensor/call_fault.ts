// What is wrong with a call of an op. Runs only after a call was found not to fit (call_plan.ts), so it may take its
// time to name the argument, the rule with letters and numbers, and what came.
import type { DType } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import { type Shape, shapeText } from '../base/shape.js'
import type { Argument, Signature } from '../base/signature.js'
import { type AnyCall, isSize, settledDtype } from './call_plan.js'
import { Tensor } from './tensor.js'

interface Called {
  /** Name of the op. */
  name: string
  signature: Signature
  mixed: boolean
  call: AnyCall
}

/** Checks every argument in the order of the signature and throws at the first fault. Errors: ERR_SHAPE, ERR_DTYPE,
 *  ERR_DEVICE, ERR_DISPOSED. */
export function refuseFaulty(called: Called): void {
  const { name, signature, call } = called
  const common = refuseFaultyInputs(called)
  for (const attribute of signature.attributes) {
    const value = call[attribute]
    if (typeof value !== 'number') {
      throw new CaravanError('ERR_SHAPE', `${name}: attribute '${attribute}' must be a number, got ${value}`)
    }
    if (givesSize(signature, attribute) && !isSize(value)) {
      throw new CaravanError('ERR_SHAPE', `${name}: ${attribute} is a size and must be a whole number, got ${value}`)
    }
  }
  if (signature.inputs.every((input) => call[input.name] === undefined) && !call.device) {
    throw new CaravanError('ERR_INTERNAL', `${name}: an op without inputs needs a device`)
  }
  for (const input of signature.inputs) {
    const tensor = call[input.name]
    if (!(tensor instanceof Tensor) || input.dtype === undefined) continue
    const wanted = settledDtype(input.dtype, call, common)
    if (tensor.dtype !== wanted) {
      throw new CaravanError('ERR_DTYPE', `${name}: ${input.name} must be ${wanted}, got ${tensor.dtype}`)
    }
  }
}

/** Whether `attribute` is the only place a letter of the outputs can come from. */
function givesSize({ inputs, outputs }: Signature, attribute: string): boolean {
  const has = (argument: Argument) => argument.dims?.includes(attribute) ?? false
  return outputs.some(has) && !inputs.some(has)
}

/** The common dtype of inputs that all fit. */
function refuseFaultyInputs(called: Called): DType {
  const { name, signature, mixed, call } = called
  const sizes = new Map<string, number>()
  let lead: Shape | undefined
  let before: Tensor | undefined
  let common: { dtype: DType; by: string } | undefined
  for (const input of signature.inputs) {
    const tensor = call[input.name]
    if (tensor === undefined && input.optional) continue
    if (!(tensor instanceof Tensor)) throw new CaravanError('ERR_SHAPE', `${name}: argument '${input.name}' is missing`)
    tensor.assertAlive()
    if (before && tensor.device !== before.device) {
      throw new CaravanError('ERR_DEVICE', `${name}: '${input.name}' is on another device than the arguments before it`)
    }
    before = tensor
    if (input.dtype === undefined) {
      common ??= { dtype: tensor.dtype, by: input.name }
      if (common.dtype !== tensor.dtype && !mixed) {
        throw new CaravanError(
          'ERR_DTYPE',
          `${name}: ${input.name} must be ${common.dtype} to match ${common.by}; got ${tensor.dtype}`,
        )
      }
    }
    lead = refuseFaultyShape(called, { input, tensor, sizes, lead })
  }
  return common?.dtype ?? 'f32'
}

interface Checked {
  input: Argument
  tensor: Tensor
  sizes: Map<string, number>
  /** What `*` stands for, once known. */
  lead: Shape | undefined
}

function refuseFaultyShape(called: Called, { input, tensor, sizes, lead }: Checked): Shape | undefined {
  if (!input.dims) return lead
  const leads = input.dims[0] === '*'
  const fixed = leads ? input.dims.slice(1) : input.dims
  const leading = tensor.shape.slice(0, Math.max(0, tensor.shape.length - fixed.length))
  const known = leads ? (lead ?? leading) : []
  const sameLead = leading.length === known.length && leading.every((n, i) => n === known[i])
  if (tensor.shape.length < fixed.length || !sameLead) throw shapeFault(called, input, tensor)
  for (const [i, dim] of fixed.entries()) {
    const size = tensor.shape[leading.length + i]!
    const wanted = Number.isInteger(Number(dim)) ? Number(dim) : sizes.get(dim)
    if (wanted !== undefined && wanted !== size) throw shapeFault(called, input, tensor)
    sizes.set(dim, size)
  }
  return leads ? known : lead
}

/** `rms_norm: w must be [D]=[2048] to match x[*,D]=[512,2048]; got [1024]` */
function shapeFault({ name, signature, call }: Called, input: Argument, tensor: Tensor): CaravanError {
  const sizes = new Map<string, number>()
  let witness = ''
  for (const other of signature.inputs) {
    if (other.name === input.name) break
    const given = call[other.name]
    if (!(given instanceof Tensor) || !other.dims) continue
    const fixed = other.dims[0] === '*' ? other.dims.slice(1) : other.dims
    const start = given.shape.length - fixed.length
    for (const [i, dim] of fixed.entries()) if (!sizes.has(dim)) sizes.set(dim, given.shape[start + i]!)
    if (other.dims[0] === '*' && !sizes.has('*'))
      sizes.set(
        '*',
        given.shape.slice(0, start).reduce((a, b) => a * b, 1),
      )
    if (other.dims.some((dim) => input.dims!.includes(dim))) {
      witness = ` to match ${other.name}[${other.dims.join(',')}]=${shapeText(given.shape)}`
    }
  }
  const wanted = input.dims!.map((dim) => sizes.get(dim) ?? dim)
  const rule = `[${input.dims!.join(',')}]${witness ? `=[${wanted.join(',')}]` : ''}`
  return new CaravanError(
    'ERR_SHAPE',
    `${name}: ${input.name} must be ${rule}${witness}; got ${shapeText(tensor.shape)}`,
    { details: { op: name, argument: input.name, shape: tensor.shape } },
  )
}
