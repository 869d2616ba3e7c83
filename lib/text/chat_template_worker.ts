// Thread that runs Jinja templates. The interpreter has no budget of its own, so it runs where it can be ended: the
// main thread watches `progress`, and the heap limit of the thread bounds its memory.
import { parentPort, workerData } from 'node:worker_threads'
import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja'
import type { TemplateAnswer, TemplateJob } from './template_worker_client.js'

const MAX_RANGE = 100_000

class TemplateRaised extends Error {}
class BudgetExceeded extends Error {}

const progress = workerData as Int32Array
const port = parentPort!
const programs = new Map<string, ReturnType<typeof parse>>()

port.on('message', (job: TemplateJob) => {
  port.postMessage(answer(job))
})

function answer(job: TemplateJob): TemplateAnswer {
  const texts: (string | undefined)[] = []
  let units = 0
  for (const [index, variables] of job.rows.entries()) {
    Atomics.add(progress, 0, 1)
    try {
      const text = render(job.source, variables)
      units += text.length
      if (text.length > job.maximumUnits) throw new BudgetExceeded(`the output is longer than ${job.maximumUnits}`)
      if (units > 64 * job.maximumUnits) throw new BudgetExceeded('the outputs of the batch are too long together')
      texts.push(text)
    } catch (error) {
      const failure = { index, ...describe(error) }
      if (!job.keepGoing || failure.kind === 'budget') return { id: job.id, texts, failure }
      texts.push(undefined)
    } finally {
      Atomics.add(progress, 0, 1)
    }
  }
  return { id: job.id, texts, failure: undefined }
}

function describe(error: unknown): { kind: 'budget' | 'raised' | 'invalid'; message: string } {
  const message = error instanceof Error ? error.message : String(error)
  if (error instanceof TemplateRaised) return { kind: 'raised', message }
  const tooDeep = error instanceof RangeError && /call stack|string length|array length/i.test(message)
  return { kind: tooDeep || error instanceof BudgetExceeded ? 'budget' : 'invalid', message }
}

function render(source: string, variables: Record<string, unknown>): string {
  let program = programs.get(source)
  if (program === undefined) {
    if (programs.size >= 16) programs.clear()
    program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }))
    programs.set(source, program)
  }
  const environment = new Environment()
  for (const [name, value] of Object.entries({ ...globals, ...variables })) environment.set(name, value)
  const result = new Interpreter(environment).run(program)
  return String(result.value)
}

/** What transformers gives every chat template besides its variables. */
const globals: Record<string, unknown> = {
  true: true,
  false: false,
  none: null,
  True: true,
  False: false,
  None: null,
  range: boundedRange,
  strftime_now: (format: string) => strftime(new Date(), String(format)),
  raise_exception: (message: string) => {
    throw new TemplateRaised(String(message))
  },
}

function boundedRange(first: number, second?: number, step = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second]
  const length = Math.max(0, Math.ceil((stop - start) / step))
  if (!Number.isFinite(length)) throw new Error('range: needs numbers, and a step that is not zero')
  if (length > MAX_RANGE) throw new BudgetExceeded(`range has more than ${MAX_RANGE} numbers`)
  return Array.from({ length }, (_, i) => start + i * step)
}

const MONTHS = 'January February March April May June July August September October November December'.split(' ')
const DAYS = 'Sunday Monday Tuesday Wednesday Thursday Friday Saturday'.split(' ')

/** Python's strftime, local time, C locale; directives that no published chat template uses stay as they are. */
function strftime(date: Date, format: string): string {
  const two = (value: number) => String(value).padStart(2, '0')
  const month = MONTHS[date.getMonth()]!
  const day = DAYS[date.getDay()]!
  const values: Record<string, string> = {
    Y: String(date.getFullYear()),
    y: two(date.getFullYear() % 100),
    m: two(date.getMonth() + 1),
    B: month,
    b: month.slice(0, 3),
    d: two(date.getDate()),
    A: day,
    a: day.slice(0, 3),
    H: two(date.getHours()),
    I: two(date.getHours() % 12 || 12),
    M: two(date.getMinutes()),
    S: two(date.getSeconds()),
    p: date.getHours() < 12 ? 'AM' : 'PM',
    '%': '%',
  }
  return format.replace(/%([A-Za-z%])/g, (directive, letter: string) => values[letter] ?? directive)
}
