// From a row of the op table and one of its samples to a call: sizes, data, tensors of a chosen dtype. All values are
// made on the host in f64 and rounded to the dtype under test, so that every run of one sample starts from the same
// numbers.
import { createHash } from 'node:crypto'
import type { DType } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import { bf16BitsToF32, f32ToBf16, f32ToBf16Bits } from '../base/half.js'
import { Random } from '../base/random.js'
import { countOf, type Shape } from '../base/shape.js'
import type { Argument } from '../base/signature.js'
import type { Device } from '../runtime/index.js'
import type { Op, Sample } from './op.js'
import { Tensor, type TypedArray } from './tensor.js'

export type FloatDType = 'f32' | 'bf16' | 'f64'

/** One argument on the host. `dtype` undefined: takes the dtype under test. */
export interface HostArgument {
  name: string
  shape: number[]
  values: Float64Array
  dtype: DType | undefined
}

/** An op with everything that a call of it needs. */
export interface SampleCall {
  op: Op
  sample: Sample
  inputs: HostArgument[]
  attributes: { [name: string]: number }
  /** What ops with free output shapes are told (broadcast_to). */
  shape: Shape | undefined
}

export type Tensors = { [name: string]: Tensor }
export type AnyCall = { [name: string]: Tensor | number | undefined }

/** Calls an op whose type is not known here. */
export function callOp(op: Op, call: AnyCall): Tensors {
  return op(call as never) as unknown as Tensors
}

function leadOf(sample: Sample): number[] {
  return sample.lead ?? (typeof sample.N === 'number' ? [sample.N] : [2, 3])
}

function shapeOf(op: Op, argument: Argument, sample: Sample): number[] {
  if (!argument.dims) {
    const shape = sample.shapes?.[argument.name]
    if (!shape)
      throw new CaravanError('ERR_INTERNAL', `${op.definition.name}: a sample gives no shape for ${argument.name}`)
    return shape
  }
  return argument.dims.flatMap((dim) => {
    if (dim === '*') return leadOf(sample)
    const size = Number.isInteger(Number(dim)) ? Number(dim) : sample[dim]
    if (typeof size !== 'number')
      throw new CaravanError('ERR_INTERNAL', `${op.definition.name}: a sample gives no size ${dim}`)
    return [size]
  })
}

/** The call that `sample` describes. Equal seeds give equal data. */
export function sampleCall(op: Op, sample: Sample, seed = 1): SampleCall {
  const random = new Random(seed, 7)
  const given = op.definition.data?.(sample, random) as { [name: string]: Float64Array | Int32Array } | undefined
  const inputs: HostArgument[] = []
  for (const argument of op.parsed.inputs) {
    if (argument.optional && !sample[`with_${argument.name}`]) continue
    const shape = shapeOf(op, argument, sample)
    const values = given?.[argument.name]
      ? Float64Array.from(given[argument.name]!)
      : Float64Array.from({ length: countOf(shape) }, () => random.normal())
    if (values.length !== countOf(shape))
      throw new CaravanError('ERR_INTERNAL', `${op.definition.name}: data of ${argument.name} do not fit`)
    inputs.push({ name: argument.name, shape, values, dtype: argument.dtype as DType | undefined })
  }
  const attributes: { [name: string]: number } = {}
  for (const name of op.parsed.attributes) attributes[name] = Number(sample[name])
  return { op, sample, inputs, attributes, shape: sample.shapes?.y }
}

/** `value` as the dtype holds it. */
export function rounded(value: number, dtype: DType): number {
  if (dtype === 'f32') return Math.fround(value)
  if (dtype === 'bf16') return bf16BitsToF32(f32ToBf16Bits(value))
  if (dtype === 'i32') return Math.trunc(value)
  return value
}

/** The dtype of an argument when the common one is `common`: in f64 all that is f32 otherwise is f64. */
export function dtypeIn(argument: { dtype: DType | undefined }, common: FloatDType): DType {
  if (argument.dtype === undefined) return common
  return argument.dtype === 'f32' && common === 'f64' ? 'f64' : argument.dtype
}

/** `call` with its values rounded to what a run in `common` would hold. */
export function roundedCall(call: SampleCall, common: FloatDType): SampleCall {
  const inputs = call.inputs.map((input) => ({
    ...input,
    values: input.values.map((value) => rounded(value, dtypeIn(input, common))),
  }))
  return { ...call, inputs }
}

/** Uploads `values` as a tensor of `dtype`. */
export function upload(device: Device, dtype: DType, values: ArrayLike<number>, shape: Shape): Tensor {
  switch (dtype) {
    case 'f32':
      return Tensor.from(device, Float32Array.from(values), shape)
    case 'bf16':
      return Tensor.from(device, f32ToBf16(Float32Array.from(values)), shape)
    case 'f64':
      return Tensor.from(device, Float64Array.from(values), shape)
    case 'i32':
      return Tensor.from(device, Int32Array.from(values), shape)
    default:
      throw new CaravanError('ERR_INTERNAL', `no test data of dtype ${dtype}`)
  }
}

/** The arguments of `call` as tensors: the named inputs, the attributes, the device and shape of source ops. */
export function argumentsOn(device: Device, call: SampleCall, common: FloatDType): AnyCall {
  const result: AnyCall = { ...call.attributes }
  for (const input of call.inputs)
    result[input.name] = upload(device, dtypeIn(input, common), input.values, input.shape)
  if (call.op.parsed.inputs.length === 0) Object.assign(result, { device })
  if (call.shape) Object.assign(result, { shape: call.shape })
  return result
}

/** As argumentsOn, with every floating argument in `dtype`, those of fixed dtype too: what a composition that knows one
 *  dtype only would compute with. */
export function uniformArguments(device: Device, call: SampleCall, dtype: FloatDType): AnyCall {
  const inputs = call.inputs.map((input) => (input.dtype === 'f32' ? { ...input, dtype: undefined } : input))
  return argumentsOn(device, { ...call, inputs }, dtype)
}

/** The tensors among the arguments or results of an op. */
export function tensorsOf(values: { [name: string]: unknown }): [string, Tensor][] {
  return Object.entries(values).filter((entry): entry is [string, Tensor] => entry[1] instanceof Tensor)
}

export function disposeAll(...groups: { [name: string]: unknown }[]): void {
  for (const group of groups) for (const [, tensor] of tensorsOf(group)) tensor.dispose()
}

/** All results of an op as f64 numbers. */
export async function readAll(values: { [name: string]: unknown }): Promise<Map<string, Float64Array>> {
  const entries = tensorsOf(values)
  const arrays = await Promise.all(entries.map(([, tensor]) => tensor.read()))
  return new Map(entries.map(([name], i) => [name, Float64Array.from(arrays[i]!)]))
}

/** The raw bytes of all results, in hexadecimal: equal strings are equal bits. */
export async function bitsOf(values: { [name: string]: unknown }): Promise<{ [name: string]: string }> {
  const bits: { [name: string]: string } = {}
  for (const [name, tensor] of tensorsOf(values)) {
    const raw = await tensor.readRaw()
    bits[name] = Buffer.from(bytesOf(raw)).toString('hex')
  }
  return bits
}

/** A digest of the bytes of all results: equal digests are equal bits. */
export async function digestOf(values: { [name: string]: unknown }): Promise<{ [name: string]: string }> {
  const entries = tensorsOf(values)
  const raws = await Promise.all(entries.map(([, tensor]) => tensor.readRaw()))
  return Object.fromEntries(
    entries.map(([name], i) => [name, createHash('sha256').update(bytesOf(raws[i]!)).digest('base64')]),
  )
}

const bytesOf = (raw: TypedArray) => new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength)

/** The samples of an op that tests run: those of the benchmark are too large. */
export function testSamples(op: Op): Sample[] {
  return op.definition.samples.filter((sample) => !sample.bench)
}

/** A short name of a sample for test titles. */
export function sampleText(sample: Sample): string {
  return JSON.stringify(sample).replaceAll('"', '')
}
