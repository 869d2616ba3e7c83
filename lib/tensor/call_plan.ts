// How a call of an op is checked, worked out once when the op is declared: shape letters are numbered slots, so that
// a call that is right costs a few loops over small arrays. Hundreds of calls make a training step and the first ones
// run interpreted, hence plain loops and no closures here. What a wrong call is told stands in call_fault.ts.
import { type DType, dtypeOf, isFloating } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import type { Shape } from '../base/shape.js'
import type { Argument, Signature } from '../base/signature.js'
import type { Device } from '../runtime/index.js'
import { Tensor } from './tensor.js'

export type AnyCall = { [name: string]: Tensor | number | undefined }

/** A dim of an argument: the number of its letter, LEAD for `*`, or for the literal size n the number LITERAL - n. */
type Slot = number
const LEAD = -1
const LITERAL = -2
/** In place of a size that is not known yet. */
const UNBOUND = -1

interface InputPlan {
  name: string
  optional: boolean
  dtype: Argument['dtype']
  /** Whether leading dims may come before `slots`. */
  leads: boolean
  /** Undefined for `[...]`. */
  slots: readonly Slot[] | undefined
}

interface OutputPlan {
  name: string
  /** The attribute that asks for an optional output. */
  flag: string | undefined
  dtype: Argument['dtype']
  slots: readonly Slot[] | undefined
}

interface AttributePlan {
  name: string
  /** Of the letter that this attribute gives, or undefined when it is no size. */
  slot: Slot | undefined
}

export interface CallPlan {
  op: string
  /** Inputs without a fixed dtype need not agree. */
  mixed: boolean
  inputs: readonly InputPlan[]
  outputs: readonly OutputPlan[]
  attributes: readonly AttributePlan[]
  letters: readonly string[]
}

/** A call that fits its signature. */
export interface Binding {
  device: Device
  /** The common dtype. */
  dtype: DType
  /** In the order of the signature; undefined where absent. */
  inputs: (Tensor | undefined)[]
  attributes: number[]
  /** By slot. */
  sizes: number[]
  /** The shape whose first `leadRank` sizes are what `*` stands for. */
  lead: Shape
  leadRank: number
}

/** The plan of every call of one op. */
export function planCall(op: string, signature: Signature, { mixed = false }: { mixed?: boolean } = {}): CallPlan {
  const letters = [...new Set([...signature.inputs, ...signature.outputs].flatMap(({ dims }) => dims ?? []))].filter(
    (dim) => dim !== '*' && !Number.isInteger(Number(dim)),
  )
  const slotOf = (dim: string): Slot => {
    if (dim === '*') return LEAD
    return Number.isInteger(Number(dim)) ? LITERAL - Number(dim) : letters.indexOf(dim)
  }
  return {
    op,
    mixed,
    inputs: signature.inputs.map(({ name, optional, dtype, dims }) => {
      const leads = dims?.[0] === '*'
      return { name, optional, dtype, leads, slots: (leads ? dims.slice(1) : dims)?.map(slotOf) }
    }),
    outputs: signature.outputs.map(({ name, optional, dtype, dims }) => {
      return { name, flag: optional ? `with_${name}` : undefined, dtype, slots: dims?.map(slotOf) }
    }),
    attributes: signature.attributes.map((name) => ({ name, slot: letters.includes(name) ? slotOf(name) : undefined })),
    letters,
  }
}

/** Binds shape letters and checks every argument; undefined when anything is wrong with the call. */
export function bindCall(plan: CallPlan, call: AnyCall): Binding | undefined {
  const bound = {
    device: undefined as Device | undefined,
    dtype: undefined as DType | undefined,
    inputs: [] as Binding['inputs'],
    attributes: [] as number[],
    sizes: [] as number[],
    lead: undefined as Shape | undefined,
    leadRank: 0,
  }
  for (let i = 0; i < plan.letters.length; i++) bound.sizes.push(UNBOUND)
  for (let i = 0; i < plan.inputs.length; i++) {
    const input = plan.inputs[i]!
    const tensor = call[input.name]
    if (tensor === undefined && input.optional) {
      bound.inputs.push(undefined)
      continue
    }
    if (!(tensor instanceof Tensor) || tensor.disposed) return undefined
    bound.device ??= tensor.device
    if (tensor.device !== bound.device || !fits(input, tensor.shape, bound)) return undefined
    if (input.dtype === undefined) {
      bound.dtype ??= tensor.dtype
      if (tensor.dtype !== bound.dtype && !plan.mixed) return undefined
    }
    bound.inputs.push(tensor)
  }
  bound.device ??= call.device as unknown as Device | undefined
  if (bound.device === undefined || !bindAttributes(plan, call, bound)) return undefined
  bound.dtype ??= 'f32'
  bound.lead ??= []
  return fixedDtypesFit(plan, call, bound as Binding) ? (bound as Binding) : undefined
}

type Sizes = Pick<Binding, 'sizes' | 'leadRank'> & { lead: Shape | undefined }

/** Whether `shape` is what the argument and the sizes known so far ask for; binds the sizes that are new. */
function fits(input: InputPlan, shape: Shape, bound: Sizes): boolean {
  const { slots } = input
  if (slots === undefined) return true
  const leading = shape.length - slots.length
  if (leading < 0 || (leading > 0 && !input.leads)) return false
  if (input.leads && bound.lead === undefined) {
    bound.lead = shape
    bound.leadRank = leading
  } else if (input.leads) {
    if (leading !== bound.leadRank) return false
    for (let i = 0; i < leading; i++) if (shape[i] !== bound.lead![i]) return false
  }
  for (let i = 0; i < slots.length; i++) {
    const slot = slots[i]!
    const size = shape[leading + i]!
    const known = slot <= LITERAL ? LITERAL - slot : bound.sizes[slot]!
    if (known === UNBOUND) bound.sizes[slot] = size
    else if (known !== size) return false
  }
  return true
}

function bindAttributes(plan: CallPlan, call: AnyCall, bound: Pick<Binding, 'sizes' | 'attributes'>): boolean {
  for (let i = 0; i < plan.attributes.length; i++) {
    const { name, slot } = plan.attributes[i]!
    const value = call[name]
    if (typeof value !== 'number') return false
    if (slot !== undefined && bound.sizes[slot] === UNBOUND) {
      if (!isSize(value)) return false
      bound.sizes[slot] = value
    }
    bound.attributes.push(value)
  }
  return true
}

export function isSize(value: number): boolean {
  return Number.isInteger(value) && value >= 0
}

function fixedDtypesFit(plan: CallPlan, call: AnyCall, { inputs, dtype }: Binding): boolean {
  for (let i = 0; i < inputs.length; i++) {
    const tensor = inputs[i]
    const fixed = plan.inputs[i]!.dtype
    if (fixed !== undefined && tensor !== undefined && tensor.dtype !== settledDtype(fixed, call, dtype)) return false
  }
  return true
}

/** The dtype of an argument written with `dtype`. In a test in f64 everything that is f32 otherwise is f64. */
export function settledDtype(dtype: Argument['dtype'], call: AnyCall, common: DType): DType {
  if (dtype === undefined) return common
  if (dtype === 'dtype') return dtypeOf(call.dtype as number)
  return dtype === 'f32' && common === 'f64' ? 'f64' : dtype
}

/** Declares the outputs of a call that fits; `free` has the shapes of those written `[...]`. */
export function declareOutputs(
  plan: CallPlan,
  call: AnyCall,
  bound: Binding,
  free: { [name: string]: Shape } | undefined,
): (Tensor | undefined)[] {
  const outputs: (Tensor | undefined)[] = []
  for (let i = 0; i < plan.outputs.length; i++) {
    const output = plan.outputs[i]!
    if (output.flag !== undefined && !call[output.flag]) {
      outputs.push(undefined)
      continue
    }
    const shape = output.slots === undefined ? free?.[output.name] : shapeOf(plan, output.slots, bound)
    if (!shape) throw new CaravanError('ERR_INTERNAL', `${plan.op}: no shape for output ${output.name}`)
    outputs.push(Tensor.declare(bound.device, settledDtype(output.dtype, call, bound.dtype), shape))
  }
  return outputs
}

function shapeOf(plan: CallPlan, slots: readonly Slot[], { sizes, lead, leadRank }: Binding): Shape {
  const shape: number[] = []
  for (let i = 0; i < slots.length; i++) {
    const slot = slots[i]!
    if (slot === LEAD) for (let j = 0; j < leadRank; j++) shape.push(lead[j]!)
    else if (slot <= LITERAL) shape.push(LITERAL - slot)
    else if (sizes[slot] !== UNBOUND) shape.push(sizes[slot]!)
    else throw new CaravanError('ERR_INTERNAL', `${plan.op}: nothing gives size ${plan.letters[slot]}`)
  }
  return shape
}

/** Whether a gradient must flow to any of `inputs`. */
export function anyTracked(inputs: readonly (Tensor | undefined)[]): boolean {
  for (let i = 0; i < inputs.length; i++) if (inputs[i]?.tracked) return true
  return false
}

/** Those of `outputs` to which a gradient can come. */
export function differentiable(outputs: readonly (Tensor | undefined)[]): (Tensor | undefined)[] {
  return outputs.map((output) => (output && isFloating(output.dtype) ? output : undefined))
}
