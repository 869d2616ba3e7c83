// Reverse-mode differentiation. While a tape records, each op call with a tracked input leaves a record: what to keep
// and how to turn gradients of its outputs into gradients of its inputs. The tape owns what it keeps and frees each
// piece as the backward pass consumes it.
import { CaravanError } from '../base/errors.js'
import { sameShape, shapeText } from '../base/shape.js'
import { scope, type Tensor } from './tensor.js'

/** The gradient that an input already has, taken out of the table: the backward function may overwrite it or add it in
 *  the same pass, and must return the sum. Undefined when there is none or when it is shared. */
export type Into = (input: Tensor | undefined) => Tensor | undefined

export interface Record {
  name: string
  inputs: readonly (Tensor | undefined)[]
  outputs: readonly (Tensor | undefined)[]
  saved: readonly Tensor[]
  /** Gradients of the inputs, in their order, from those of the outputs (undefined: no gradient flows there). What it
   *  removes from that list it owns. */
  backward(gradients: (Tensor | undefined)[], into: Into, table: Gradients): readonly (Tensor | undefined)[]
}

let current: Tape | undefined

/** The tape that records now, if any. */
export function recordingTape(): Tape | undefined {
  return current
}

/** Gradients by tensor. Holding a gradient means owning it; `dispose()` frees all of them. */
export class Gradients {
  readonly #table = new Map<Tensor, Tensor>()
  /** How to add two gradients; given by the op layer, which this file may not import. */
  static add: (a: Tensor, b: Tensor) => Tensor
  static addInto: (sum: Tensor, term: Tensor) => void

  get(tensor: Tensor): Tensor | undefined {
    return this.#table.get(tensor)
  }

  entries(): IterableIterator<[Tensor, Tensor]> {
    return this.#table.entries()
  }

  /** Adds `gradient` to what `tensor` has. */
  accumulate(tensor: Tensor, gradient: Tensor): void {
    if (!sameShape(tensor.shape, gradient.shape)) {
      const [wanted, got] = [shapeText(tensor.shape), shapeText(gradient.shape)]
      throw new CaravanError('ERR_INTERNAL', `a gradient of shape ${got} was given for a tensor of shape ${wanted}`)
    }
    const before = this.#table.get(tensor)
    if (!before) {
      this.#table.set(tensor, gradient.retain())
    } else if (before.references === 1) {
      Gradients.addInto(before, gradient)
    } else {
      // Someone else sees this memory (a residual branch, say): the sum needs memory of its own.
      this.#table.set(tensor, Gradients.add(before, gradient).retain())
      before.dispose()
    }
  }

  /** Removes and returns the gradient of `tensor`; the caller owns it. */
  take(tensor: Tensor): Tensor | undefined {
    const gradient = this.#table.get(tensor)
    this.#table.delete(tensor)
    return gradient
  }

  dispose(): void {
    for (const gradient of this.#table.values()) gradient.dispose()
    this.#table.clear()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

export interface TapeOptions {
  /** Where the gradients will be collected. A loss that makes its gradient in the forward pass adds to it there. */
  into?: Gradients
  /** A promise that backward() will be seeded with 1, which such a loss needs to know beforehand. */
  unitSeed?: boolean
}

/** Records op calls and plays them backwards, once. */
export class Tape {
  #records: Record[] = []
  readonly into: Gradients | undefined
  readonly unitSeed: boolean

  constructor(options: TapeOptions = {}) {
    this.into = options.into
    this.unitSeed = options.unitSeed ?? false
  }

  /** Runs `body` with this tape recording and inside a scope: what the result and the tape do not need is freed. */
  record<R>(body: () => R): R {
    const outer = current
    current = this
    try {
      return scope(body)
    } finally {
      current = outer
    }
  }

  add(record: Record): void {
    for (const tensor of record.saved) tensor.retain()
    for (const output of record.outputs) if (output) output.tracked = true
    this.#records.push(record)
  }

  /** Adds the gradients of `output` with respect to every tracked tensor it came from to `gradients`, those of
   *  intermediate tensors excepted. `seed` is the gradient of `output` itself. The tape is empty afterwards. */
  backward(output: Tensor, seed: Tensor, gradients: Gradients): void {
    this.#play(gradients, () => gradients.accumulate(output, seed))
  }

  /** As backward(), from a gradient that the caller owns and hands over: nobody else then sees it. */
  backwardFrom(output: Tensor, gradient: Tensor, gradients: Gradients): void {
    this.#play(gradients, () => {
      using owned = gradient
      gradients.accumulate(output, owned)
    })
  }

  #play(gradients: Gradients, seed: () => void): void {
    const outer = current
    current = undefined
    const records = this.#records
    this.#records = []
    try {
      seed()
      for (let record = records.pop(); record; record = records.pop()) play(record, gradients)
    } finally {
      current = outer
      for (const record of records) release(record)
    }
  }

  /** Frees what the tape keeps without a backward pass. */
  dispose(): void {
    for (const record of this.#records) release(record)
    this.#records = []
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

function play(record: Record, gradients: Gradients): void {
  const incoming = record.outputs.map((output) => output && gradients.take(output))
  try {
    if (incoming.some((gradient) => gradient !== undefined)) scope(() => pass(record, incoming, gradients))
  } finally {
    for (const gradient of incoming) gradient?.dispose()
    release(record)
  }
}

/** Runs one backward function and hands its results on. */
function pass(record: Record, incoming: (Tensor | undefined)[], gradients: Gradients): void {
  const taken: Tensor[] = []
  const into: Into = (input) => {
    const before = input && gradients.get(input)
    if (!input || !before || before.references !== 1) return undefined
    gradients.take(input)
    taken.push(before)
    return before
  }
  try {
    const outgoing = record.backward(incoming, into, gradients)
    record.inputs.forEach((input, i) => {
      const gradient = outgoing[i]
      if (input?.tracked && gradient) gradients.accumulate(input, gradient)
    })
  } finally {
    for (const before of taken) before.dispose()
  }
}

function release(record: Record): void {
  for (const tensor of record.saved) tensor.dispose()
}

/** Runs `body` without recording. */
export function withoutTape<R>(body: () => R): R {
  const outer = current
  current = undefined
  try {
    return scope(body)
  } finally {
    current = outer
  }
}
