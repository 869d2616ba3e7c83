// The naive composition behind the backward pass of attention: the textbook formulas, one query and head at a time,
// every intermediate value rounded to f32. It shows how exact such formulas can be: do.v - do.o cancels, which the
// differentiated softmax does not show.
import { type FloatDType, type HostArgument, rounded, type SampleCall } from '../../lib/tensor/sample_call.js'

const f32 = Math.fround

interface Sizes {
  H: number
  K: number
  C: number
}

/** Row `row`, head `head` of an argument [rows, heads, C]. */
function rowOf(
  argument: { values: Float64Array },
  row: number,
  { head, heads, C }: { head: number; heads: number; C: number },
) {
  const begin = (row * heads + head) * C
  return argument.values.subarray(begin, begin + C)
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum = f32(sum + f32(a[i]! * b[i]!))
  return sum
}

function addScaled(into: Float64Array, factor: number, row: Float64Array): void {
  for (let i = 0; i < row.length; i++) into[i] = f32(into[i]! + f32(factor * row[i]!))
}

/** Keys that query `n` sees. */
function visibleKeys(call: SampleCall, n: number): number[] {
  const { segments } = byName(call)
  const keys: number[] = []
  for (let s = 0; s < segments!.shape[0]!; s++) {
    const [qBegin, qEnd, kBegin, kEnd] = segments!.values.subarray(4 * s, 4 * s + 4) as unknown as number[]
    if (n < qBegin! || n >= qEnd!) continue
    const newest = kEnd! - (qEnd! - n)
    const window = call.attributes.window! > 0 ? call.attributes.window! : Infinity
    for (let m = Math.max(kBegin!, newest - window + 1); m <= newest; m++) keys.push(m)
  }
  return keys
}

const byName = (call: SampleCall): { [name: string]: HostArgument } =>
  Object.fromEntries(call.inputs.map((input) => [input.name, input]))

/** Gradients of q, k and v of an `attention` call under output gradient `dout`, o being stored in `dtype`. */
export function naiveAttentionBackward(
  call: SampleCall,
  dout: Float64Array,
  dtype: FloatDType,
): Map<string, Float64Array> {
  const { q, k, v } = byName(call) as { q: HostArgument; k: HostArgument; v: HostArgument }
  const [N, H, C] = q.shape as [number, number, number]
  const sizes: Sizes = { H, K: k.shape[1]!, C }
  const gradients = [q, k, v].map((input) => ({ values: new Float64Array(input.values.length) }))
  for (let n = 0; n < N; n++) {
    for (let h = 0; h < H; h++) oneQuery(call, { n, h, sizes, dtype, dout: { values: dout }, gradients })
  }
  const names = ['q', 'k', 'v']
  return new Map(gradients.map(({ values }, i) => [names[i]!, values.map((value) => rounded(value, dtype))]))
}

interface Query {
  n: number
  h: number
  sizes: Sizes
  dtype: FloatDType
  dout: { values: Float64Array }
  gradients: { values: Float64Array }[]
}

function oneQuery(call: SampleCall, { n, h, sizes, dtype, dout, gradients }: Query): void {
  const { q, k, v } = byName(call) as { q: HostArgument; k: HostArgument; v: HostArgument }
  const { H, K, C } = sizes
  const own = { head: h, heads: H, C }
  const shared = { head: Math.floor(h / (H / K)), heads: K, C }
  const scale = f32(call.attributes.scale!)
  const keys = visibleKeys(call, n)
  const query = rowOf(q, n, own)
  const scores = keys.map((m) => f32(scale * dot(query, rowOf(k, m, shared))))
  const peak = Math.max(...scores)
  const lse = f32(peak + f32(Math.log(scores.reduce((sum, score) => f32(sum + f32(Math.exp(f32(score - peak)))), 0))))
  const weights = scores.map((score) => f32(Math.exp(f32(score - lse))))
  const o = new Float64Array(C)
  for (const [i, m] of keys.entries()) addScaled(o, weights[i]!, rowOf(v, m, shared))
  const gradient = rowOf(dout, n, own)
  const delta = dot(
    gradient,
    o.map((value) => rounded(value, dtype)),
  )
  for (const [i, m] of keys.entries()) {
    const slope = f32(scale * f32(weights[i]! * f32(dot(gradient, rowOf(v, m, shared)) - delta)))
    addScaled(rowOf(gradients[0]!, n, own), slope, rowOf(k, m, shared))
    addScaled(rowOf(gradients[1]!, m, shared), slope, query)
    addScaled(rowOf(gradients[2]!, m, shared), weights[i]!, gradient)
  }
}

/** Size of the terms whose difference dq and dk are: scale (do.v) k, with nothing cancelled. */
export function cancellingTerms(call: SampleCall, dout: Float64Array): number {
  const { q, k, v } = byName(call) as { q: HostArgument; k: HostArgument; v: HostArgument }
  const [N, H, C] = q.shape as [number, number, number]
  const K = k.shape[1]!
  const factor = call.attributes.scale! * [...q.values, ...k.values].reduce((most, x) => Math.max(most, Math.abs(x)), 0)
  let most = 0
  for (let n = 0; n < N; n++) {
    for (let h = 0; h < H; h++) {
      const gradient = rowOf({ values: dout }, n, { head: h, heads: H, C }).map(Math.abs)
      for (const m of visibleKeys(call, n)) {
        const value = rowOf(v, m, { head: Math.floor(h / (H / K)), heads: K, C }).map(Math.abs)
        most = Math.max(most, factor * dot(gradient, value))
      }
    }
  }
  return most
}
