// AdamW on the host, element by element: what the kernels of the optimizer are checked against.
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
