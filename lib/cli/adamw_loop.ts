// AdamW on the host, element by element: what the kernels of the optimizer are checked against.
import { f32ToBf16Bits } from '../base/half.js'
import type { SampleCall } from '../tensor/sample_call.js'

type Round = (x: number) => number

const valuesOf = (call: SampleCall, name: string) => call.inputs.find((input) => input.name === name)!.values

/** torch.optim.AdamW on one parameter, every intermediate value through `round`. */
function adamwStep(state: { p: number; g: number; m: number; v: number }, call: SampleCall, round: Round) {
  const { beta1, beta2, eps, weight_decay } = call.attributes as { [name: string]: number }
  const [lr, scale, , bias1, bias2] = valuesOf(call, 'control') as unknown as [number, number, number, number, number]
  const g = round(state.g * scale)
  const p = round(state.p - round(lr * weight_decay!) * state.p)
  const m = round(state.m + (1 - beta1!) * (g - state.m))
  const v = round(round(beta2! * state.v) + (1 - beta2!) * round(g * g))
  const denominator = round(round(round(Math.sqrt(v)) / round(Math.sqrt(bias2))) + eps!)
  return { p: round(p - round(round(lr / bias1) * round(m / denominator))), m, v }
}

/** p, m and v after a call of `adamw` whose gradients are finite; p starts from the master where there is one. */
export function adamwLoop(call: SampleCall, round: Round): { p: number[]; m: number[]; v: number[] } {
  const truth = call.inputs.find((input) => input.name === 'master') ?? call.inputs[0]!
  const [g, m, v] = ['g', 'm', 'v'].map((name) => valuesOf(call, name)) as [Float64Array, Float64Array, Float64Array]
  const steps = Array.from(truth.values, (p, i) => adamwStep({ p, g: g[i]!, m: m[i]!, v: v[i]! }, call, round))
  return { p: steps.map((s) => s.p), m: steps.map((s) => s.m), v: steps.map((s) => s.v) }
}

/** The f32 weights that upper halves `p` and lower halves `low`, both as the bits of bf16 numbers, stand for: the upper
 *  half was rounded half up, so that the lower one has a sign. */
export function joinedHalves(p: ArrayLike<number>, low: ArrayLike<number>): Float64Array {
  const words = Uint32Array.from({ length: p.length }, (_, i) => ((p[i]! << 16) + ((low[i]! << 16) >> 16)) >>> 0)
  return Float64Array.from(new Float32Array(words.buffer))
}

/** A call on halves as one on the f32 master that they are. */
export function withMaster(call: SampleCall): SampleCall {
  const [p, low] = ['p', 'low'].map((name) => Array.from(valuesOf(call, name), f32ToBf16Bits)) as [number[], number[]]
  const master = { name: 'master', shape: call.inputs[0]!.shape, values: joinedHalves(p, low), dtype: 'f32' as const }
  return { ...call, inputs: [...call.inputs, master] }
}
