// What the results of an op should be, from the CPU engine: its definition in f64 on the very numbers that the kernel
// under check was given, and the same in f32, which shows how exact a plain composition is. Ops that draw, move or
// round are compared with the CPU kernel itself.
import { type DType, dtypeOf } from '../base/dtype.js'
import { add, crossEntropyOp, linearLogprobBackwardOp } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { type Op, runReference, scope, type Tensor } from '../tensor/index.js'
import {
  type AnyCall,
  argumentsOn,
  callOp,
  disposeAll,
  dtypeIn,
  type FloatDType,
  readAll,
  rounded,
  type SampleCall,
  type Tensors,
  uniformArguments,
} from '../tensor/sample_call.js'
import { adamwLoop, joinedHalves, withMaster } from './adamw_loop.js'
import { largestMagnitude } from './tolerance.js'

/** Results by name: the outputs, and the inputs that are updated in place. */
export type Results = Map<string, Float64Array>

export interface Truth {
  truth: Results
  /** The plain composition's, in f32 unless the op rounds inside. */
  naive: Results
  /** Whether the op rounds inside, so that results count as being of the common dtype. */
  roundsInside: boolean
  /** In place of the usual number, where an op needs another, by the dtype of the result. */
  freeRoundings?: { [dtype in DType]?: number }
  /** Size of the terms that a result is the difference of, by its name, where that is more than the result shows. */
  terms?: { [result: string]: number }
}

/** Ops of which the CPU kernel in the same dtype is the truth, and the roundings that are free for them. */
const sameAsCpu: { [op: string]: { why: string; freeRoundings: number } } = {
  cast: { why: 'a rounding is its definition', freeRoundings: 0 },
  fill: { why: 'no inputs', freeRoundings: 0 },
  iota: { why: 'no inputs', freeRoundings: 1 },
  random_normal: { why: 'drawn, by the same generator in f64', freeRoundings: 2 },
  random_uniform: { why: 'drawn, by the same generator in f64', freeRoundings: 2 },
  scatter_rows: { why: 'moves numbers', freeRoundings: 0 },
  clip_control: { why: 'eight numbers', freeRoundings: 4 },
  sample: { why: 'drawn from logits that stay in f32', freeRoundings: 8 },
}

/** Ops that round more often than the composition shows, by the dtype of the result. */
const freeRoundings: { [op: string]: { [dtype in DType]?: number } } = {
  // Along a tree that differs between devices: so many roundings, if all went the same way.
  squared_sum_add: { f64: 100 },
  // One chain of a thousand or two over the queries of all heads of a group, which the composition cuts by head: its
  // roundings add up like steps of a random walk. In bf16 the weights and the slopes of the scores are operands of
  // products.
  attention_backward: { f32: 32, bf16: 2 },
  // The exponential of a difference of ten turns a rounding of it into ten; few rows may show none in the composition.
  linear_logprob_backward: { f32: 16 },
  linear_logprob_backward_add: { f32: 16 },
  linear_logprob_backward_frozen: { f32: 16 },
  // Moments are rounded at random, up or down.
  adamw_bf16_moments: { bf16: 2 },
  adamw_split_bf16_moments: { bf16: 2 },
}

/** Ops without a definition of their own in the table, as they add to what an argument holds. */
const definitions: { [op: string]: (given: AnyCall) => { [name: string]: Tensor | undefined } } = {
  linear_logprob_backward_add: (given) => {
    const { dhidden, dhead } = linearLogprobBackwardOp.definition.reference!(given as never)
    return { dhead: add(given.dhead as Tensor, dhead!), dhidden }
  },
  cross_entropy_add: (given) => {
    const { loss, nll, dhidden, dhead } = crossEntropyOp.definition.reference!(given as never)
    return { dhead: add(given.dhead as Tensor, dhead!), loss, nll, dhidden }
  },
}

/** Ops that round an intermediate value to the common dtype: compared with the composition in that dtype. */
function roundsInside(op: string, device: Device): boolean {
  // The sum is stored, and the norm is taken of it as stored.
  if (op === 'add_rms_norm') return true
  // With native bf16 products the gradient of the logits is rounded to bf16 before it is multiplied.
  const hasNativeBf16 = device.kind === 'cuda' || device.isa === 'avx512bf16'
  return hasNativeBf16 && /^(cross_entropy|linear_logprob_backward)/.test(op)
}

/** The truth for `call`, whose values are rounded to `dtype` already, and what a plain composition makes of it. `under`
 *  is the device under check, `cpu` the one that computes. */
export async function truthOf(
  call: SampleCall,
  dtype: 'f32' | 'bf16',
  { cpu, under }: { cpu: Device; under: Device },
): Promise<Truth> {
  const { name } = call.op.definition
  const same = sameAsCpu[name]
  if (same) {
    const truth = await resultsOn(cpu, call, dtype)
    const { freeRoundings: n } = same
    const all = { f32: n, bf16: n, f64: n }
    const bound = logitBound(call)
    // A probability changes with a logit by a quarter at most, and there are two sides of a softmax.
    const terms = { logp: bound, drawn_logp: bound, probs: bound / 2 }
    return { truth, naive: truth, roundsInside: false, freeRoundings: all, terms }
  }
  if (name.startsWith('adamw')) {
    return { ...adamwTruth(call, dtype), roundsInside: false, freeRoundings: freeRoundings[name] }
  }
  const inside = roundsInside(name, under)
  const truth = await definitionOn(cpu, call, 'f64')
  const naive = await definitionOn(cpu, call, inside ? dtype : 'f32')
  // A mean of what lies about 0 is small beside what was added up.
  const terms = name === 'layer_norm' ? { mean: largestMagnitude(call.inputs[0]!.values) } : undefined
  return { truth, naive, roundsInside: inside, freeRoundings: freeRoundings[name], terms }
}

/** Runs the op once on `device` in `dtype`. */
export async function resultsOn(device: Device, call: SampleCall, dtype: FloatDType): Promise<Results> {
  const given = argumentsOn(device, call, dtype)
  return resultsOf(call.op, given, () => callOp(call.op, given))
}

/** Dtype in which the result `name` of a run in `common` is stored. */
export function resultDtype(call: SampleCall, name: string, common: FloatDType): DType {
  if (name === HALVES) return 'f32'
  const { inputs, outputs } = call.op.parsed
  const declared = [...inputs, ...outputs].find((argument) => argument.name === name)!
  if (declared.dtype === 'dtype') return dtypeOf(call.attributes.dtype!)
  return dtypeIn(declared as { dtype: DType | undefined }, common)
}

/** The tensors that hold the results of a call: those made, and those updated in place. */
export function resultTensors(op: Op, given: AnyCall, made: Tensors): Tensors {
  const updated = op.parsed.inputs.filter(({ name, inPlace }) => inPlace && given[name] !== undefined)
  return { ...Object.fromEntries(updated.map(({ name }) => [name, given[name] as Tensor])), ...made }
}

/** The name under which the two halves of split weights are read as one. */
const HALVES = 'p+low'

/** The results as numbers; halves of split weights, which are no numbers of their own, as the f32 that they make. */
export async function readResults({ low, ...tensors }: Tensors): Promise<Results> {
  if (!low) return readAll(tensors)
  const { p, ...others } = tensors
  const [upper, lower] = [await p!.readRaw(), await low.readRaw()]
  return new Map([[HALVES, joinedHalves(upper, lower)], ...(await readAll(others))])
}

/** The definition with every floating argument in `dtype`; of a primitive, its kernel. */
async function definitionOn(cpu: Device, call: SampleCall, dtype: FloatDType): Promise<Results> {
  const { op } = call
  const given = uniformArguments(cpu, call, dtype)
  const own = definitions[op.definition.name]
  return resultsOf(op, given, () => {
    if (own) return own(given) as Tensors
    return op.definition.reference ? (runReference(op, given) as Tensors) : callOp(op, given)
  })
}

async function resultsOf(op: Op, given: AnyCall, body: () => Tensors): Promise<Results> {
  let made: Tensors = {}
  try {
    made = scope(body)
    return await readResults(resultTensors(op, given, made))
  } finally {
    disposeAll(given, made)
  }
}

/** AdamW's formula element by element; a bf16 parameter is the rounded master, or half of one. */
function adamwTruth(call: SampleCall, dtype: 'f32' | 'bf16'): { truth: Results; naive: Results } {
  const has = (name: string) => call.inputs.some((input) => input.name === name)
  const whole = has('low') ? withMaster(call) : call
  const asResults = (round: (x: number) => number): Results => {
    const { p, m, v } = adamwLoop(whole, round)
    const stored = {
      p: has('master') ? p.map((value) => rounded(value, dtype)) : p,
      ...(has('master') && { master: p }),
    }
    const columns: { [name: string]: number[] } = { ...(has('low') ? { [HALVES]: p } : stored), m, v }
    return new Map(Object.entries(columns).map(([name, values]) => [name, Float64Array.from(values)]))
  }
  return { truth: asResults((x) => x), naive: asResults(Math.fround) }
}

/** The largest logit that the rows of `hidden` and `head` can make, by Cauchy and Schwarz; 0 for ops without. */
function logitBound({ inputs }: SampleCall): number {
  const longest = (name: string) => {
    const input = inputs.find((one) => one.name === name)
    if (!input || input.values.length === 0) return 0
    const width = input.shape.at(-1)!
    let most = 0
    for (let begin = 0; begin < input.values.length; begin += width) {
      let squares = 0
      for (let i = begin; i < begin + width; i++) squares += input.values[i]! ** 2
      most = Math.max(most, squares)
    }
    return Math.sqrt(most)
  }
  return longest('hidden') * longest('head')
}
