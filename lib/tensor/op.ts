// An op is declared once: its signature, its definition in terms of simpler ops, its gradient, its test sizes. From
// that row come argument types, checks and messages, output allocation, the tape record, parity and gradient tests, the
// micro-benchmark and the documentation.
import { type DType, dtypeOf, isFloating } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import { type Shape, shapeText } from '../base/shape.js'
import {
  type Argument,
  type Arguments,
  type InputNames,
  type OutputNames,
  parseSignature,
  type Results,
  type Signature,
} from '../base/signature.js'
import type { Device } from '../runtime/index.js'
import { type Into, recordingTape, withoutTape } from './tape.js'
import { Tensor } from './tensor.js'

/** Sizes for one test of an op: shape letters and attributes by name. `lead` is what `*` stands for (default [N] when N
 *  is given, else [2,3]); `shapes` gives arguments written `[...]`. */
export interface Sample {
  [name: string]: number | boolean | number[] | { [argument: string]: number[] } | undefined
  lead?: number[]
  shapes?: { [argument: string]: number[] }
  /** Used by the micro-benchmark, not by the tests. */
  bench?: boolean
}

export type Call<S extends string> = Arguments<S, Tensor>
type Attributes<S extends string> = Omit<Call<S>, InputNames<S>>
/** What a backward function reads: the tensors named in `saved`, and all attributes. */
export type Saved<S extends string, K extends InputNames<S> | OutputNames<S>> = { [N in K]: Tensor } & Attributes<S>

/** What a backward function may ask about an input. */
export interface Flow<Name extends string = string> {
  /** Whether a gradient for this input is wanted at all. */
  wants(name: Name): boolean
  /** Hands over the gradient that the input already has, to be added to in the same pass: the result must be the sum.
   *  Undefined when there is none, or when it may not be overwritten. */
  into(name: Name): Tensor | undefined
}

export interface OpDefinition<S extends string, K extends InputNames<S> | OutputNames<S>> {
  name: string
  signature: S
  /** The op in terms of simpler ones: what it means, its oracle in f64, and what runs where there is no kernel. */
  reference?: (call: Call<S>) => Partial<Results<S, Tensor>>
  /** Names of the inputs and outputs that the backward pass reads. */
  saved?: readonly K[]
  /** Gradients of the inputs from those of the outputs. */
  backward?: (
    gradients: { [N in OutputNames<S>]?: Tensor },
    saved: Saved<S, K>,
    flow: Flow<InputNames<S>>,
  ) => { [N in InputNames<S>]?: Tensor | undefined }
  /** Shapes of outputs written `[...]`; throws ERR_SHAPE when the inputs do not fit. */
  shapes?: (call: Call<S>) => { [N in OutputNames<S>]?: Shape }
  /** Common dtypes that the kernels take; default f32 and bf16. Others run the reference. */
  dtypes?: readonly DType[]
  /** Inputs without a fixed dtype need not agree (add_into: bf16 terms into an f32 sum). */
  mixed?: boolean
  /** Test data that random numbers would not give: indices, segments, masks. By input name. */
  data?: (sample: Sample, draw: SampleDraw) => { [N in InputNames<S>]?: Float64Array | Int32Array }
  /** Inputs for which the op has no gradient although others do (targets, tables). Checked by the gradient test. */
  constant?: readonly InputNames<S>[]
  /** Outputs that serve the backward pass alone: it is an error when a gradient arrives for one. */
  auxiliary?: readonly OutputNames<S>[]
  /** Floating-point operations of one call, for GFLOP/s in the benchmark. Bytes come from the signature. */
  flops?: (sizes: { [letter: string]: number }) => number
  samples: readonly Sample[]
}

/** Random numbers for test data. */
export interface SampleDraw {
  integer(low: number, high: number): number
  normal(): number
}

/** A declared op: call it with named arguments. */
export interface Op<S extends string = string> {
  (call: Call<S>): Results<S, Tensor>
  definition: OpDefinition<S, InputNames<S> | OutputNames<S>>
  parsed: Signature
}

const registry = new Map<string, Op>()

/** Every declared op by name, for the tests, the benchmark, the documentation and the handshake. */
export function declaredOps(): ReadonlyMap<string, Op> {
  return registry
}

/** Declares an op. */
export function defineOp<const S extends string, const K extends InputNames<S> | OutputNames<S> = never>(
  definition: OpDefinition<S, K>,
): Op<S> {
  const parsed = parseSignature(definition.signature)
  const inputNames = new Set(parsed.inputs.map((input) => input.name))
  const op = ((call: Call<S>) => run(op as unknown as Op, inputNames, call as AnyCall)) as Op<S>
  op.definition = definition as unknown as Op<S>['definition']
  op.parsed = parsed
  registry.set(definition.name, op as unknown as Op)
  return op
}

type AnyCall = { [name: string]: Tensor | number | undefined }
type AnyResult = { [name: string]: Tensor | undefined }

/** Dtypes that all primitives take, so that a reference can run in them. */
const composable: readonly DType[] = ['f32', 'bf16', 'f64']

function run(op: Op, inputNames: Set<string>, call: AnyCall): AnyResult {
  const checked = check(op, call)
  const { device, dtype } = checked
  const index = device.opIndex(op.definition.name)
  const dtypes = op.definition.dtypes ?? ['f32', 'bf16']
  if (index === undefined || !dtypes.includes(dtype)) {
    if (op.definition.reference && composable.includes(dtype))
      return op.definition.reference(call as never) as AnyResult
    throw new CaravanError('ERR_DTYPE', `${op.definition.name}: no kernel for ${dtype} on device ${device.kind}`)
  }
  const results: AnyResult = {}
  const outputs = op.parsed.outputs.map((output) => {
    const place = checked.outputs.get(output.name)
    if (!place) return { id: 0, dtype: 'f32' as const, shape: [] }
    const tensor = Tensor.declare(device, place.dtype, place.shape)
    results[output.name] = tensor
    return tensor
  })
  device.op(index, {
    inputs: op.parsed.inputs.map((input) => (call[input.name] as Tensor | undefined)?.id ?? 0),
    outputs,
    attributes: op.parsed.attributes.map((name) => call[name] as number),
  })
  record(op, { call, results, inputNames })
  return results
}

function record(op: Op, { call, results, inputNames }: { call: AnyCall; results: AnyResult; inputNames: Set<string> }) {
  const tape = recordingTape()
  const { backward, saved = [] } = op.definition
  if (!tape) return
  const inputs = op.parsed.inputs.map((input) => call[input.name] as Tensor | undefined)
  if (!inputs.some((input) => input?.tracked)) return
  if (!backward) {
    throw new CaravanError('ERR_INTERNAL', `${op.definition.name} has no gradient; run it outside the tape`)
  }
  const kept: AnyCall = {}
  for (const name of op.parsed.attributes) kept[name] = call[name]
  for (const name of saved) kept[name] = inputNames.has(name) ? call[name] : results[name]
  const outputNames = op.parsed.outputs.map((output) => output.name)
  const backwardOf = backward as (g: AnyResult, s: AnyCall, flow: Flow) => AnyResult
  tape.add({
    name: op.definition.name,
    inputs,
    outputs: outputNames.map((name) => (isFloating(results[name]?.dtype ?? 'i32') ? results[name] : undefined)),
    saved: saved.map((name) => kept[name]).filter((value): value is Tensor => value instanceof Tensor),
    backward(gradients, into: Into) {
      const incoming: AnyResult = {}
      for (const [i, name] of outputNames.entries()) incoming[name] = gradients[i]
      refuseAuxiliary(op, incoming)
      const outgoing = backwardOf(incoming, kept, {
        wants: (name) => (call[name] as Tensor | undefined)?.tracked ?? false,
        into: (name) => into(call[name] as Tensor | undefined),
      })
      return op.parsed.inputs.map((input) => outgoing[input.name])
    },
  })
}

/** Better no gradient at all than one that silently misses a term. */
function refuseAuxiliary(op: Op, incoming: AnyResult): void {
  const name = op.definition.auxiliary?.find((output) => incoming[output])
  if (name === undefined) return
  throw new CaravanError('ERR_INTERNAL', `${op.definition.name}: no gradient flows through its result '${name}'`, {
    hint: 'compute that quantity from differentiable ops, or run it under withoutTape()',
  })
}

// ---- checks
// ----------------------------------------------------------------------------------------------------------

interface Checked {
  device: Device
  dtype: DType
  outputs: Map<string, { dtype: DType; shape: Shape }>
}

/** Binds shape letters, checks every argument, and works out the outputs. */
function check(op: Op, call: AnyCall): Checked {
  const { name } = op.definition
  const bound = new Map<string, { value: number; by: string }>()
  let lead: { shape: Shape; by: string } | undefined
  let device: Device | undefined
  let common: { dtype: DType; by: string } | undefined
  for (const input of op.parsed.inputs) {
    const tensor = call[input.name]
    if (tensor === undefined && input.optional) continue
    if (!(tensor instanceof Tensor)) throw new CaravanError('ERR_SHAPE', `${name}: argument '${input.name}' is missing`)
    tensor.assertAlive()
    if (device && tensor.device !== device) {
      throw new CaravanError('ERR_DEVICE', `${name}: '${input.name}' is on another device than the arguments before it`)
    }
    device = tensor.device
    if (input.dtype === undefined) {
      common ??= { dtype: tensor.dtype, by: input.name }
      if (common.dtype !== tensor.dtype && !op.definition.mixed) {
        throw new CaravanError(
          'ERR_DTYPE',
          `${name}: ${input.name} must be ${common.dtype} to match ${common.by}; got ${tensor.dtype}`,
        )
      }
    }
    lead = bindShape(op, { input, tensor, bound, lead, call })
  }
  for (const attribute of op.parsed.attributes) {
    if (typeof call[attribute] !== 'number') {
      throw new CaravanError('ERR_SHAPE', `${name}: attribute '${attribute}' must be a number, got ${call[attribute]}`)
    }
    if (!bound.has(attribute)) bound.set(attribute, { value: call[attribute], by: attribute })
  }
  device ??= call.device as unknown as Device | undefined
  if (!device) throw new CaravanError('ERR_INTERNAL', `${name}: an op without inputs needs a device`)
  const dtype = common?.dtype ?? 'f32'
  checkFixedDtypes(op, call, dtype)
  const outputs = outputPlaces(op, { call, bound, lead: lead?.shape ?? [], dtype })
  return { device, dtype, outputs }
}

interface Binding {
  input: Argument
  tensor: Tensor
  bound: Map<string, { value: number; by: string }>
  lead: { shape: Shape; by: string } | undefined
  call: AnyCall
}

function bindShape(op: Op, { input, tensor, bound, lead, call }: Binding): Binding['lead'] {
  if (!input.dims) return lead
  const fixed = input.dims[0] === '*' ? input.dims.slice(1) : input.dims
  const leading = tensor.shape.slice(0, tensor.shape.length - fixed.length)
  const misfit = () => shapeError(op, { input, tensor, call })
  if (tensor.shape.length < fixed.length) throw misfit()
  if (input.dims[0] === '*') {
    lead ??= { shape: leading, by: input.name }
    if (leading.length !== lead.shape.length || leading.some((n, i) => n !== lead!.shape[i])) throw misfit()
  } else if (leading.length > 0) throw misfit()
  for (const [i, dim] of fixed.entries()) {
    const size = tensor.shape[leading.length + i]!
    const literal = Number(dim)
    if (Number.isInteger(literal)) {
      if (size !== literal) throw misfit()
      continue
    }
    const before = bound.get(dim)
    if (before && before.value !== size) throw misfit()
    if (!before) bound.set(dim, { value: size, by: input.name })
  }
  return lead
}

/** `rms_norm: w must be [D]=[2048] to match x[*,D]=[512,2048]; got [1024]` */
function shapeError(op: Op, { input, tensor, call }: Pick<Binding, 'input' | 'tensor' | 'call'>): CaravanError {
  const sizes = new Map<string, number>()
  let witness = ''
  for (const other of op.parsed.inputs) {
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
    `${op.definition.name}: ${input.name} must be ${rule}${witness}; got ${shapeText(tensor.shape)}`,
    { details: { op: op.definition.name, argument: input.name, shape: tensor.shape } },
  )
}

function checkFixedDtypes(op: Op, call: AnyCall, common: DType): void {
  for (const input of op.parsed.inputs) {
    const tensor = call[input.name]
    if (!(tensor instanceof Tensor) || input.dtype === undefined) continue
    const wanted = fixedDtype(input, call, common)
    if (tensor.dtype !== wanted) {
      throw new CaravanError('ERR_DTYPE', `${op.definition.name}: ${input.name} must be ${wanted}, got ${tensor.dtype}`)
    }
  }
}

/** In a test in f64 everything that is f32 otherwise is f64. */
function fixedDtype(argument: Argument, call: AnyCall, common: DType): DType {
  if (argument.dtype === undefined) return common
  if (argument.dtype === 'dtype') return dtypeOf(call.dtype as number)
  return argument.dtype === 'f32' && common === 'f64' ? 'f64' : argument.dtype
}

function outputPlaces(
  op: Op,
  { call, bound, lead, dtype }: { call: AnyCall; bound: Binding['bound']; lead: Shape; dtype: DType },
): Checked['outputs'] {
  const places: Checked['outputs'] = new Map()
  const free = op.definition.shapes?.(call as never) as { [name: string]: Shape } | undefined
  for (const output of op.parsed.outputs) {
    if (output.optional && !call[`with_${output.name}`]) continue
    const shape = output.dims ? output.dims.flatMap((dim) => sizeOf(op, dim, bound, lead)) : free?.[output.name]
    if (!shape) throw new CaravanError('ERR_INTERNAL', `${op.definition.name}: no shape for output ${output.name}`)
    places.set(output.name, { dtype: fixedDtype(output, call, dtype), shape })
  }
  return places
}

function sizeOf(op: Op, dim: string, bound: Binding['bound'], lead: Shape): number | Shape {
  if (dim === '*') return lead
  const literal = Number(dim)
  if (Number.isInteger(literal)) return literal
  const size = bound.get(dim)?.value
  if (size === undefined) throw new CaravanError('ERR_INTERNAL', `${op.definition.name}: nothing gives size ${dim}`)
  return size
}

/** Runs the reference of `op` outside any tape: the oracle of its tests. */
export function runReference(op: Op, call: AnyCall): AnyResult {
  if (!op.definition.reference) throw new CaravanError('ERR_INTERNAL', `${op.definition.name} has no reference`)
  return withoutTape(() => op.definition.reference!(call as never) as AnyResult)
}
