// Causal attention over sequences that lie end to end: no padding, grouped key/value heads, optional sliding window,
// and never a T x T matrix in memory. One definition serves training (keys = queries), chunked prefill and decoding
// (few queries against the end of a long key/value buffer).
import { CaravanError } from '../base/errors.js'
import { type Shape, shapeText } from '../base/shape.js'
import { defineOp, reshape, type Sample, type Tensor } from '../tensor/index.js'
import { add, affine, cast, div, exp, greater, iota, log, maximum, mul, sub } from './elementwise.js'
import { embedding } from './embedding.js'
import { gpuSamples } from './gpu_samples.js'
import { matmul } from './matmul.js'
import { broadcastTo, concat, slice, transpose } from './movement.js'
import { max, sum } from './reduce.js'

/** Lengths of test sequences as segments (q_begin, q_end, k_begin, k_end). */
function testSegments(sample: Sample): { segments: Int32Array } {
  const [queries, keys] = [sample.queries as number[], sample.keys as number[]]
  let [q, k] = [0, 0]
  return {
    segments: Int32Array.from(
      queries.flatMap((count, i) => {
        const row = [q, q + count, k, k + keys[i]!]
        q += count
        k += keys[i]!
        return row
      }),
    ),
  }
}

/** 1 where `a` >= `b` for integers held as floats. */
const atLeast = (a: Tensor, b: Tensor) => greater(a, affine(b, 1, -0.5))

/** [N,M]: 1 where query n may see key m, from the segment table alone. */
function visible(N: number, M: number, call: { q: Tensor; segments: Tensor; window: number }): Tensor {
  const { q, segments, window } = call
  const S = segments.shape[0]!
  const column = (i: number) => reshape(slice(cast(segments, q.dtype), { axis: 1, start: i, length: 1 }), [S, 1, 1])
  const [qBegin, qEnd, kBegin, kEnd] = [column(0), column(1), column(2), column(3)]
  const n = reshape(iota(q.device, N, { dtype: q.dtype }), [1, N, 1])
  const m = reshape(iota(q.device, M, { dtype: q.dtype }), [1, 1, M])
  const inside = mul(mul(atLeast(n, qBegin), greater(qEnd, n)), mul(atLeast(m, kBegin), greater(kEnd, m)))
  // Distance from the key to the newest one that this query may see: k_end - q_end + n - m.
  const behind = sub(add(sub(kEnd, qEnd), n), m)
  let allowed = mul(inside, atLeast(behind, affine(behind, 0, 0)))
  if (window > 0) allowed = mul(allowed, greater(affine(behind, 0, window), behind))
  return reshape(sum(allowed, 0), [N, M])
}

/** Heads first, key/value heads repeated for their queries. */
function headsFirst(x: Tensor, repeats: number): Tensor {
  const [N, heads, C] = x.shape as [number, number, number]
  const t = transpose(x, [1, 0, 2])
  if (repeats === 1) return t
  return reshape(broadcastTo(reshape(t, [heads, 1, N, C]), [heads, repeats, N, C]), [heads * repeats, N, C])
}

function checkHeads(name: string, q: Shape, k: Shape): Record<string, never> {
  const [H, K] = [q[1]!, k[1]!]
  if (K === 0 ? H !== 0 : H % K !== 0) {
    throw new CaravanError('ERR_SHAPE', `${name}: H of q[N,H,C]=${shapeText(q)} must be a multiple of K=${K}`)
  }
  return {}
}

function attentionReference(call: {
  q: Tensor
  k: Tensor
  v: Tensor
  segments: Tensor
  scale: number
  window: number
}): { o: Tensor; lse: Tensor } {
  const { q, k, v, segments, scale, window } = call
  const [N, H] = q.shape as [number, number, number]
  const [M, K] = k.shape as [number, number, number]
  const keys = headsFirst(k, H / K)
  const mask = reshape(visible(N, M, { q, segments, window }), [1, N, M])
  const scores = affine(matmul(headsFirst(q, 1), keys, { transposeB: true }), scale, 0) // [H,N,M]
  const masked = add(mul(scores, mask), affine(mask, 1e30, -1e30))
  const peak = max(masked, -1)
  const weights = mul(exp(sub(masked, peak)), mask)
  const total = sum(weights, -1)
  const o = matmul(div(weights, maximum(total, affine(total, 0, 1e-300))), headsFirst(v, H / K))
  return { o: transpose(o, [1, 0, 2]), lse: reshape(transpose(add(peak, log(total)), [1, 0, 2]), [N, H]) }
}

/** The textbook formulas, from the weights that `lse` stands for: dS = P * (do v^T - rowsum(do * o)) scale. */
function attentionBackwardReference(call: {
  do: Tensor
  q: Tensor
  k: Tensor
  v: Tensor
  o: Tensor
  lse: Tensor
  segments: Tensor
  scale: number
  window: number
}): { dq: Tensor; dk: Tensor; dv: Tensor } {
  const { do: dout, q, k, v, o, lse, segments, scale, window } = call
  const [N, H, C] = q.shape as [number, number, number]
  const [M, K] = k.shape as [number, number, number]
  const [queries, slopes] = [headsFirst(q, 1), headsFirst(dout, 1)]
  const [keys, values] = [headsFirst(k, H / K), headsFirst(v, H / K)]
  const mask = reshape(visible(N, M, { q, segments, window }), [1, N, M])
  const scores = affine(matmul(queries, keys, { transposeB: true }), scale, 0) // [H,N,M]
  const logs = sub(add(mul(scores, mask), affine(mask, 1e30, -1e30)), reshape(transpose(lse, [1, 0]), [H, N, 1]))
  const weights = mul(exp(logs), mask)
  const delta = sum(mul(slopes, headsFirst(o, 1)), -1)
  const dweights = matmul(slopes, values, { transposeB: true })
  const dscores = affine(mul(weights, sub(dweights, delta)), scale, 0)
  /** [H,M,C] summed over the query heads of each key/value head, as [M,K,C]. */
  const grouped = (x: Tensor) => transpose(reshape(sum(reshape(x, [K, H / K, M, C]), 1), [K, M, C]), [1, 0, 2])
  return {
    dq: transpose(matmul(dscores, keys), [1, 0, 2]),
    dk: grouped(matmul(dscores, queries, { transposeA: true })),
    dv: grouped(matmul(weights, slopes, { transposeA: true })),
  }
}

const samples: readonly Sample[] = [
  { N: 6, M: 6, H: 2, K: 1, C: 4, S: 2, queries: [4, 2], keys: [4, 2], scale: 0.5, window: 0 },
  { N: 9, M: 9, H: 4, K: 2, C: 8, S: 1, queries: [9], keys: [9], scale: 0.35, window: 3 },
  { N: 70, M: 70, H: 2, K: 2, C: 17, S: 2, queries: [67, 3], keys: [67, 3], scale: 0.25, window: 0 },
  { N: 3, M: 140, H: 2, K: 1, C: 16, S: 2, queries: [1, 2], keys: [130, 10], scale: 0.25, window: 0 },
  { N: 1, M: 1, H: 1, K: 1, C: 1, S: 1, queries: [1], keys: [1], scale: 1, window: 0 },
  // Head widths that tensor cores serve: several tiles and segments, a window, groups of heads, more keys than queries.
  { N: 150, M: 150, H: 4, K: 2, C: 64, S: 3, queries: [100, 1, 49], keys: [100, 1, 49], scale: 0.125, window: 0 },
  { N: 90, M: 147, H: 3, K: 1, C: 128, S: 2, queries: [80, 10], keys: [133, 14], scale: 0.09, window: 40 },
  { N: 5, M: 300, H: 8, K: 2, C: 64, S: 3, queries: [1, 3, 1], keys: [200, 70, 30], scale: -0.125, window: 0 },
  { N: 2, M: 210, H: 2, K: 1, C: 128, S: 1, queries: [2], keys: [210], scale: 0.09, window: 100 },
  // Tiles of many blocks of keys, more than are under way at once; heads in threes, which fill no tile evenly.
  { N: 51, M: 707, H: 4, K: 2, C: 64, S: 2, queries: [20, 31], keys: [607, 100], scale: 0.125, window: 0 },
  { N: 70, M: 601, H: 3, K: 1, C: 128, S: 1, queries: [70], keys: [601], scale: -0.09, window: 170 },
  {
    N: 2048,
    M: 2048,
    H: 14,
    K: 2,
    C: 64,
    S: 8,
    queries: Array(8).fill(256),
    keys: Array(8).fill(256),
    scale: 0.125,
    window: 0,
    bench: true,
  },
  {
    N: 4096,
    M: 4096,
    H: 4,
    K: 2,
    C: 32,
    S: 32,
    queries: Array(32).fill(128),
    keys: Array(32).fill(128),
    scale: 0.17,
    window: 0,
    bench: true,
  },
  { N: 1, M: 4096, H: 16, K: 4, C: 64, S: 1, queries: [1], keys: [4096], scale: 0.125, window: 0, bench: true },
  ...gpuSamples.attention,
]

/** Softmax(q k^T scale) v of each query over the keys that it may see; lse is the log-sum-exp of the scaled scores. */
export const attentionOp = defineOp({
  name: 'attention',
  signature: 'q[N,H,C] k[M,K,C] v[M,K,C] segments[S,4]:i32 -> o[N,H,C] lse[N,H]:f32 | scale window',
  reference: attentionReference,
  shapes: ({ q, k }) => checkHeads('attention', q.shape, k.shape),
  costly: true,
  auxiliary: ['lse'],
  saved: ['q', 'k', 'v', 'o', 'lse', 'segments'],
  backward: ({ o: dout }, { q, k, v, o, lse, segments, scale, window }) => {
    const { dq, dk, dv } = attentionBackwardOp({ do: dout!, q, k, v, o, lse, segments, scale, window })
    return { q: dq, k: dk, v: dv }
  },
  constant: ['segments'],
  data: testSegments,
  samples,
})

export const attentionBackwardOp = defineOp({
  name: 'attention_backward',
  signature:
    'do[N,H,C] q[N,H,C] k[M,K,C] v[M,K,C] o[N,H,C] lse[N,H]:f32 segments[S,4]:i32 -> dq[N,H,C] dk[M,K,C] dv[M,K,C] | scale window',
  reference: attentionBackwardReference,
  shapes: ({ q, k }) => checkHeads('attention_backward', q.shape, k.shape),
  data: testSegments,
  samples: samples.filter((sample) => sample.bench && sample.N !== 1),
})

/** Keys of a page of attention_paged. */
export const PAGE_KEYS = 64

const pagedSamples: readonly Sample[] = [
  { N: 6, P: 3, M: 2, H: 2, K: 1, C: 4, S: 2, queries: [4, 2], keys: [4, 2], scale: 0.5, window: 0 },
  { N: 3, P: 7, M: 4, H: 2, K: 1, C: 16, S: 2, queries: [1, 2], keys: [130, 10], scale: 0.25, window: 0 },
  { N: 75, P: 5, M: 3, H: 4, K: 2, C: 17, S: 2, queries: [72, 3], keys: [72, 64], scale: 0.25, window: 20 },
  { N: 75, P: 5, M: 4, H: 4, K: 1, C: 128, S: 2, queries: [72, 3], keys: [72, 100], scale: 0.09, window: 0 },
  { N: 3, P: 9, M: 7, H: 6, K: 3, C: 64, S: 3, queries: [1, 1, 1], keys: [200, 64, 100], scale: 0.125, window: 0 },
  { N: 40, P: 10, M: 9, H: 2, K: 1, C: 64, S: 2, queries: [39, 1], keys: [400, 100], scale: 0.125, window: 0 },
  {
    N: 32,
    P: 512,
    M: 512,
    H: 16,
    K: 4,
    C: 64,
    S: 32,
    queries: Array(32).fill(1),
    keys: Array(32).fill(1024),
    scale: 0.125,
    window: 0,
    bench: true,
  },
  ...gpuSamples.decode,
]

/** Test sequences whose pages lie in reverse order. */
function testPages(sample: Sample): { segments: Int32Array; pages: Int32Array } {
  const [queries, keys] = [sample.queries as number[], sample.keys as number[]]
  let [q, page] = [0, 0]
  const segments = queries.flatMap((count, i) => {
    const row = [q, q + count, page, keys[i]!]
    q += count
    page += Math.ceil(keys[i]! / PAGE_KEYS)
    return row
  })
  const pages = Int32Array.from({ length: sample.M as number }, (_, i) => (sample.P as number) - 1 - i)
  return { segments: Int32Array.from(segments), pages }
}

/** Keys and values of the pages in the order of the table, and segments that speak of those. */
function besides({ k, v, segments, pages }: { k: Tensor; v: Tensor; segments: Tensor; pages: Tensor }) {
  const [P, Z, K, C] = k.shape as [number, number, number, number]
  const laid = (x: Tensor) => reshape(embedding(pages, reshape(x, [P, Z * K * C])), [pages.shape[0]! * Z, K, C])
  const column = (start: number, length: number) => slice(cast(segments, 'f64'), { axis: 1, start, length })
  const begin = affine(column(2, 1), Z, 0)
  const ranges = concat(concat(column(0, 2), begin, 1), add(begin, column(3, 1)), 1)
  return { k: laid(k), v: laid(v), segments: cast(ranges, 'i32') }
}

/** As attention, for keys and values in pages of 64: a segment is q_begin, q_end, its first entry of `pages`, and its
 *  number of keys. Bits are those of attention for the same keys side by side. */
export const attentionPagedOp = defineOp({
  name: 'attention_paged',
  signature: 'q[N,H,C] k[P,64,K,C] v[P,64,K,C] segments[S,4]:i32 pages[M]:i32 -> o[N,H,C] lse[N,H]:f32 | scale window',
  reference: ({ q, scale, window, ...keys }) => attentionReference({ q, ...besides(keys), scale, window }),
  shapes: ({ q, k }) => checkHeads('attention_paged', q.shape, k.shape.slice(1)),
  data: testPages,
  samples: pagedSamples,
})

export interface AttentionOptions {
  /** Factor of the scores, usually 1 / sqrt(C). */
  scale: number
  /** Number of newest keys that a query sees, itself included; 0 = all. */
  window?: number
}

/** o [N,H,C] of queries q [N,H,C] over keys and values [M,K,C]; `segments` [S,4] i32 holds q_begin, q_end, k_begin,
 *  k_end of each sequence, causal and aligned at the end. H must be a multiple of K. */
export function attention(
  q: Tensor,
  { k, v, segments }: { k: Tensor; v: Tensor; segments: Tensor },
  { scale, window = 0 }: AttentionOptions,
): Tensor {
  return attentionOp({ q, k, v, segments, scale, window }).o
}

/** o [N,H,C] of queries q [N,H,C] over keys and values in pages [P,64,K,C]; `segments` [S,4] i32 holds q_begin, q_end,
 *  the first of the sequence's entries in `pages` [M] i32, and its number of keys. Not differentiable. */
export function attentionPaged(
  q: Tensor,
  { k, v, segments, pages }: { k: Tensor; v: Tensor; segments: Tensor; pages: Tensor },
  { scale, window = 0 }: AttentionOptions,
): Tensor {
  return attentionPagedOp({ q, k, v, segments, pages, scale, window }).o
}

/** The segment table of sequences whose keys are their own queries. */
export function selfSegments(cuSeqlens: ArrayLike<number>): { data: Int32Array; shape: Shape } {
  const S = cuSeqlens.length - 1
  const data = new Int32Array(S * 4)
  for (let s = 0; s < S; s++) data.set([cuSeqlens[s]!, cuSeqlens[s + 1]!, cuSeqlens[s]!, cuSeqlens[s + 1]!], s * 4)
  return { data, shape: [S, 4] }
}
