// Verifies completions beside training, in processes of their own (verifier_process.ts), so that code which never ends
// or eats all memory costs its completion the reward and nothing else. Verdicts do not depend on how many processes
// there are: each is that of guardedVerify, and of several bad rows the first is reported.
import { availableParallelism } from 'node:os'
import { CaravanError } from '../base/errors.js'
import { labelFault, type Verdict, type VerifyInput } from './verifier.js'
import { resolveVerifierName } from './verifier_module.js'
import { VerifierProcess, type Work } from './verifier_process.js'

/** One completion for one verifier: a name of the package's, or the path of a module that exports `verifier`. */
export interface VerifyTask {
  verifier: string
  input: VerifyInput
}

export interface VerifierPoolOptions {
  /** Processes that verify. Default: one for every eight cores, at least one. */
  threads?: number
  /** Longest time for one completion. Default 1000. */
  timeoutMs?: number
  /** Heap of each process in MiB; all its memory may grow by twice that. Default 256. */
  memoryMiB?: number
}

/** A batch is at most this many completions, and about this many characters of them. */
const BATCH_TASKS = 1024
const BATCH_UNITS = 2 ** 19
/** A process has one batch in work and one at hand. */
const BATCHES_AT_HAND = 2

const WATCH_MS = 500

interface Run {
  tasks: readonly VerifyTask[]
  /** Verifier of each task as processes know it. */
  names: string[]
  verdicts: Verdict[]
  /** First task that no process has. */
  next: number
  open: Set<RunWork>
  failure: { index: number; error: CaravanError } | undefined
  settle(error?: CaravanError): void
}

interface RunWork extends Work {
  run: Run
  first: number
}

/**
 * Verifies many completions beside training: a verifier that throws, hangs or runs out of memory costs its completion
 * the reward (score 0 and a reason) and nothing else. Processes start at first use and keep nothing alive.
 */
export class VerifierPool {
  readonly #processes: VerifierProcess[]
  readonly #runs = new Set<Run>()
  #watch: NodeJS.Timeout | undefined
  #isDisposed = false

  constructor(options: VerifierPoolOptions = {}) {
    const threads = checkedCount('threads', options.threads ?? Math.max(1, Math.floor(availableParallelism() / 8)))
    const memoryMiB = checkedCount('memoryMiB', options.memoryMiB ?? 256)
    const timeoutMs = checkedCount('timeoutMs', options.timeoutMs ?? 1000)
    this.#processes = Array.from({ length: threads }, () => new VerifierProcess({ timeoutMs, memoryMiB }))
  }

  /**
   * The verdicts, in the order of the tasks. Rejects with ERR_DATA, naming the task (`details.task`), for a row that
   * its verifier cannot use; with ERR_CONFIG for a verifier that does not exist; with ERR_ABORTED when `signal` fires.
   */
  async verify(tasks: readonly VerifyTask[], signal?: AbortSignal): Promise<Verdict[]> {
    const names = namesOf(tasks.map(({ verifier }) => verifier))
    const bare = tasks.findIndex(({ input }) => typeof input !== 'object' || input === null)
    if (bare >= 0)
      throw failureOfTask(bare, labelFault(tasks[bare]!.verifier, 'input', 'an object', tasks[bare]!.input))
    if (tasks.length === 0) return []
    return await this.#run(tasks, names, signal)
  }

  /** Loads verifiers ahead, so that a wrong name or module is known before there is anything to verify: ERR_CONFIG. */
  async load(verifiers: readonly string[], signal?: AbortSignal): Promise<void> {
    const names = namesOf(verifiers)
    if (names.length > 0) await this.#run([], names, signal)
  }

  /** Ends the processes; what is in work is rejected with ERR_DISPOSED. */
  async dispose(): Promise<void> {
    this.#isDisposed = true
    for (const run of this.#runs) run.settle(disposed())
    await Promise.all(this.#processes.map((one) => one.dispose()))
  }

  #run(tasks: readonly VerifyTask[], names: string[], signal: AbortSignal | undefined): Promise<Verdict[]> {
    return new Promise((resolve, reject) => {
      if (this.#isDisposed) return reject(disposed())
      if (signal?.aborted) return reject(aborted(signal))
      const onAbort = () => run.settle(aborted(signal!))
      const run: Run = {
        tasks,
        names,
        verdicts: [],
        next: 0,
        open: new Set(),
        failure: undefined,
        settle: (error) => {
          signal?.removeEventListener('abort', onAbort)
          this.#forget(run)
          if (error === undefined) resolve(run.verdicts)
          else reject(error)
        },
      }
      signal?.addEventListener('abort', onAbort)
      this.#runs.add(run)
      this.#watch ??= setInterval(() => {
        for (const one of this.#processes) one.watch()
      }, WATCH_MS)
      if (tasks.length === 0) this.#send(this.#freest(), this.#work(run, 0))
      this.#feed()
    })
  }

  #freest(): VerifierProcess {
    return this.#processes.reduce((best, other) => (other.load < best.load ? other : best))
  }

  /** Gives tasks to processes that have less to do than they can have, those of the oldest run first. */
  #feed(): void {
    for (const run of this.#runs) {
      while (run.failure === undefined && run.next < run.tasks.length) {
        const process = this.#freest()
        if (process.load >= BATCHES_AT_HAND) return
        this.#send(process, this.#work(run, batchLength(run, this.#processes.length)))
      }
    }
  }

  #send(process: VerifierProcess, work: RunWork): void {
    work.run.open.add(work)
    process.send(work)
  }

  #work(run: Run, length: number): RunWork {
    const first = run.next
    run.next += length
    const work: RunWork = {
      run,
      first,
      ...partOf(run, first, run.next),
      onVerdicts: (index, verdicts) => {
        for (let i = 0; i < verdicts.length; i++) run.verdicts[first + index + i] = verdicts[i]!
      },
      onEnd: (failure) => {
        run.open.delete(work)
        if (failure !== undefined) noteFailure(run, first + failure.index, failure.error)
        if (this.#runs.has(run)) this.#settleIfDone(run)
        this.#feed()
      },
    }
    return work
  }

  #settleIfDone(run: Run): void {
    const { failure, open, next, tasks } = run
    if (failure === undefined) {
      if (open.size === 0 && next === tasks.length) run.settle()
    } else if (![...open].some(({ first }) => first < failure.index)) {
      run.settle(failure.error)
    }
  }

  #forget(run: Run): void {
    this.#runs.delete(run)
    for (const one of this.#processes) one.abandon((work) => !this.#runs.has((work as RunWork).run))
    if (this.#runs.size > 0) return
    clearInterval(this.#watch)
    this.#watch = undefined
  }
}

function namesOf(verifiers: readonly string[]): string[] {
  const known = new Map<string, string>()
  return verifiers.map((name) => {
    if (!known.has(name)) known.set(name, resolveVerifierName(name))
    return known.get(name)!
  })
}

/** The tasks from `first` on, or nothing but the loading of the verifiers where the run has no tasks. */
function partOf({ tasks, names }: Run, first: number, end: number): Pick<Work, 'verifiers' | 'which' | 'inputs'> {
  const part = tasks.length === 0 ? names : names.slice(first, end)
  const verifiers = [...new Set(part)]
  const which = tasks.length === 0 ? [] : part.map((name) => verifiers.indexOf(name))
  return { verifiers, which, inputs: tasks.slice(first, end).map(({ input }) => input) }
}

/** Few enough that all processes get some, and bounded in number and size. */
function batchLength({ tasks, next }: Run, processes: number): number {
  const most = Math.min(BATCH_TASKS, Math.ceil((tasks.length - next) / (BATCHES_AT_HAND * processes)))
  let length = 0
  for (let units = 0; length < most && (length === 0 || units < BATCH_UNITS); length++) {
    units += tasks[next + length]!.input.completion?.length ?? 0
  }
  return length
}

function noteFailure(run: Run, index: number, error: CaravanError): void {
  if (run.failure !== undefined && run.failure.index <= index) return
  const isOfRow = error.code === 'ERR_DATA'
  run.failure = { index, error: isOfRow ? failureOfTask(index, error) : error }
}

function failureOfTask(index: number, cause: CaravanError): CaravanError {
  return new CaravanError(cause.code, `task ${index}: ${cause.message}`, {
    details: { ...cause.details, task: index },
    hint: cause.hint,
    cause,
  })
}

function aborted(signal: AbortSignal): CaravanError {
  return new CaravanError('ERR_ABORTED', 'verifying was aborted', { cause: signal.reason })
}

function disposed(): CaravanError {
  return new CaravanError('ERR_DISPOSED', 'verify: the pool of verifiers has been disposed of', {
    hint: 'dispose of it when nothing needs verdicts any more',
  })
}

function checkedCount(name: string, value: number): number {
  if (Number.isSafeInteger(value) && value > 0) return value
  throw new CaravanError('ERR_CONFIG', `VerifierPool: \`${name}\` must be a whole number above 0; got ${value}`, {
    details: { [name]: value },
  })
}
