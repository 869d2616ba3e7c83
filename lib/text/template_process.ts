// This side of the template process: one for all templates, started at first use, ended when a template exceeds its
// budget, and never a reason for this process to stay alive.
import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { CaravanError } from '../base/errors.js'
import { workerUrl } from '../base/worker.js'

/** Limits of one rendering. */
export interface TemplateBudget {
  /** Longest time for one conversation. Default 2000. */
  timeMs: number
  /** Heap of the process. Default 64. */
  heapMiB: number
  /** Longest rendering, in UTF-16 units. Default 4 Mi. */
  outputUnits: number
}

export const defaultTemplateBudget: TemplateBudget = { timeMs: 2000, heapMiB: 64, outputUnits: 4 * 2 ** 20 }

const START_MS = 10_000

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

/** Something other than an answer: the process has started, or another row has begun. */
export interface TemplateSign {
  sign: 'ready' | 'row'
}

class TemplateProcess {
  #child: ChildProcess | undefined
  #childHeapMiB = 0
  #ready = false
  #signOfLife = 0
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
      this.#child?.channel?.unref()
      return
    }
    this.#running = next
    const child = this.#childFor(next.budget)
    child.channel?.ref()
    this.#signOfLife = performance.now()
    try {
      child.send(next.job)
    } catch (cause) {
      // Functions and the like, which no other process can be given.
      this.#finish(undefined, `its variables are not plain data: ${(cause as Error).message}`, 'ERR_TEMPLATE')
      return
    }
    this.#watch(next)
  }

  #childFor(budget: TemplateBudget): ChildProcess {
    if (this.#child !== undefined && this.#childHeapMiB === budget.heapMiB) return this.#child
    this.#discardChild()
    const child = fork(fileURLToPath(workerUrl(import.meta.url, './chat_template_process.js')), {
      serialization: 'advanced',
      execArgv: [`--max-old-space-size=${budget.heapMiB}`, '--max-semi-space-size=4', '--stack-size=3900'],
      env: {},
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    })
    child.unref()
    child.on('message', (message: TemplateAnswer | TemplateSign) => {
      if (child !== this.#child) return
      this.#ready = true
      this.#signOfLife = performance.now()
      if ('id' in message && message.id === this.#running?.job.id) this.#settle(message)
    })
    child.on('error', (error) => this.#ended(child, error.message, 'ERR_TEMPLATE'))
    child.on('exit', () => {
      const reason = `it needs more than ${budget.heapMiB} MiB`
      if (this.#ready) this.#ended(child, reason, 'ERR_TEMPLATE_BUDGET')
      else this.#ended(child, 'the process that renders templates could not be started', 'ERR_TEMPLATE')
    })
    this.#child = child
    this.#childHeapMiB = budget.heapMiB
    this.#ready = false
    return child
  }

  /** Ends the process when it has not begun another row for the time of the budget. */
  #watch({ budget: { timeMs } }: Waiting): void {
    this.#timer = setInterval(
      () => {
        // A process that has not said that it is there is still starting, which is not the template's time.
        const allowedMs = this.#ready ? timeMs : timeMs + START_MS
        if (performance.now() - this.#signOfLife < allowedMs) return
        this.#discardChild()
        this.#finish(undefined, `it ran for more than ${timeMs} ms`, 'ERR_TEMPLATE_BUDGET')
      },
      Math.max(5, timeMs / 8),
    )
  }

  #ended(child: ChildProcess, reason: string, code: 'ERR_TEMPLATE' | 'ERR_TEMPLATE_BUDGET'): void {
    if (child !== this.#child) return
    this.#child = undefined
    if (this.#running !== undefined) this.#finish(undefined, reason, code)
  }

  #discardChild(): void {
    this.#child?.kill('SIGKILL')
    this.#child = undefined
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

const templates = new TemplateProcess()

/** Renders `source` once for each row of variables. Throws ERR_TEMPLATE or ERR_TEMPLATE_BUDGET, with `details.row`. */
export async function renderApart(
  source: string,
  rows: Record<string, unknown>[],
  budget: TemplateBudget,
): Promise<string[]> {
  return (await run(source, rows, budget, false)) as string[]
}

/** `renderApart` that gives undefined for the rows at which the template raises; only budgets make it throw. */
export function renderPossibleApart(
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
  return templates.render({ source, rows, maximumUnits: budget.outputUnits, keepGoing }, budget)
}
