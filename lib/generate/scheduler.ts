// Continuous batching, without a tensor in sight: which tokens of which sequences go through the model next. A finished
// sequence gives its pages to the next request at once; long prompts go in by pieces, so that a step stays bounded.
// What a sequence generates depends on none of this, because no row's result depends on the rows beside it.
//
// A request is admitted when pages for all that it may become are free, so that no sequence ever has to be taken back.
import { CaravanError } from '../base/errors.js'
import { PAGE_KEYS, type SampleRow } from '../ops/index.js'
import { pagesFor } from './kv_cache.js'
import { PagePool } from './page_pool.js'
import type { Continuation, ResolvedRequest } from './request.js'

/** The rows of one forward pass. */
export interface Step {
  /** True when the tokens that it feeds are still to be drawn by the step before: `ids` are then their places there, in
   *  the order of its lastRows. */
  ahead: boolean
  ids: Int32Array
  positions: Int32Array
  /** Row of the key/value cache for each row. */
  cacheRows: Int32Array
  /** [S,4]: q_begin, q_end, first entry of `pages`, keys. */
  segments: Int32Array
  pages: Int32Array
  /** Rows from which a token is to be drawn, in the order in which `accept` wants the tokens; a prompt with several
   *  samples gives its last row several times. */
  lastRows: Int32Array
  draws: SampleRow[]
}

/** Rows of the cache to copy before the next step: prompts that end inside a page go on in a page per sample. */
export interface RowCopies {
  from: number[]
  to: number[]
}

export interface SchedulerOptions {
  /** Pages of the cache. */
  pages: number
  /** Sequences in work at the same time. */
  slots: number
  /** Most rows of a step; sequences that wait for their next token come first. */
  stepRows: number
}

export type FinishReason = 'stop' | 'length' | 'aborted'

/** A sequence in work. */
export interface Sequence {
  readonly request: ResolvedRequest
  readonly sample: number
  /** Prompt and new tokens. */
  readonly known: readonly number[]
}

interface Active extends Sequence {
  known: number[]
  stopIds: ReadonlySet<number>
  /** Length at which it ends. */
  end: number
  pages: Int32Array
  /** Tokens whose keys and values are in the cache when the steps under way have run. */
  fed: number
  /** Counts how often the sequence went another way than the steps under way suppose: what they draw for it is void. */
  turn: number
  /** Further samples, which take over when the prompt is in the cache. */
  forks: Active[]
  /** Distinct tokens so far, where a repetition penalty wants them. */
  seen: Set<number> | undefined
}

/** A sequence that takes part in a step. */
interface Taking {
  sequence: Active
  /** Rows. */
  feeding: number
  /** Place in the step before from which its token comes; undefined when it is known. */
  place?: number
}

/** A sequence for which a step under way draws a token. */
interface Drawing {
  sequence: Active
  turn: number
}

/** A token that `accept` gave to a sequence; one that has ended must be answered by `finish` or `resume`. */
export interface Accepted {
  sequence: Sequence
  /** Of the token among those of the step. */
  place: number
  token: number
  finishReason: 'stop' | 'length' | undefined
}

/** What is left of a request that waits. */
interface Waiting {
  request: ResolvedRequest
  nextSample: number
}

export class Scheduler {
  readonly #pool: PagePool
  readonly #waiting: Waiting[] = []
  #active: Active[] = []
  /** What the steps under way draw, the older one first. */
  readonly #underWay: Drawing[][] = []
  #copies: RowCopies = { from: [], to: [] }

  constructor(private readonly options: SchedulerOptions) {
    this.#pool = new PagePool(options.pages)
  }

  /** Requests that wait for room. */
  get waitingCount(): number {
    return this.#waiting.length
  }

  get idle(): boolean {
    return this.#waiting.length === 0 && this.#active.length === 0
  }

  get freePages(): number {
    return this.#pool.freeCount
  }

  /** Queues a request. ERR_OOM when one of its sequences alone needs more pages than there are. */
  add(request: ResolvedRequest): void {
    const { each } = pagesOf(request)
    if (each > this.options.pages) {
      const [wanted, limit] = [each * PAGE_KEYS, this.options.pages * PAGE_KEYS]
      throw new CaravanError(
        'ERR_OOM',
        `request ${request.index}: prompt and maxTokens want ${wanted} tokens of cache; the cache has ${limit}`,
        { details: { request: request.index, wanted, limit }, hint: 'raise cacheTokens or lower maxTokens' },
      )
    }
    this.#waiting.push({ request, nextSample: 0 })
  }

  /** The next forward pass, or undefined when nothing is in work. Not while one is under way: each must be answered by
   *  `accept`. */
  next(): Step | undefined {
    this.#admit()
    if (this.#active.length === 0) return undefined
    let rows = 0
    // Those with one token to feed go first: they are the ones that somebody watches.
    const order = [...this.#active].sort((a, b) => unfed(a) - unfed(b))
    const taking: Taking[] = []
    for (const sequence of order) {
      const feeding = Math.min(unfed(sequence), this.options.stepRows - rows)
      if (feeding <= 0) break
      rows += feeding
      taking.push({ sequence, feeding })
    }
    return this.#layOut(taking, rows)
  }

  /** The pass behind the one under way, before that one's tokens are known: the next token of every sequence whose
   *  length does not end it. What turns out to have ended otherwise is left out of what `accept` gives. Undefined where
   *  the coming pass depends on more than tokens: on prompts, requests that could begin, repetition penalties. */
  ahead(): Step | undefined {
    const [drawing, ...later] = this.#underWay
    if (!drawing || later.length > 0 || this.#room() > 0) return undefined
    const taking: Taking[] = []
    let going = 0
    for (const [place, { sequence, turn }] of drawing.entries()) {
      if (turn !== sequence.turn) continue
      if (sequence.seen || sequence.forks.length > 0) return undefined
      going++
      if (sequence.known.length + 1 < sequence.end) taking.push({ sequence, feeding: 1, place })
    }
    if (going < this.#active.length || taking.length === 0) return undefined
    return this.#layOut(taking, taking.length)
  }

  /** Copies that the cache must make before the pass that `next` described last. */
  takeCopies(): RowCopies {
    const copies = this.#copies
    this.#copies = { from: [], to: [] }
    return copies
  }

  /** Takes the tokens that were drawn for the older of the steps under way. */
  accept(tokens: ArrayLike<number>): Accepted[] {
    const drawing = this.#underWay.shift() ?? []
    const alive = drawing.map(({ sequence, turn }) => turn === sequence.turn)
    for (const [i, { sequence }] of drawing.entries()) if (alive[i] && sequence.forks.length > 0) this.#fork(sequence)
    return drawing.flatMap(({ sequence }, place): Accepted[] => {
      if (!alive[place]) return []
      const token = tokens[place]!
      const { known, stopIds, end, seen } = sequence
      known.push(token)
      seen?.add(token)
      const finishReason = stopIds.has(token) ? 'stop' : known.length >= end ? 'length' : undefined
      return [{ sequence, place, token, finishReason }]
    })
  }

  /** Lets a sequence that has ended go on with what is in the cache; false when it has no room for that. */
  resume(sequence: Sequence, { append, maxTokens, stopIds }: Continuation, finishReason: 'stop' | 'length'): boolean {
    const active = this.#active.find((other) => other === sequence)
    if (!active) return false
    const { request, known } = active
    const room = request.prompt.length + request.maxTokens
    const begin = known.length - (finishReason === 'stop' ? 1 : 0) + append.length
    if (begin >= room || maxTokens < 1) return false
    if (finishReason === 'stop') known.pop()
    active.turn++
    // A stop token may have been fed ahead of time: what follows is written over it. Where nothing follows, the last
    // token is fed once more: something must be, to draw from.
    active.fed = Math.min(active.fed, known.length - (append.length === 0 ? 1 : 0))
    for (const token of append) known.push(token)
    if (active.seen) active.seen = new Set(known)
    active.end = Math.min(room, begin + maxTokens)
    active.stopIds = new Set(stopIds)
    return true
  }

  /** Takes a sequence out of work and frees its pages; nothing when it has ended before. */
  finish(sequence: Sequence): void {
    const active = this.#active.find((other) => other === sequence)
    if (!active) return
    active.turn++
    for (const page of active.pages) this.#pool.release(page)
    this.#active = this.#active.filter((other) => other !== active)
  }

  /** Takes all of a request out of work and returns its sequences, those not begun included. */
  cancel(request: ResolvedRequest): Sequence[] {
    const cancelled: Sequence[] = []
    for (const sequence of this.#active.filter((other) => other.request === request)) {
      for (const one of [sequence, ...sequence.forks]) {
        cancelled.push(one)
        one.turn++
        for (const page of one.pages) this.#pool.release(page)
      }
    }
    this.#active = this.#active.filter((other) => other.request !== request)
    const index = this.#waiting.findIndex((waiting) => waiting.request === request)
    if (index >= 0) {
      const [{ nextSample }] = this.#waiting.splice(index, 1) as [Waiting]
      for (let sample = nextSample; sample < request.samples; sample++) {
        cancelled.push({ request, sample, known: [...request.prompt] })
      }
    }
    return cancelled
  }

  #admit(): void {
    for (let count = this.#room(); count > 0; count = this.#room()) {
      const first = this.#waiting[0]!
      this.#active.push(this.#begin(first, count))
      first.nextSample += count
      if (first.nextSample === first.request.samples) this.#waiting.shift()
    }
  }

  /** Samples of the first request that waits that can begin now. */
  #room(): number {
    const [first] = this.#waiting
    if (!first) return 0
    const { request } = first
    const { each, common } = pagesOf(request)
    const possible = each === common ? Infinity : Math.floor((this.options.pages - common) / (each - common))
    const count = Math.min(request.samples - first.nextSample, this.options.slots, possible)
    const inWork = this.#active.reduce((sum, { forks }) => sum + 1 + forks.length, 0)
    return inWork + count > this.options.slots || common + count * (each - common) > this.#pool.freeCount ? 0 : count
  }

  /** `count` samples of a request: the first computes the prompt, the others hold pages and wait for it. */
  #begin({ request, nextSample }: Waiting, count: number): Active {
    const { each, common } = pagesOf(request)
    const sequenceOf = (sample: number, shared: Int32Array): Active => ({
      request,
      sample,
      known: [...request.prompt],
      stopIds: request.stopIds,
      end: request.prompt.length + Math.min(request.maxTokens, request.steering?.maxTokens ?? Infinity),
      pages: Int32Array.from({ length: each }, (_, i) =>
        i < shared.length ? this.#pool.share(shared[i]!) : this.#pool.take(),
      ),
      fed: 0,
      turn: 0,
      forks: [],
      seen: request.settings.repetitionPenalty === 1 ? undefined : new Set(request.prompt),
    })
    const first = sequenceOf(nextSample, new Int32Array(0))
    const shared = first.pages.subarray(0, common)
    first.forks = Array.from({ length: count - 1 }, (_, i) => sequenceOf(nextSample + 1 + i, shared))
    return first
  }

  /** The prompt is in the cache: the other samples go on from it. */
  #fork(first: Active): void {
    const { forks, fed } = first
    first.forks = []
    const begun = fed % PAGE_KEYS
    const page = Math.floor(fed / PAGE_KEYS)
    for (const fork of forks) {
      fork.fed = fed
      // A sequence of one new token has no page of its own.
      for (let i = 0; i < begun && fork.pages[page] !== first.pages[page]; i++) {
        this.#copies.from.push(first.pages[page]! * PAGE_KEYS + i)
        this.#copies.to.push(fork.pages[page]! * PAGE_KEYS + i)
      }
    }
    this.#active.push(...forks)
  }

  #layOut(taking: readonly Taking[], rows: number): Step {
    const read = taking.map(({ sequence, feeding }) => pagesFor(sequence.fed + feeding))
    const step: Step = {
      ahead: taking[0]!.place !== undefined,
      ids: new Int32Array(rows),
      positions: new Int32Array(rows),
      cacheRows: new Int32Array(rows),
      segments: new Int32Array(taking.length * 4),
      pages: new Int32Array(read.reduce((sum, count) => sum + count, 0)),
      lastRows: new Int32Array(0),
      draws: [],
    }
    const lastRows: number[] = []
    const drawing: Drawing[] = []
    let [row, page] = [0, 0]
    for (const [s, { sequence, feeding, place }] of taking.entries()) {
      const { known, fed, pages, forks } = sequence
      const end = fed + feeding
      step.segments.set([row, row + feeding, page, end], s * 4)
      step.pages.set(pages.subarray(0, read[s]), page)
      page += read[s]!
      for (let i = fed; i < end; i++, row++) {
        step.ids[row] = place ?? known[i]!
        step.positions[row] = i
        step.cacheRows[row] = pages[Math.floor(i / PAGE_KEYS)]! * PAGE_KEYS + (i % PAGE_KEYS)
      }
      sequence.fed = end
      if (end < known.length) continue
      for (const one of [sequence, ...forks]) {
        drawing.push({ sequence: one, turn: one.turn })
        lastRows.push(row - 1)
        step.draws.push(drawOf(one, end))
      }
    }
    step.lastRows = Int32Array.from(lastRows)
    this.#underWay.push(drawing)
    return step
  }
}

const unfed = (sequence: Active) => sequence.known.length - sequence.fed

/** Pages of one sequence of a request, and how many of them all its samples share. The last new token is never fed. */
export function pagesOf({ prompt, maxTokens }: ResolvedRequest): { each: number; common: number } {
  const each = pagesFor(prompt.length + maxTokens - 1)
  // A prompt that ends inside a page is shared up to there; where nothing is written after it, altogether.
  const common = maxTokens === 1 ? each : Math.floor(prompt.length / PAGE_KEYS)
  return { each, common }
}

function drawOf({ request, sample, seen }: Active, position: number): SampleRow {
  const key = { seed: request.seed, sample, position }
  return { settings: request.settings, key, previous: seen && [...seen] }
}
