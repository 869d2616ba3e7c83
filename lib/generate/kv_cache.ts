// Keys and values of all sequences that are being generated. A sequence owns a slot, a fixed stretch of rows, so that
// sequences come and go without moving anybody's rows.
import type { KeyValueStore } from '../nn/attention.js'
import type { DecoderShape } from '../nn/decoder_shape.js'
import { scatterRows } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep, reshape, Tensor } from '../tensor/index.js'

export interface CacheSize {
  slots: number
  /** Rows of a slot: the longest sequence that it can hold, in tokens. */
  capacity: number
}

/** Bytes of a cache for `shape` in a dtype of `elementBytes`. */
export function cacheBytes(shape: DecoderShape, { slots, capacity }: CacheSize, elementBytes: number): number {
  return 2 * shape.L * slots * capacity * shape.K * shape.C * elementBytes
}

export class KeyValueCache implements KeyValueStore {
  /** Per layer, [slots * capacity, K * C]. */
  readonly #keys: Tensor[]
  readonly #values: Tensor[]
  #rows: Tensor | undefined

  constructor(
    device: Device,
    private readonly shape: DecoderShape,
    options: CacheSize & { dtype: 'f32' | 'bf16' },
  ) {
    const buffer = () =>
      keep(Tensor.empty(device, options.dtype, [options.slots * options.capacity, shape.K * shape.C]))
    this.#keys = Array.from({ length: shape.L }, buffer)
    this.#values = Array.from({ length: shape.L }, buffer)
  }

  /** Says where the rows of the coming forward pass go: `rows` [N] i32, one cache row for each. */
  writeTo(rows: Tensor): void {
    this.#rows = rows
  }

  append(layer: number, k: Tensor, v: Tensor): { k: Tensor; v: Tensor } {
    return { k: this.#write(this.#keys[layer]!, k), v: this.#write(this.#values[layer]!, v) }
  }

  dispose(): void {
    for (const tensor of [...this.#keys, ...this.#values]) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #write(buffer: Tensor, rows: Tensor): Tensor {
    const { K, C } = this.shape
    scatterRows(buffer, reshape(rows, [rows.shape[0]!, K * C]), this.#rows!)
    return reshape(buffer, [buffer.shape[0]!, K, C])
  }
}
