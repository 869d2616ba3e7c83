// From a row of the op table and one of its benchmark samples to a call on a device: sizes, random data, and how many
// bytes and operations the call stands for. The bytes are those of the signature: each argument read once, each result
// written once, and arguments that are updated in place both.
import { type DType, dtypeBytes } from '../base/dtype.js'
import { f32ToBf16 } from '../base/half.js'
import { Random } from '../base/random.js'
import { countOf, type Shape } from '../base/shape.js'
import type { Argument } from '../base/signature.js'
import { attentionOp, cast, fill, linearLogprobOp, randomNormal } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep, type Op, type Sample, scope, Tensor } from '../tensor/index.js'

export interface BenchCall {
  /** Runs the op once. */
  run: () => unknown
  /** The tensors that the call reads, by name; the caller disposes them. */
  inputs: Map<string, Tensor>
  /** Read and written. */
  bytes: number
  /** Of them, those that are written. */
  written: number
  /** Undefined where the op does not say. */
  flops: number | undefined
}

/** Tables of which a call reads as many rows as it writes, so that the output's bytes are counted twice instead. */
const readInPart = new Set(['embedding.w'])

/** Whether the kernels of `op` take `dtype`. */
export function takesDtype(op: Op, dtype: DType): boolean {
  return (op.definition.dtypes ?? ['f32', 'bf16']).includes(dtype)
}

/** The call that `sample` describes, with random data made on `device`; different data for another `set`. */
export function benchCall(
  op: Op,
  sample: Sample,
  { device, dtype, set = 0 }: { device: Device; dtype: DType; set?: number },
): BenchCall {
  const random = new Random(1, 11)
  const given = op.definition.data?.(sample, random) as { [name: string]: Float64Array | Int32Array } | undefined
  const inputs = new Map<string, Tensor>()
  let stream = 100 * set
  let [bytes, written] = [0, 0]
  for (const argument of op.parsed.inputs) {
    if (argument.optional && !sample[`with_${argument.name}`]) continue
    const shape = shapeOf(argument, sample)
    const type = argument.dtype === undefined || argument.dtype === 'dtype' ? dtype : argument.dtype
    const values = given?.[argument.name]
    const tensor = values
      ? uploaded(device, type, { values, shape })
      : randomTensor(device, type, { shape, stream: ++stream })
    inputs.set(argument.name, tensor)
    if (!readInPart.has(`${op.definition.name}.${argument.name}`)) bytes += tensor.bytes * (argument.inPlace ? 2 : 1)
    if (argument.inPlace) written += tensor.bytes
  }
  const attributes: { [name: string]: number } = {}
  for (const name of op.parsed.attributes) attributes[name] = Number(sample[name])
  giveForwardResults(op.definition.name, inputs, attributes)
  const call = { ...Object.fromEntries(inputs), ...attributes }
  const shapes = op.definition.shapes?.(call as never) as { [name: string]: Shape } | undefined
  const hasPartlyRead = op.parsed.inputs.some(({ name }) => readInPart.has(`${op.definition.name}.${name}`))
  for (const output of op.parsed.outputs) {
    if (output.optional && !sample[`with_${output.name}`]) continue
    const shape = output.dims ? shapeOf(output, sample) : (shapes?.[output.name] ?? largestShape(inputs))
    const type = output.dtype === undefined || output.dtype === 'dtype' ? dtype : output.dtype
    const size = countOf(shape) * dtypeBytes[type]
    bytes += size * (hasPartlyRead ? 2 : 1)
    written += size
  }
  const flops = op.definition.flops?.({ ...sizesOf(sample), rows: countOf(leadOf(sample)) })
  return { run: () => op(call as never), inputs, bytes, written, flops }
}

/** Random numbers in place of a log-sum-exp would make a backward pass compute with infinities. */
function giveForwardResults(op: string, inputs: Map<string, Tensor>, attributes: { [name: string]: number }): void {
  const given = { ...Object.fromEntries(inputs), ...attributes } as never
  const made = scope((): { o?: Tensor; lse?: Tensor } => {
    if (op === 'attention_backward') return attentionOp(given)
    if (!op.startsWith('linear_logprob_backward')) return {}
    return { lse: linearLogprobOp(Object.assign(given, { with_entropy: 0 })).lse }
  })
  for (const [name, tensor] of Object.entries(made)) {
    inputs.get(name)?.dispose()
    inputs.set(name, keep(tensor))
  }
}

function leadOf(sample: Sample): number[] {
  return sample.lead ?? (typeof sample.N === 'number' ? [sample.N] : [1])
}

function shapeOf(argument: Argument, sample: Sample): number[] {
  if (!argument.dims) return sample.shapes?.[argument.name] ?? []
  return argument.dims.flatMap((dim) => {
    if (dim === '*') return leadOf(sample)
    return Number.isInteger(Number(dim)) ? Number(dim) : (sample[dim] as number)
  })
}

/** The output of an op on `[...]` arguments: for elementwise ops the largest of them. */
function largestShape(inputs: ReadonlyMap<string, Tensor>): Shape {
  let largest: Shape = []
  for (const { shape } of inputs.values()) if (countOf(shape) >= countOf(largest)) largest = shape
  return largest
}

function sizesOf(sample: Sample): { [letter: string]: number } {
  const sizes: { [letter: string]: number } = {}
  for (const [key, value] of Object.entries(sample)) if (typeof value === 'number') sizes[key] = value
  return sizes
}

function uploaded(
  device: Device,
  dtype: DType,
  { values, shape }: { values: ArrayLike<number>; shape: Shape },
): Tensor {
  if (dtype === 'i32') return keep(Tensor.from(device, Int32Array.from(values), shape))
  if (dtype === 'f64') return keep(Tensor.from(device, Float64Array.from(values), shape))
  const numbers = Float32Array.from(values)
  return keep(Tensor.from(device, dtype === 'bf16' ? f32ToBf16(numbers) : numbers, shape))
}

function randomTensor(device: Device, dtype: DType, { shape, stream }: { shape: Shape; stream: number }): Tensor {
  if (dtype === 'i32' || dtype === 'u8') return keep(fill(device, shape, { value: 0, dtype }))
  const isNative = dtype === 'f32' || dtype === 'bf16'
  const made = randomNormal(device, shape, { deviation: 1, seed: 1, stream, dtype: isNative ? dtype : 'f32' })
  if (isNative) return keep(made)
  const converted = keep(cast(made, dtype))
  made.dispose()
  return converted
}

/** A sample in short: `rows=512 D=768 F=3072`. */
export function sampleText(sample: Sample): string {
  const parts: string[] = []
  for (const [key, value] of Object.entries(sample)) {
    if (
      typeof value === 'number' &&
      !/^(with_|plain$|chunk_bytes$|eps$|scale$|window$|z_loss$|transpose_|beta|weight_decay$|direction$)/.test(key)
    )
      parts.push(`${key}=${value}`)
    else if (key === 'lead') parts.push((value as number[]).join('x'))
    else if (key === 'shapes') {
      for (const [name, shape] of Object.entries(value as { [name: string]: number[] }))
        parts.push(`${name}=${shape.join('x')}`)
    }
  }
  return parts.join(' ')
}
