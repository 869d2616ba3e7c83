// The main thread's side of the template thread: one thread for the whole process, started at first use, ended when a
// template exceeds its budget, and never a reason for the process to stay alive.
import { Worker } from 'node:worker_threads'
import { CaravanError } from '../base/errors.js'
import { workerUrl } from '../base/worker.js'

/** Limits of one rendering. */
export interface TemplateBudget {
  /** Longest time for one conversation. Default 2000. */
  timeMs: number
  /** Heap of the thread. Default 64. */
  heapMiB: number
  /** Longest rendering, in UTF-16 units. Default 4 Mi. */
  outputUnits: number
}

export const defaultTemplateBudget: TemplateBudget = { timeMs: 2000, heapMiB: 64, outputUnits: 4 * 2 ** 20 }

const THREAD_START_MS = 10_000

export interface TemplateJob {
  id: number
  source: string
  rows: Record<string, unknown>[]
  maximumUnits: number
  /** Go on after a row at which the template raises or is wrong; its text is then undefined. */
  keepGoing: boolean
}

export interface TemplateAnswer {
  id: number
  texts: (string | undefined)[]
  failure: { index: number; kind: 'budget' | 'raised' | 'invalid'; message: string } | undefined
}

interface Waiting {
  job: TemplateJob
  budget: TemplateBudget
  resolve: (texts: (string | undefined)[]) => void
  reject: (error: CaravanError) => void
}

class TemplateThread {
  #worker: Worker | undefined
  #workerHeapMiB = 0
  #progress = new Int32Array(new SharedArrayBuffer(4))
  #queue: Waiting[] = []
  #running: Waiting | undefined
  #timer: NodeJS.Timeout | undefined
  #nextId = 0

  render(job: Omit<TemplateJob, 'id'>, budget: TemplateBudget): Promise<(string | undefined)[]> {
    return new Promise((resolve, reject) => {
      this.#queue.push({ job: { ...job, id: this.#nextId++ }, budget, resolve, reject })
      this.#startNext()
    })
  }

  #startNext(): void {
    if (this.#running !== undefined) return
    const next = this.#queue.shift()
    if (next === undefined) {
      this.#worker?.unref()
      return
    }
    this.#running = next
    const worker = this.#workerFor(next.budget)
    worker.ref()
    try {
      worker.postMessage(next.job)
    } catch (cause) {
      // Functions and the like, which no other thread can be given.
      this.#finish(undefined, `its variables are not plain data: ${(cause as Error).message}`, 'ERR_TEMPLATE')
      return
    }
    this.#watch(next)
  }

  #workerFor(budget: TemplateBudget): Worker {
    if (this.#worker !== undefined && this.#workerHeapMiB === budget.heapMiB) return this.#worker
    void this.#worker?.terminate()
    const progress = new Int32Array(new SharedArrayBuffer(4))
    const worker = new Worker(workerUrl(import.meta.url, './chat_template_worker.js'), {
      workerData: progress,
      resourceLimits: { maxOldGenerationSizeMb: budget.heapMiB, maxYoungGenerationSizeMb: 16, stackSizeMb: 4 },
      env: {},
      stdout: true,
      stderr: true,
    })
    worker.on('message', (answer: TemplateAnswer) => {
      if (worker === this.#worker && answer.id === this.#running?.job.id) this.#settle(answer)
    })
    worker.on('error', (error: NodeJS.ErrnoException) => {
      if (worker !== this.#worker) return
      const outOfMemory = error.code === 'ERR_WORKER_OUT_OF_MEMORY'
      const reason = outOfMemory ? `it needs more than ${budget.heapMiB} MiB` : error.message
      this.#discardWorker()
      this.#finish(undefined, reason, outOfMemory ? 'ERR_TEMPLATE_BUDGET' : 'ERR_TEMPLATE')
    })
    this.#worker = worker
    this.#workerHeapMiB = budget.heapMiB
    this.#progress = progress
    return worker
  }

  /** Ends the thread when the count of rows begun and finished has not moved for the time of the budget. */
  #watch(waiting: Waiting): void {
    const { timeMs } = waiting.budget
    let seen = Atomics.load(this.#progress, 0)
    let since = performance.now()
    this.#timer = setInterval(
      () => {
        const now = Atomics.load(this.#progress, 0)
        if (now !== seen) {
          seen = now
          since = performance.now()
        }
        // A thread that has not begun its first row is still starting, which is not the template's time.
        const allowedMs = now === 0 ? timeMs + THREAD_START_MS : timeMs
        if (performance.now() - since < allowedMs) return
        this.#discardWorker()
        this.#finish(undefined, `it ran for more than ${timeMs} ms`, 'ERR_TEMPLATE_BUDGET')
      },
      Math.max(5, timeMs / 8),
    )
  }

  #discardWorker(): void {
    void this.#worker?.terminate()
    this.#worker = undefined
  }

  #settle(answer: TemplateAnswer): void {
    const { failure } = answer
    if (failure === undefined) {
      this.#finish(answer.texts, '', 'ERR_TEMPLATE')
    } else {
      const code = failure.kind === 'budget' ? 'ERR_TEMPLATE_BUDGET' : 'ERR_TEMPLATE'
      const prefix = failure.kind === 'raised' ? 'it raised: ' : ''
      this.#finish(undefined, prefix + failure.message, code, failure.index)
    }
  }

  #finish(
    texts: (string | undefined)[] | undefined,
    reason: string,
    code: 'ERR_TEMPLATE' | 'ERR_TEMPLATE_BUDGET',
    row?: number,
  ): void {
    const waiting = this.#running
    clearInterval(this.#timer)
    this.#running = undefined
    if (texts !== undefined) waiting?.resolve(texts)
    else waiting?.reject(failureOf(waiting, reason, code, row))
    this.#startNext()
  }
}

function failureOf(
  waiting: Waiting,
  reason: string,
  code: 'ERR_TEMPLATE' | 'ERR_TEMPLATE_BUDGET',
  row: number | undefined,
): CaravanError {
  const { job } = waiting
  const where = row === undefined || job.rows.length === 1 ? '' : ` (conversation ${row} of ${job.rows.length})`
  return new CaravanError(code, `chat template${where}: ${reason}`, {
    details: { row, template: job.source.slice(0, 200) },
    hint:
      code === 'ERR_TEMPLATE'
        ? 'The template may not fit these messages, or use what Jinja for chat templates does not have.'
        : 'Real chat templates need under a millisecond and well under a megabyte; this one should not be trusted.',
  })
}

const thread = new TemplateThread()

/** Renders `source` once for each row of variables. Throws ERR_TEMPLATE or ERR_TEMPLATE_BUDGET, with `details.row`. */
export async function renderInThread(
  source: string,
  rows: Record<string, unknown>[],
  budget: TemplateBudget,
): Promise<string[]> {
  return (await run(source, rows, budget, false)) as string[]
}

/** `renderInThread` that gives undefined for the rows at which the template raises; only budgets make it throw. */
export function renderPossibleInThread(
  source: string,
  rows: Record<string, unknown>[],
  budget: TemplateBudget,
): Promise<(string | undefined)[]> {
  return run(source, rows, budget, true)
}

async function run(
  source: string,
  rows: Record<string, unknown>[],
  budget: TemplateBudget,
  keepGoing: boolean,
): Promise<(string | undefined)[]> {
  if (rows.length === 0) return []
  return thread.render({ source, rows, maximumUnits: budget.outputUnits, keepGoing }, budget)
}
