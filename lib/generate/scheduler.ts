// Continuous batching, without a tensor in sight: which tokens of which sequences go through the model next. A finished
// sequence gives its slot to the next prompt at once; long prompts go in by pieces, so that a step stays bounded. What
// a sequence generates depends on none of this, because no row's result depends on the rows beside it.

/** The rows of one forward pass. */
export interface Step {
  ids: Int32Array
  positions: Int32Array
  /** Row of the key/value cache for each row. */
  cacheRows: Int32Array
  /** [S,4]: q_begin, q_end, k_begin, k_end. */
  segments: Int32Array
  /** Last row of every sequence that is to get a token, in the order in which `accept` wants the tokens. */
  lastRows: Int32Array
}

export interface SchedulerOptions {
  slots: number
  /** Cache rows of a slot. */
  capacity: number
  /** New tokens a sequence may get. */
  maxTokens: number
  stopIds: ReadonlySet<number>
  /** Most rows of a step; sequences that wait for their next token come first. */
  stepRows: number
}

export interface Finished {
  tokens: Int32Array
  finishReason: 'stop' | 'length'
}

interface Active {
  prompt: number
  slot: number
  /** Prompt and new tokens. */
  known: number[]
  promptLength: number
  /** Tokens whose keys and values are in the cache. */
  fed: number
  /** Rows in the step under way. */
  feeding: number
}

export class Scheduler {
  readonly finished: (Finished | undefined)[]
  finishedCount = 0
  newTokenCount = 0
  readonly #freeSlots: number[]
  #active: Active[] = []
  #awaiting: Active[] = []
  #nextPrompt = 0

  constructor(
    private readonly prompts: readonly Int32Array[],
    private readonly options: SchedulerOptions,
  ) {
    this.finished = Array(prompts.length).fill(undefined)
    this.#freeSlots = Array.from({ length: options.slots }, (_, i) => options.slots - 1 - i)
  }

  /** Prompts, by index, of the sequences that `accept` gives tokens to, in order. */
  get awaiting(): number[] {
    return this.#awaiting.map((sequence) => sequence.prompt)
  }

  /** The next forward pass, or undefined when every sequence is finished. Each must be answered by `accept`. */
  next(): Step | undefined {
    this.#admit()
    if (this.#active.length === 0) return undefined
    let rows = 0
    // Those with one token to feed go first: they are the ones that somebody watches.
    const order = [...this.#active].sort((a, b) => a.known.length - a.fed - (b.known.length - b.fed))
    const taking: Active[] = []
    for (const sequence of order) {
      sequence.feeding = Math.min(sequence.known.length - sequence.fed, this.options.stepRows - rows)
      if (sequence.feeding <= 0) break
      rows += sequence.feeding
      taking.push(sequence)
    }
    this.#awaiting = taking.filter((sequence) => sequence.fed + sequence.feeding === sequence.known.length)
    return this.#layOut(taking, rows)
  }

  /** Takes the tokens that the step under way produced. */
  accept(tokens: ArrayLike<number>): void {
    for (const sequence of this.#active) {
      sequence.fed += sequence.feeding
      sequence.feeding = 0
    }
    for (const [i, sequence] of this.#awaiting.entries()) {
      const token = tokens[i]!
      sequence.known.push(token)
      this.newTokenCount++
      if (this.options.stopIds.has(token)) this.#finish(sequence, 'stop')
      else if (sequence.known.length - sequence.promptLength >= this.options.maxTokens) this.#finish(sequence, 'length')
    }
    this.#awaiting = []
  }

  #admit(): void {
    while (this.#freeSlots.length > 0 && this.#nextPrompt < this.prompts.length) {
      const known = [...this.prompts[this.#nextPrompt]!]
      const slot = this.#freeSlots.pop()!
      this.#active.push({ prompt: this.#nextPrompt, slot, known, promptLength: known.length, fed: 0, feeding: 0 })
      this.#nextPrompt++
    }
  }

  #layOut(taking: Active[], rows: number): Step {
    const step: Step = {
      ids: new Int32Array(rows),
      positions: new Int32Array(rows),
      cacheRows: new Int32Array(rows),
      segments: new Int32Array(taking.length * 4),
      lastRows: new Int32Array(this.#awaiting.length),
    }
    let [row, last] = [0, 0]
    for (const [s, { known, fed, feeding, slot }] of taking.entries()) {
      const base = slot * this.options.capacity
      step.segments.set([row, row + feeding, base, base + fed + feeding], s * 4)
      for (let i = fed; i < fed + feeding; i++, row++) {
        step.ids[row] = known[i]!
        step.positions[row] = i
        step.cacheRows[row] = base + i
      }
      if (fed + feeding === known.length) step.lastRows[last++] = row - 1
    }
    return step
  }

  #finish(sequence: Active, finishReason: 'stop' | 'length'): void {
    const tokens = Int32Array.from(sequence.known.slice(sequence.promptLength))
    this.finished[sequence.prompt] = { tokens, finishReason }
    this.finishedCount++
    this.#freeSlots.push(sequence.slot)
    this.#active = this.#active.filter((other) => other !== sequence)
  }
}
