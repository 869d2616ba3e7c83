// A tensor is a number on a device plus a shape and a dtype. Ownership is explicit: the scope in which a tensor was
// made frees it, the tape keeps what its backward pass needs, `keep()` takes it out of the scope. The garbage collector
// is only a net under that, and its catches are counted.
import { type DType, dtypeBytes } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import { bf16ToF32 } from '../base/half.js'
import { countOf, type Shape, shapeText } from '../base/shape.js'
import type { Device } from '../runtime/index.js'

/** Tensors that nobody disposed and the garbage collector had to free. Must stay 0: a test reads it. */
export const leaks = { caught: 0 }

const net = new FinalizationRegistry<{ device: Device; id: number }>(({ device, id }) => {
  leaks.caught++
  device.free(id)
})

type Scope = Tensor[]
let currentScope: Scope | undefined

export type TypedArray = Float32Array | Float64Array | Int32Array | Uint8Array | Uint16Array

/** n-dimensional array in the memory of a device. Row major, contiguous. */
export class Tensor {
  readonly id: number
  /** True when a gradient must flow to this tensor: a parameter, or something computed from one under a tape. */
  tracked = false
  /** True when every element is known to be 1 (the usual seed of a backward pass), so that products can be skipped. */
  unit = false
  #references = 1

  private constructor(
    readonly device: Device,
    readonly dtype: DType,
    readonly shape: Shape,
  ) {
    this.id = device.newId()
    net.register(this, { device, id: this.id }, this)
    currentScope?.push(this)
  }

  /** A tensor whose memory an op of the stream will fill. For the op layer. */
  static declare(device: Device, dtype: DType, shape: Shape): Tensor {
    return new Tensor(device, dtype, shape)
  }

  /** A tensor with undefined contents. */
  static empty(device: Device, dtype: DType, shape: Shape): Tensor {
    const tensor = new Tensor(device, dtype, shape)
    try {
      device.alloc(tensor.id, dtype, shape)
    } catch (error) {
      tensor.#discard(error)
    }
    return tensor
  }

  /** A tensor with the values of `data` (f32, f64, i32 or u8 by its type; pass `bf16` with the raw 16-bit words). */
  static from(device: Device, data: TypedArray, shape: Shape): Tensor {
    const dtype = dtypeOfArray(data)
    if (countOf(shape) !== data.length) {
      throw new CaravanError('ERR_SHAPE', `${data.length} values do not fill shape ${shapeText(shape)}`)
    }
    const tensor = Tensor.empty(device, dtype, shape)
    device.upload(tensor.id, data)
    return tensor
  }

  /** Another view of the memory of `source` from element `offset` on. */
  static viewOf(source: Tensor, shape: Shape, offset = 0): Tensor {
    source.assertAlive()
    const tensor = new Tensor(source.device, source.dtype, shape)
    try {
      source.device.view(tensor.id, source.id, { dtype: source.dtype, offset, shape })
    } catch (error) {
      tensor.#discard(error)
    }
    return tensor
  }

  /** For a tensor whose making could not be written to the stream: nobody can hold it. */
  #discard(error: unknown): never {
    this.dispose()
    throw error
  }

  get count(): number {
    return countOf(this.shape)
  }

  get bytes(): number {
    return this.count * dtypeBytes[this.dtype]
  }

  get disposed(): boolean {
    return this.#references === 0
  }

  /** Number of owners: 1 means that whoever holds this tensor may overwrite it. */
  get references(): number {
    return this.#references
  }

  /** One more owner. Each retain() needs a dispose(). */
  retain(): this {
    this.assertAlive()
    this.#references++
    return this
  }

  /** One owner less; the last one frees the memory. */
  dispose(): void {
    if (this.#references === 0) return
    if (--this.#references === 0) {
      net.unregister(this)
      this.device.free(this.id)
    }
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  assertAlive(): void {
    if (this.#references === 0) {
      throw new CaravanError('ERR_DISPOSED', `a tensor of shape ${shapeText(this.shape)} was used after it was freed`, {
        hint: 'return it from the scope that made it, or retain() it',
      })
    }
  }

  /** The values: Float32Array for f32 and bf16, Float64Array, Int32Array or Uint8Array for the others. */
  async read(): Promise<Float32Array | Float64Array | Int32Array | Uint8Array> {
    const raw = await this.readRaw()
    return raw instanceof Uint16Array ? bf16ToF32(raw) : raw
  }

  /** The values as they are stored; bf16 as raw 16-bit words. */
  async readRaw(): Promise<TypedArray> {
    return (await readTogether([this]))[0]!
  }

  /** The single value of a tensor with one element. */
  async item(): Promise<number> {
    if (this.count !== 1) throw new CaravanError('ERR_SHAPE', `item() needs one element, got ${shapeText(this.shape)}`)
    return (await this.read())[0]!
  }

  toString(): string {
    return `${this.dtype}${shapeText(this.shape)}`
  }
}

/** The values of tensors of one device as they are stored, in one read: [0] is that of the first. */
export async function readTogether(tensors: readonly [Tensor, ...Tensor[]]): Promise<TypedArray[]> {
  for (const tensor of tensors) tensor.assertAlive()
  const arrays = tensors.map(({ dtype, count }) => newArray(dtype, count))
  const ids = tensors.map(({ id }) => id)
  await tensors[0].device.read(ids, arrays)
  return arrays
}

function dtypeOfArray(data: TypedArray): DType {
  if (data instanceof Float32Array) return 'f32'
  if (data instanceof Float64Array) return 'f64'
  if (data instanceof Int32Array) return 'i32'
  if (data instanceof Uint16Array) return 'bf16'
  return 'u8'
}

function newArray(dtype: DType, count: number): TypedArray {
  switch (dtype) {
    case 'f32':
      return new Float32Array(count)
    case 'f64':
      return new Float64Array(count)
    case 'i32':
      return new Int32Array(count)
    case 'u8':
      return new Uint8Array(count)
    default:
      return new Uint16Array(count)
  }
}

/** Runs `body` and frees every tensor made inside except those in its result (a tensor, or arrays and plain objects of
 *  tensors), which pass to the surrounding scope. `body` must not be async: an await would end it too early. */
export function scope<R>(body: () => R): R {
  const outer = currentScope
  const made: Scope = []
  currentScope = made
  let result: R
  try {
    result = body()
  } catch (error) {
    currentScope = outer
    for (const tensor of made) tensor.dispose()
    throw error
  }
  currentScope = outer
  const kept = new Set<Tensor>()
  collect(result, kept)
  for (const tensor of made) {
    if (!kept.has(tensor)) tensor.dispose()
    else outer?.push(tensor)
  }
  if (result instanceof Promise) throw new CaravanError('ERR_INTERNAL', 'the body of scope() must not be async')
  return result
}

/** Takes `tensor` out of the current scope: the caller owns it and must dispose() it. */
export function keep<T extends Tensor>(tensor: T): T {
  const index = currentScope?.lastIndexOf(tensor) ?? -1
  if (index >= 0) currentScope!.splice(index, 1)
  return tensor
}

function collect(value: unknown, into: Set<Tensor>): void {
  if (value instanceof Tensor) into.add(value)
  else if (Array.isArray(value)) for (const item of value) collect(item, into)
  else if (value !== null && typeof value === 'object' && Object.getPrototypeOf(value) === Object.prototype) {
    for (const item of Object.values(value)) collect(item, into)
  }
}
