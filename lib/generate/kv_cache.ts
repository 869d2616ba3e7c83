// Keys and values of all sequences that are being generated, in pages of 64 tokens that may lie anywhere. A page is one
// block of the attention kernel, which counts blocks from the first key of a sequence, so paging changes no bit; and
// pages of a common prompt are shared by all samples of it, which contiguous stretches could not do without copying.
import type { KeyValueStore } from '../nn/attention.js'
import type { DecoderShape } from '../nn/decoder_shape.js'
import { type AttentionOptions, attentionPaged, embedding, PAGE_KEYS, scatterRows } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep, reshape, scope, Tensor } from '../tensor/index.js'

/** Pages that `tokens` keys fill. */
export function pagesFor(tokens: number): number {
  return Math.ceil(tokens / PAGE_KEYS)
}

/** Bytes of a cache of `pages` for `shape` in a dtype of `elementBytes`. */
export function cacheBytes(shape: DecoderShape, pages: number, elementBytes: number): number {
  return 2 * shape.L * pages * PAGE_KEYS * shape.K * shape.C * elementBytes
}

/** Where the rows of a forward pass go and which pages its sequences read. */
export interface CachePlaces {
  /** [N] i32: one row of the cache for each row. */
  rows: Tensor
  /** [M] i32: the pages of all sequences of the pass, one after the other. */
  pages: Tensor
}

interface Layer {
  /** [pages * 64, K * C] */
  rows: Tensor
  /** The same memory as [pages, 64, K, C]. */
  pages: Tensor
}

export class KeyValueCache implements KeyValueStore {
  readonly #keys: Layer[]
  readonly #values: Layer[]
  #places: CachePlaces | undefined

  constructor(
    device: Device,
    private readonly shape: DecoderShape,
    options: { pages: number; dtype: 'f32' | 'bf16' },
  ) {
    const { K, C, L } = shape
    const layer = (): Layer => {
      const rows = keep(Tensor.empty(device, options.dtype, [options.pages * PAGE_KEYS, K * C]))
      return { rows, pages: keep(reshape(rows, [options.pages, PAGE_KEYS, K, C])) }
    }
    this.#keys = Array.from({ length: L }, layer)
    this.#values = Array.from({ length: L }, layer)
  }

  /** Says where the coming forward pass writes and reads. */
  place(places: CachePlaces): void {
    this.#places = places
  }

  attend(
    layer: number,
    { q, k, v, segments }: { q: Tensor; k: Tensor; v: Tensor; segments: Tensor },
    options: AttentionOptions,
  ): Tensor {
    const keys = this.#write(this.#keys[layer]!, k)
    const values = this.#write(this.#values[layer]!, v)
    return attentionPaged(q, { k: keys, v: values, segments, pages: this.#places!.pages }, options)
  }

  /** Copies rows `from` [N] to rows `to` [N] (i32) in every layer. */
  copy(from: Tensor, to: Tensor): void {
    for (const { rows } of [...this.#keys, ...this.#values]) {
      scope(() => scatterRows(rows, embedding(from, rows), to))
    }
  }

  dispose(): void {
    for (const { rows, pages } of [...this.#keys, ...this.#values]) {
      pages.dispose()
      rows.dispose()
    }
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #write(buffer: Layer, rows: Tensor): Tensor {
    const { K, C } = this.shape
    scatterRows(buffer.rows, reshape(rows, [rows.shape[0]!, K * C]), this.#places!.rows)
    return buffer.pages
  }
}
