// One process that runs verifiers, seen from its parent: it is started when there is work, ends when a completion takes
// too long or too much memory, and is started again for those behind it. A process and not a thread: V8 ends the whole
// process when the heap of a thread runs out, unless that is filled in small steps.
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { serialize } from 'node:v8'
import { CaravanError, type ErrorCode } from '../base/errors.js'
import { workerUrl } from '../base/worker.js'
import { refused, type Verdict, type VerifyInput } from './verifier.js'

/** Fields of an input beside the completion. */
const FIELDS = ['prompt', 'groundTruth', 'tokenCount', 'row'] as const

/** What the process is sent. */
export interface VerifyBatch {
  /** Names, or absolute paths of modules. */
  verifiers: string[]
  /** Which of them judges each input. */
  which: number[]
  inputs: InputColumns
  /** Write each verdict before the next is begun: in this batch is one that ends processes without notice. */
  isCareful: boolean
}

/** Inputs by field, which is read four times as fast as objects; a field that none of them has is left out. */
export type InputColumns = { completion: string[] } & { [field in (typeof FIELDS)[number]]?: Column }

/** Each value once: completions share prompts and labels, and texts cost as much as all else that is sent. */
export interface Column {
  values: unknown[]
  /** Which of them each input has; left out where all have the first. */
  which?: Uint16Array
}

/** Verdicts of a line, one after another in one list, which is read three times as fast as objects. */
export const VERDICT_SLOTS = 4
export type VerdictSlots = [score: number, reason: string, extracted: string | 0, lists: VerdictLists | 0]
export type VerdictLists = [strict: boolean[] | 0, loose: boolean[] | 0]

/** Why a batch was not finished: an error without its class. It came after the last verdict. */
export interface BatchFailure {
  code: ErrorCode
  message: string
  details: Record<string, unknown>
  hint?: string
}

/** First letters of the lines that it answers; what follows is JSON. */
export const SIGNS = {
  ready: 'r',
  /** A verifier, by its name. */
  loaded: 'l',
  /** Several at a time, in order. */
  verdicts: 'v',
  /** It ends itself for what the next verdict cost. */
  condemned: 'c',
  failure: 'f',
} as const

/** File descriptor that it writes them to: the first behind standard streams and channel. */
export const ANSWER_FD = 4

export interface ProcessLimits {
  /** Of one completion. */
  timeoutMs: number
  /** Of the heap; twice that may come on top of what the process needs to begin with. */
  memoryMiB: number
}

export function tookTooLong({ timeoutMs }: ProcessLimits): string {
  return `took more than ${timeoutMs} ms`
}

export function outOfMemory({ memoryMiB }: ProcessLimits): string {
  return `ran out of memory (it may have ${memoryMiB} MiB)`
}

/** Work for the process, and whom to tell. */
export interface Work {
  verifiers: string[]
  /** Which of them judges each input. */
  which: number[]
  inputs: VerifyInput[]
  /** Verdicts of the inputs from `index` on. */
  onVerdicts(index: number, verdicts: Verdict[]): void
  /** All inputs are judged, or `error` is why those from `index` on are not. */
  onEnd(failure?: { index: number; error: CaravanError }): void
}

/** Starting, and loading a module of the user's, may take longer than a verdict. */
const START_MS = 20_000

interface Pending {
  work: Work
  /** Inputs that have their verdict. */
  done: number
  isCareful: boolean
  /** Processes that ended before this was loaded. */
  lost: number
}

export class VerifierProcess {
  readonly #limits: ProcessLimits
  readonly #pending: Pending[] = []
  #child: ChildProcess | undefined
  #ending: Promise<unknown> | undefined
  #isReady = false
  readonly #loaded = new Set<string>()
  #rest = ''
  #lastNews = 0
  /** What the next verdict cost, when the process ends itself for it. */
  #sentence: string | undefined

  constructor(limits: ProcessLimits) {
    this.#limits = limits
  }

  /** How many batches wait or are in work. */
  get load(): number {
    return this.#pending.length
  }

  send(work: Work): void {
    if (this.#pending.length === 0) this.#lastNews = performance.now()
    this.#pending.push({ work, done: 0, isCareful: false, lost: 0 })
    if (this.#child === undefined) this.#start()
    else this.#post(this.#pending.at(-1)!)
  }

  /** Ends a process that does not even start, load or watch itself; to be called now and then while there is work. */
  watch(): void {
    if (!this.#isOverdue()) return
    // This thread may be the one that was busy: what has arrived meanwhile is read before the check.
    setImmediate(() => {
      if (this.#isOverdue()) this.#child?.kill('SIGKILL')
    })
  }

  /** Forgets work that nobody waits for: ends the process if it has no other. */
  abandon(isUnwanted: (work: Work) => boolean): void {
    if (this.#pending.length > 0 && this.#pending.every(({ work }) => isUnwanted(work))) void this.dispose()
  }

  /** Ends the process; resolves when it has gone. Its work is forgotten. */
  async dispose(): Promise<void> {
    this.#pending.length = 0
    const child = this.#child
    this.#child = undefined
    if (child !== undefined && child.exitCode === null && child.signalCode === null) {
      child.ref()
      this.#ending = once(child, 'close')
      child.kill('SIGKILL')
    }
    await this.#ending
  }

  #start(): void {
    const limits = this.#limits
    const child = fork(fileURLToPath(workerUrl(import.meta.url, './verifier_worker.js')), [JSON.stringify(limits)], {
      serialization: 'advanced',
      execArgv: [`--max-old-space-size=${limits.memoryMiB}`, '--max-semi-space-size=16'],
      env: { ...process.env, NODE_OPTIONS: '' },
      stdio: ['ignore', 'ignore', 'ignore', 'ipc', 'pipe'],
    })
    this.#child = child
    this.#isReady = false
    this.#loaded.clear()
    this.#rest = ''
    this.#sentence = undefined
    this.#lastNews = performance.now()
    child.on('error', (cause) => this.#lost(child, `failed: ${cause.message}`))
    child.on('close', (code, signal) => this.#lost(child, this.#endText(code, signal)))
    // There is none where no process could be made.
    const answers = child.stdio?.[ANSWER_FD] as Socket | undefined
    answers?.setEncoding('utf8')
    answers?.on('data', (text: string) => this.#read(child, text))
    answers?.on('error', () => {}) // the end of the process says it, too
    // What is waited for keeps this process alive by the timer that watches.
    child.unref()
    child.channel?.unref()
    answers?.unref()
    for (const pending of [...this.#pending]) this.#post(pending)
  }

  #post(pending: Pending): void {
    const { done, isCareful } = pending
    const { verifiers, which, inputs } = pending.work
    if (inputs.length === 0 && this.#hasLoaded(pending)) {
      this.#finish(pending)
      return
    }
    const batch: VerifyBatch = {
      verifiers,
      which: which.slice(done),
      inputs: columnsOf(inputs.slice(done)),
      isCareful,
    }
    try {
      // A channel that has closed is reported by the end of the process.
      this.#child!.send(batch, () => {})
    } catch (cause) {
      while (pending.done < inputs.length && isSendable(inputs[pending.done])) pending.done++
      this.#finish(pending, unsendable(pending, cause))
    }
  }

  #read(child: ChildProcess, text: string): void {
    if (child !== this.#child) return
    this.#lastNews = performance.now()
    const lines = (this.#rest + text).split('\n')
    this.#rest = lines.pop()!
    for (const line of lines) this.#answer(line[0]!, line.slice(1))
  }

  #answer(sign: string, json: string): void {
    if (sign === SIGNS.ready) this.#isReady = true
    const pending = this.#pending[0]
    if (pending === undefined) return
    if (sign === SIGNS.loaded) {
      this.#loaded.add(JSON.parse(json) as string)
      if (pending.work.inputs.length === 0 && this.#hasLoaded(pending)) this.#finish(pending)
    } else if (sign === SIGNS.verdicts) {
      this.#judged(pending, verdictsOf(JSON.parse(json) as VerdictSlots[number][]))
    } else if (sign === SIGNS.condemned) {
      this.#sentence = JSON.parse(json) as string
    } else if (sign === SIGNS.failure) {
      const { code, message, ...options } = JSON.parse(json) as BatchFailure
      this.#finish(pending, new CaravanError(code, message, options))
    }
  }

  #judged(pending: Pending, verdicts: Verdict[]): void {
    pending.work.onVerdicts(pending.done, verdicts)
    pending.done += verdicts.length
    if (pending.done === pending.work.inputs.length) this.#finish(pending)
  }

  #hasLoaded({ work }: Pending): boolean {
    return work.verifiers.every((name) => this.#loaded.has(name))
  }

  #finish(pending: Pending, error?: CaravanError): void {
    this.#pending.splice(this.#pending.indexOf(pending), 1)
    pending.work.onEnd(error && { index: pending.done, error })
  }

  #isOverdue(): boolean {
    if (this.#pending.length === 0) return false
    return performance.now() - this.#lastNews > START_MS + this.#limits.timeoutMs
  }

  #endText(code: number | null, signal: NodeJS.Signals | null): string {
    // V8 ends a process without memory by abort or trap.
    if (signal === 'SIGABRT' || signal === 'SIGTRAP' || signal === 'SIGILL') return outOfMemory(this.#limits)
    return `ended its process (${signal ?? `exit code ${code}`})`
  }

  /** The process has gone. The input that it was at has its verdict by that; those behind it go to the next process. */
  #lost(child: ChildProcess, how: string): void {
    if (child !== this.#child) return
    this.#child = undefined
    const pending = this.#pending[0]
    if (pending === undefined) return
    const reason = this.#sentence ?? how
    if (!this.#isReady) {
      const error = new CaravanError('ERR_INTERNAL', `the process that runs verifiers did not start: it ${reason}`)
      for (const one of [...this.#pending]) this.#finish(one, error)
    } else if (!this.#hasLoaded(pending)) {
      // It may have ended before it was given this.
      if (pending.lost++ > 0) this.#finish(pending, loadFault(pending, reason))
    } else if (this.#sentence === undefined && !pending.isCareful) {
      // Verdicts may have been lost with it, and which one was next is not known: the next process tells.
      pending.isCareful = true
    } else {
      this.#judged(pending, [refused(`${verifierAt(pending)} ${reason}`)])
    }
    if (this.#pending.length > 0 && this.#child === undefined) this.#start()
  }
}

function verifierAt({ work: { verifiers, which }, done }: Pending): string {
  return verifiers[which[done]!]!
}

function loadFault({ work: { verifiers } }: Pending, reason: string): CaravanError {
  return new CaravanError('ERR_CONFIG', `verifier ${verifiers.join(' or ')}: it ${reason} while it was loaded`, {
    details: { verifiers },
    hint: 'a module of a verifier defines things; work belongs into `verify`',
  })
}

function unsendable({ work: { verifiers, which }, done }: Pending, cause: unknown): CaravanError {
  const verifier = verifiers[which[done] ?? 0]
  return new CaravanError('ERR_DATA', `${verifier}: the row is no plain data: ${(cause as Error).message}`, {
    details: { verifier },
    hint: 'rows hold text, numbers, lists and objects; functions cannot be sent to a verifier',
    cause,
  })
}

function columnsOf(inputs: readonly VerifyInput[]): InputColumns {
  const columns: InputColumns = { completion: inputs.map(({ completion }) => completion) }
  for (const field of FIELDS) {
    const column = columnOf(inputs.map((input) => input[field]))
    if (column !== undefined) columns[field] = column
  }
  return columns
}

function columnOf(list: readonly unknown[]): Column | undefined {
  const first = list[0]
  if (list.every((value) => value === first)) return first === undefined ? undefined : { values: [first] }
  const indexOf = new Map<unknown, number>()
  const which = Uint16Array.from(list, (value) => {
    let index = indexOf.get(value)
    if (index === undefined) {
      index = indexOf.size
      indexOf.set(value, index)
    }
    return index
  })
  return { values: [...indexOf.keys()], which }
}

function verdictsOf(slots: readonly VerdictSlots[number][]): Verdict[] {
  const verdicts: Verdict[] = []
  for (let at = 0; at < slots.length; at += VERDICT_SLOTS) {
    // Not taken apart as a list of their own: that costs as much as all else here.
    const verdict: Verdict = { score: slots[at] as number, reason: slots[at + 1] as string }
    const extracted = slots[at + 2] as VerdictSlots[2]
    const lists = slots[at + 3] as VerdictSlots[3]
    if (extracted !== 0) verdict.extracted = extracted
    if (lists !== 0) {
      if (lists[0] !== 0) verdict.strict = lists[0]
      if (lists[1] !== 0) verdict.loose = lists[1]
    }
    verdicts.push(verdict)
  }
  return verdicts
}

function isSendable(value: unknown): boolean {
  try {
    serialize(value)
    return true
  } catch {
    return false
  }
}
