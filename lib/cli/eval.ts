// `caravan eval`: a model on tasks, as a table with standard errors, as JSON, and row by row. Files appear whole at the
// end or not at all: half of a benchmark is no number.
import { writeFileAtomic } from '../data/atomic_file.js'
import {
  type EvaluationResult,
  evaluate,
  type Format,
  type Formulation,
  findTasks,
  loadTasks,
  type Metric,
  type SampleRecord,
} from '../evals/index.js'
import { loadModel } from '../models/index.js'
import { openDevice } from '../ops/index.js'
import type { ChatTemplate } from '../text/chat_template.js'
import { Tokenizer } from '../text/tokenizer.js'
import { type DeviceFlag, type DtypeFlag, engineDtype } from './command_options.js'
import { runFileCommand } from './file_command.js'
import { countText, durationText, grouped } from './format.js'
import { packageVersion } from './package_version.js'
import { tableLines } from './table.js'
import { chosenTemplate } from './template_choice.js'
import type { Terminal } from './terminal.js'

export interface EvalFlags {
  model: string
  tasks: string[]
  data?: string
  output?: string
  samplesOutput?: string
  limit?: number
  shots?: number
  format?: Format
  template?: string
  formulation?: Formulation
  samples: number
  temperature: number
  topP: number
  maxTokens?: number
  seed: number
  slots: number
  batchTokens: number
  dtype?: DtypeFlag
  device?: DeviceFlag
  threads?: number
  quiet?: boolean
  json?: boolean
}

/** What is written: the result, and what it was made with. */
type Report = EvaluationResult & { model: string; versions: { caravan: string; node: string } }

/** Evaluates a model; the value is the exit code. */
export function evaluateModel(flags: EvalFlags): Promise<number> {
  return runFileCommand<Report>({
    flags,
    work: async (signal, show) => {
      const { samplesOutput, output } = flags
      const run = (onSample?: (record: SampleRecord) => Promise<void>) =>
        report(flags, {
          signal,
          onSample,
          onProgress: ({ task, done, total, tokens }) => {
            const parts = [task, `${grouped(done)} of ${grouped(total)}`, `${countText(tokens)} tokens`]
            show({ id: task, done, total, parts })
          },
        })
      let made: Report | undefined
      if (samplesOutput === undefined) made = await run()
      else {
        await writeFileAtomic(samplesOutput, async (append) => {
          made = await run((record) => append(Buffer.from(`${JSON.stringify(record)}\n`)))
        })
      }
      if (output !== undefined) await writeFileAtomic(output, `${JSON.stringify(made, undefined, 2)}\n`)
      return made!
    },
    values: (made) => made,
    print: (made, terminal) => printReport(made, terminal, flags),
  })
}

type Hooks = Pick<NonNullable<Parameters<typeof evaluate>[3]>, 'signal' | 'onSample' | 'onProgress'>

async function report(flags: EvalFlags, hooks: Hooks): Promise<Report> {
  const { model: directory, tasks, device: kind, threads, dtype, formulation, template: _, ...options } = flags
  // A missing file should not cost the time that a large model takes to load.
  const loaded = await loadTasks(await findTasks(tasks), { ...options, signal: hooks.signal })
  using device = openDevice({ kind, threads })
  using model = await loadModel(device, directory, { dtype: engineDtype(dtype) })
  const tokenizer = await Tokenizer.load(directory)
  const result = await evaluate(model, tokenizer, loaded, {
    ...options,
    template: await templateOf(flags, tokenizer),
    formulations: formulation && [formulation],
    ...hooks,
  })
  const versions = { caravan: packageVersion(), node: process.versions.node }
  return { model: directory, versions, ...result }
}

async function templateOf({ template }: EvalFlags, tokenizer: Tokenizer): Promise<ChatTemplate | undefined> {
  return template === undefined ? undefined : await chosenTemplate(tokenizer, template)
}

function printReport({ tasks, seconds }: Report, terminal: Terminal, { output, samplesOutput }: EvalFlags): void {
  const rows = tasks.flatMap(({ task, metrics, rows: count, settings }) =>
    metrics.map((metric, i) => {
      const { name, from } = metric
      const [shown, shots] = i === 0 ? [task, String(settings.shots)] : ['', '']
      return [shown, from === undefined ? name : `${name} (${from})`, ...estimateCells(metric), grouped(count), shots]
    }),
  )
  const header = ['task', 'metric', '%', '± s.e.', '95 %', 'rows', 'shots']
  for (const line of tableLines([header, ...rows], { align: 'llrrlrr' })) terminal.line(line)
  for (const { task, shortenedPrompts, cutPrompts, answers } of tasks) {
    if (shortenedPrompts > 0)
      terminal.line(`${task}: ${grouped(shortenedPrompts)} prompts have fewer examples: too long`)
    if (cutPrompts > 0) terminal.line(`${task}: ${grouped(cutPrompts)} prompts lost their beginning: too long`)
    if (answers && answers.cutOff > 0) {
      terminal.line(`${task}: ${grouped(answers.cutOff)} of ${grouped(answers.count)} answers ended at the token limit`)
    }
  }
  const files = [output, samplesOutput].filter((file) => file !== undefined)
  terminal.line(`${durationText(seconds)}${files.length > 0 ? ` -> ${files.join(', ')}` : ''}`)
}

function estimateCells({ value, standardError, interval: [low, high] }: Metric): string[] {
  const percent = (share: number) => (100 * share).toFixed(1)
  const error = standardError === null ? '' : `± ${(100 * standardError).toFixed(1)}`
  return [percent(value), error, `${percent(low)} to ${percent(high)}`]
}
