// Process that runs Jinja templates. The interpreter has no budget of its own, and a thread whose heap is exhausted
// takes the whole process with it, so it runs in one that can be ended: the parent watches its messages, V8 its heap.
import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja'
import type { TemplateAnswer, TemplateJob, TemplateSign } from './template_process.js'

const MAX_RANGE = 100_000
/** The parent learns at least this often that rows are getting done. */
const SIGN_MS = 50

class TemplateRaised extends Error {}
class BudgetExceeded extends Error {}

const programs = new Map<string, ReturnType<typeof parse>>()
const send = (message: TemplateAnswer | TemplateSign) => process.send!(message)

const undefinedValue = new Environment().lookupVariable('nothing')

/** The package's own catches everything in here, and an exhausted stack would be taken for a name without a value. */
Environment.prototype.lookupVariable = function (name: string) {
  for (let scope: Environment | undefined = this; scope !== undefined; scope = scope.parent) {
    const value = scope.variables.get(name)
    if (value !== undefined) return value
  }
  return undefinedValue
}

process.on('message', (job: TemplateJob) => {
  send(answer(job))
})
process.on('disconnect', () => process.exit())
send({ sign: 'ready' })

function answer(job: TemplateJob): TemplateAnswer {
  const texts: (string | undefined)[] = []
  let units = 0
  let signed = performance.now()
  for (const [index, variables] of job.rows.entries()) {
    if (performance.now() - signed > SIGN_MS) {
      send({ sign: 'row' })
      signed = performance.now()
    }
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
    }
  }
  return { id: job.id, texts, failure: undefined }
}

function describe(error: unknown): { kind: 'budget' | 'raised' | 'invalid'; message: string } {
  const message = error instanceof Error ? error.message : String(error)
  if (error instanceof TemplateRaised) return { kind: 'raised', message }
  // The interpreter wraps some errors into its own, so the words count, not the class.
  const tooDeep = /call stack|invalid string length|invalid array length/i.test(message)
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
