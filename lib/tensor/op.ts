// An op is declared once: its signature, its definition in terms of simpler ops, its gradient, its test sizes. From
// that row come argument types, checks and messages, output allocation, the tape record, parity and gradient tests, the
// micro-benchmark and the documentation.
import type { DType } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import type { Shape } from '../base/shape.js'
import {
  type Arguments,
  type InputNames,
  type OutputNames,
  parseSignature,
  type Results,
  type Signature,
} from '../base/signature.js'
import type { Device } from '../runtime/index.js'
import { refuseFaulty } from './call_fault.js'
import {
  type AnyCall,
  anyTracked,
  type Binding,
  bindCall,
  type CallPlan,
  declareOutputs,
  differentiable,
  planCall,
} from './call_plan.js'
import { type BodyCall, type Fate, runningBody } from './checkpoint.js'
import { type Into, type Record, recordingTape, withoutTape } from './tape.js'
import type { Tensor } from './tensor.js'

/** Sizes for one test of an op: shape letters and attributes by name. `lead` is what `*` stands for (default [N] when N
 *  is given, else [2,3]); `shapes` gives arguments written `[...]`. */
export interface Sample {
  [name: string]: number | boolean | 'cuda' | number[] | { [argument: string]: number[] } | undefined
  lead?: number[]
  shapes?: { [argument: string]: number[] }
  /** Used by the micro-benchmark, not by the tests: true on the CPU, 'cuda' on a GPU. */
  bench?: boolean | 'cuda'
}

export type Call<S extends string> = Arguments<S, Tensor>
type Attributes<S extends string> = Omit<Call<S>, InputNames<S>>
/** What a backward function reads: the tensors named in `saved`, and all attributes. */
export type Saved<S extends string, K extends InputNames<S> | OutputNames<S>> = { [N in K]: Tensor } & Attributes<S>

/** What a backward function may ask about an input. */
export interface Flow<Name extends string = string> {
  /** Whether a gradient for this input is wanted at all. */
  wants(name: Name): boolean
  /** Hands over the gradient that the input already has, to be added to in the same pass: the result must be the sum.
   *  Undefined when there is none, or when it may not be overwritten. */
  into(name: Name): Tensor | undefined
}

export interface OpDefinition<S extends string, K extends InputNames<S> | OutputNames<S>> {
  name: string
  signature: S
  /** The op in terms of simpler ones: what it means, its oracle in f64, and what runs where there is no kernel. */
  reference?: (call: Call<S>) => Partial<Results<S, Tensor>>
  /** Names of the inputs and outputs that the backward pass reads. */
  saved?: readonly K[]
  /** Gradients of the inputs from those of the outputs. */
  backward?: (
    gradients: { [N in OutputNames<S>]?: Tensor },
    saved: Saved<S, K>,
    flow: Flow<InputNames<S>>,
  ) => { [N in InputNames<S>]?: Tensor | undefined }
  /** Shapes of outputs written `[...]`; throws ERR_SHAPE when the inputs do not fit. */
  shapes?: (call: Call<S>) => { [N in OutputNames<S>]?: Shape }
  /** Common dtypes that the kernels take; default f32 and bf16. Others run the reference. */
  dtypes?: readonly DType[]
  /** Inputs without a fixed dtype need not agree (add_into: bf16 terms into an f32 sum). */
  mixed?: boolean
  /** Test data that random numbers would not give: indices, segments, masks. By input name. */
  data?: (sample: Sample, draw: SampleDraw) => { [N in InputNames<S>]?: Float64Array | Int32Array }
  /** Inputs for which the op has no gradient although others do (targets, tables). Checked by the gradient test. */
  constant?: readonly InputNames<S>[]
  /** Much arithmetic for each element of the results: a checkpoint may keep them rather than compute them again. */
  costly?: boolean
  /** Outputs that serve the backward pass alone: it is an error when a gradient arrives for one. */
  auxiliary?: readonly OutputNames<S>[]
  /** Floating-point operations of one call, for GFLOP/s in the benchmark. Bytes come from the signature. */
  flops?: (sizes: { [letter: string]: number }) => number
  samples: readonly Sample[]
}

/** Random numbers for test data. */
export interface SampleDraw {
  integer(low: number, high: number): number
  normal(): number
}

/** A declared op: call it with named arguments. */
export interface Op<S extends string = string> {
  (call: Call<S>): Results<S, Tensor>
  definition: OpDefinition<S, InputNames<S> | OutputNames<S>>
  parsed: Signature
}

const registry = new Map<string, Op>()

/** Every declared op by name, for the tests, the benchmark, the documentation and the handshake. */
export function declaredOps(): ReadonlyMap<string, Op> {
  return registry
}

/** Declares an op. */
export function defineOp<const S extends string, const K extends InputNames<S> | OutputNames<S> = never>(
  definition: OpDefinition<S, K>,
): Op<S> {
  const parsed = parseSignature(definition.signature)
  const op = ((call: Call<S>) => run(declared, call as AnyCall)) as Op<S>
  op.definition = definition as unknown as Op<S>['definition']
  op.parsed = parsed
  const declared: Declared = {
    definition: op.definition as unknown as Op['definition'],
    parsed,
    plan: planCall(definition.name, parsed, definition),
    saved: (definition.saved ?? []).map((name) => ({
      name,
      input: parsed.inputs.findIndex((input) => input.name === name),
      output: parsed.outputs.findIndex((output) => output.name === name),
    })),
  }
  registry.set(definition.name, op as unknown as Op)
  return op
}

type AnyResult = { [name: string]: Tensor | undefined }

/** An op and what was worked out of its declaration, so that no call does it again. */
interface Declared {
  definition: Op['definition']
  parsed: Signature
  plan: CallPlan
  /** Where the tensors that the backward pass reads stand: one of the two indices is -1. */
  saved: readonly { name: string; input: number; output: number }[]
}

const usual: readonly DType[] = ['f32', 'bf16']
/** Dtypes that all primitives take, so that a reference can run in them. */
const composable: readonly DType[] = ['f32', 'bf16', 'f64']

function run(declared: Declared, call: AnyCall): AnyResult {
  const { definition, plan } = declared
  const bound = bindCall(plan, call)
  if (!bound) throw faultOf(declared, call)
  const free = definition.shapes?.(call as never) as { [name: string]: Shape } | undefined
  const { device, dtype } = bound
  const index = device.opIndex(plan.op)
  if (index === undefined || !(definition.dtypes ?? usual).includes(dtype)) {
    if (definition.reference && composable.includes(dtype)) return definition.reference(call as never) as AnyResult
    throw new CaravanError('ERR_DTYPE', `${plan.op}: no kernel for ${dtype} on device ${device.kind}`)
  }
  const body = runningBody()
  const fate: Fate = body && definition.costly ? body.fate(plan.op) : 'compute'
  const outputs = typeof fate === 'string' ? declareOutputs(plan, call, bound, free) : fate
  if (fate === 'compute') compute(device, index, bound, outputs)
  body?.note(bodyCall(declared, bound, outputs))
  const tape = recordingTape()
  if (tape && anyTracked(bound.inputs)) tape.add(new OpRecord(declared, bound, outputs))
  const results: AnyResult = {}
  for (let i = 0; i < outputs.length; i++) if (outputs[i]) results[plan.outputs[i]!.name] = outputs[i]
  return results
}

function compute(device: Device, index: number, { inputs, attributes }: Binding, outputs: Outputs): void {
  try {
    device.op(index, inputs, outputs, attributes)
  } catch (error) {
    for (const output of outputs) output?.dispose()
    throw error
  }
}

type Outputs = readonly (Tensor | undefined)[]

const isThere = (tensor: Tensor | undefined) => tensor !== undefined

function bodyCall({ plan, parsed, definition, saved }: Declared, { inputs }: Binding, outputs: Outputs): BodyCall {
  const read = saved.map(({ input, output }) => (input >= 0 ? inputs[input] : outputs[output]))
  const costly = definition.costly ?? false
  const changed = parsed.inputs.map(({ inPlace }, i) => (inPlace ? inputs[i] : undefined)).filter(isThere)
  return { op: plan.op, costly, inputs, outputs, saved: read.filter(isThere), changed }
}

/** What is wrong with a call that does not fit. */
function faultOf({ definition, parsed }: Declared, call: AnyCall): unknown {
  try {
    refuseFaulty({ name: definition.name, signature: parsed, mixed: definition.mixed ?? false, call })
  } catch (fault) {
    return fault
  }
  return new CaravanError('ERR_INTERNAL', `${definition.name}: a call was refused in which no fault is found`)
}

type AnyBackward = (gradients: AnyResult, saved: AnyCall, flow: Flow) => AnyResult

/** What a call leaves on the tape. */
class OpRecord implements Record {
  readonly inputs: readonly (Tensor | undefined)[]
  readonly outputs: readonly (Tensor | undefined)[]
  readonly saved: Tensor[] = []
  readonly #declared: Declared
  /** What the backward function reads, by name. */
  readonly #kept: AnyCall = {}

  constructor(declared: Declared, { inputs, attributes }: Binding, results: readonly (Tensor | undefined)[]) {
    const { definition, plan, saved } = declared
    if (!definition.backward) {
      throw new CaravanError('ERR_INTERNAL', `${plan.op} has no gradient; run it outside the tape`)
    }
    this.#declared = declared
    this.inputs = inputs
    this.outputs = differentiable(results)
    for (let i = 0; i < attributes.length; i++) this.#kept[plan.attributes[i]!.name] = attributes[i]
    for (let i = 0; i < saved.length; i++) {
      const { name, input, output } = saved[i]!
      const tensor = input >= 0 ? inputs[input] : results[output]
      this.#kept[name] = tensor
      if (tensor) this.saved.push(tensor)
    }
  }

  get name(): string {
    return this.#declared.plan.op
  }

  backward(gradients: readonly (Tensor | undefined)[], into: Into): readonly (Tensor | undefined)[] {
    const { definition, plan } = this.#declared
    const incoming: AnyResult = {}
    for (let i = 0; i < gradients.length; i++) incoming[plan.outputs[i]!.name] = gradients[i]
    refuseAuxiliary(definition, incoming)
    const inputOf = (name: string) => this.inputs[plan.inputs.findIndex((input) => input.name === name)]
    const outgoing = (definition.backward as AnyBackward)(incoming, this.#kept, {
      wants: (name) => inputOf(name)?.tracked ?? false,
      into: (name) => into(inputOf(name)),
    })
    return plan.inputs.map((input) => outgoing[input.name])
  }
}

/** Better no gradient at all than one that silently misses a term. */
function refuseAuxiliary({ name: op, auxiliary }: Op['definition'], incoming: AnyResult): void {
  const name = auxiliary?.find((output) => incoming[output])
  if (name === undefined) return
  throw new CaravanError('ERR_INTERNAL', `${op}: no gradient flows through its result '${name}'`, {
    hint: 'compute that quantity from differentiable ops, or run it under withoutTape()',
  })
}

/** Runs the reference of `op` outside any tape: the oracle of its tests. */
export function runReference(op: Op, call: AnyCall): AnyResult {
  if (!op.definition.reference) throw new CaravanError('ERR_INTERNAL', `${op.definition.name} has no reference`)
  return withoutTape(() => op.definition.reference!(call as never) as AnyResult)
}
