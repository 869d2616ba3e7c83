// Activation checkpointing: a body of ops leaves its inputs on the tape, and in `selective` the results that are dear
// to compute, and runs again in the backward pass. There is one mechanism and one tape: the second run makes every call
// of the first one anew, but a call whose result was kept, or is read by nobody, computes nothing.
import { CaravanError } from '../base/errors.js'
import { anyTracked } from './call_plan.js'
import { type Record, recordingTape, Tape, withoutTape } from './tape.js'
import type { Tensor } from './tensor.js'

/** What a body leaves for the backward pass: all that this reads, the results of its costly ops, or only its inputs. */
export const checkpointings = ['none', 'selective', 'full'] as const
export type Checkpointing = (typeof checkpointings)[number]

/** A call of an op inside a body, or the making of a view. */
export interface BodyCall {
  op: string
  costly: boolean
  inputs: readonly (Tensor | undefined)[]
  outputs: readonly (Tensor | undefined)[]
  /** Those of both that the backward function reads. */
  saved: readonly Tensor[]
  /** Those inputs that the op changes in place. */
  changed: readonly Tensor[]
}

/** What to do at a costly call: compute it, nothing as nobody reads its results, or take those that were kept. */
export type Fate = 'compute' | 'skip' | readonly (Tensor | undefined)[]

interface BodyRun {
  /** What to do at the costly call of `op` that comes now. */
  fate(op: string): Fate
  /** Told of each call once it has been made. */
  note(call: BodyCall): void
}

let current: BodyRun | undefined

/** The checkpointed body that runs now, if any. */
export function runningBody(): BodyRun | undefined {
  return current
}

function runAs<R>(run: BodyRun, body: () => R): R {
  const outer = current
  current = run
  try {
    return body()
  } finally {
    current = outer
  }
}

interface PlannedCall {
  op: string
  fate: Fate
}

/** Computes everything, and learns what the second run will read. */
class FirstRun implements BodyRun {
  /** The costly calls. Where results are kept they are held until it is known which of them are read. */
  readonly #calls: BodyCall[] = []
  /** Whether a gradient must flow to anything that the body uses. */
  tracked = false
  /** What the second run reads. */
  readonly #read = new Set<Tensor | undefined>()

  constructor(private readonly keeps: boolean) {}

  fate(): Fate {
    return 'compute'
  }

  note(call: BodyCall): void {
    for (const tensor of call.changed) this.#refuseKept(call.op, tensor)
    this.tracked ||= anyTracked(call.inputs)
    if (call.costly) {
      this.#calls.push(call)
      if (this.keeps) for (const output of call.outputs) output?.retain()
    } else {
      // What is cheap is computed again, whoever reads it.
      this.#reads(call.inputs)
    }
  }

  /** The second run would change it once more. */
  #refuseKept(op: string, changed: Tensor): void {
    const maker = this.keeps && this.#calls.find(({ outputs }) => outputs.includes(changed))
    if (!maker) return
    throw new CaravanError('ERR_INTERNAL', `${op} changes what a checkpoint keeps: a result of ${maker.op}`, {
      hint: 'compute a new tensor, or use the mode full',
    })
  }

  #reads(tensors: BodyCall['inputs']): void {
    for (const tensor of tensors) this.#read.add(tensor)
  }

  /** The costly calls of the second run. From the last to the first, as a result is read by later calls. */
  plan(): PlannedCall[] {
    return this.#calls
      .toReversed()
      .map((call) => ({ op: call.op, fate: this.#fateOf(call) }))
      .reverse()
  }

  #fateOf(call: BodyCall): Fate {
    // A call leaves its record on the tape even if it computes nothing.
    this.#reads(call.saved)
    if (!call.outputs.some((output) => output && this.#read.has(output))) return 'skip'
    if (this.keeps) return call.outputs
    this.#reads(call.inputs)
    return 'compute'
  }

  /** Lets go of what was held; what the tape saves, it owns. */
  [Symbol.dispose](): void {
    if (this.keeps) for (const { outputs } of this.#calls) drop(outputs)
  }
}

/** Follows the plan that the first run has left. */
class SecondRun implements BodyRun {
  #next = 0

  constructor(private readonly plan: readonly PlannedCall[]) {}

  fate(op: string): Fate {
    const planned = this.plan[this.#next++]
    if (planned?.op === op) return planned.fate
    throw ranOtherwise(planned?.op, op)
  }

  note(): void {}

  end(): void {
    const missing = this.plan[this.#next]
    if (missing) throw ranOtherwise(missing.op, undefined)
  }
}

function ranOtherwise(before: string | undefined, now: string | undefined): CaravanError {
  const [then, again] = [before, now].map((op) => op ?? 'no more costly op')
  return new CaravanError(
    'ERR_INTERNAL',
    `a checkpointed body called ${then} the first time, but ${again} the second`,
    {
      details: { before, now },
      hint: 'a body must make the same calls in both runs: draw what is random from a seed, and change nothing outside',
    },
  )
}

function drop(tensors: readonly (Tensor | undefined)[]): void {
  for (const tensor of tensors) tensor?.dispose()
}

/**
 * Runs `body(...inputs)`; the backward pass runs it again, in `selective` without its costly ops (those that say so in
 * their definition). Same gradients to the bit with less memory. `body` must make the same calls both times and may use
 * parameters from outside; its other tensors must come in as inputs. Inside another checkpoint, or where no tape
 * records, it just runs.
 */
export function checkpoint(mode: Checkpointing, body: (...inputs: Tensor[]) => Tensor, ...inputs: Tensor[]): Tensor {
  const tape = recordingTape()
  if (mode === 'none' || !tape || current) return body(...inputs)
  using first = new FirstRun(mode === 'selective')
  const output = withoutTape(() => runAs(first, () => body(...inputs)))
  if (first.tracked) tape.add(checkpointRecord(body, { inputs, output, plan: first.plan() }))
  return output
}

interface Checkpoint {
  inputs: readonly Tensor[]
  output: Tensor
  plan: readonly PlannedCall[]
}

/** What a checkpoint leaves on the tape. */
function checkpointRecord(body: (...inputs: Tensor[]) => Tensor, { inputs, output, plan }: Checkpoint): Record {
  const kept = plan.flatMap(({ fate }) => (typeof fate === 'string' ? [] : fate))
  const saved = [...inputs, ...kept.filter((tensor) => tensor !== undefined)]
  return {
    name: 'checkpoint',
    inputs: [],
    outputs: [output],
    saved,
    backward(incoming, _into, table) {
      using again = new Tape()
      const second = new SecondRun(plan)
      const replayed = again.record(() => runAs(second, () => body(...inputs)))
      second.end()
      // From here on the body's own tape holds what is still read, and frees it as it goes.
      drop(saved.splice(0))
      // Handed over, as in `none` no checkpoint holds it: to a gradient with two owners others are added by an op of
      // its own, which rounds once more in bf16.
      again.backwardFrom(replayed, incoming.pop()!, table)
      return []
    },
  }
}
