// The last stage of a recipe: every model that the run has saved, measured on the same things and asked the same
// prompts, side by side. It trains nothing.
import { join } from 'node:path'
import { writeFileAtomic } from '../data/atomic_file.js'
import { evaluateTasks, findTasks, loadTasks } from '../evals/index.js'
import { type CausalLm, loadModel } from '../models/index.js'
import type { Device } from '../runtime/index.js'
import type { ChatTemplate } from '../text/chat_template.js'
import type { Tokenizer } from '../text/tokenizer.js'
import type { RunEvent } from '../train/events.js'
import { openChatText } from './chat_data.js'
import { comparePocket } from './pocket_comparison.js'
import type { StageContext } from './prepared_stage.js'
import { reporting } from './progress.js'
import { folderAtomic } from './run_folder.js'
import type { EvalSettings } from './stage.js'

/** A finished stage whose model can be asked. */
export interface FinishedStage {
  name: string
  folder: string
}

/** A finished stage with its model at hand. */
export interface StageModel {
  name: string
  model: CausalLm
  tokenizer: Tokenizer
  template: ChatTemplate
}

/** What the models came to, by stage. */
export interface Comparison {
  metrics: Record<string, Record<string, number | null>>
  /** Answers to fixed prompts. */
  answers: { prompt: string; byStage: Record<string, string> }[]
}

/** Measures one model; `before` is the one of the stage before it. */
export type Measure = (
  stage: StageModel,
  before: StageModel | undefined,
  signal?: AbortSignal,
) => Promise<{ metrics: Record<string, number | null>; answers: { prompt: string; answer: string }[] }>

export interface EvaluationJob {
  stages: readonly FinishedStage[]
  settings: EvalSettings
  context: StageContext
  /** Folder for eval.json. */
  folder: string
}

/** Evaluates the models of `stages` and writes the result into the folder. */
export async function* evaluateStages(device: Device, job: EvaluationJob): AsyncGenerator<RunEvent> {
  const { settings, context, folder } = job
  const { stage, training } = context
  const work = async (report: StageContext['report'], signal: AbortSignal): Promise<Comparison | undefined> => {
    const measure = await measureOf(settings, context, signal)
    if (!measure) return undefined
    return await compared(device, measure, { ...job, context: { ...context, report, signal } })
  }
  const signals = [training?.signal, training?.stop]
  const comparison = yield* reporting(work, { signals, discard: () => {} })
  if (!comparison) {
    const text = `nothing to evaluate on: name tasks and their data with --set ${stage}.tasks=gsm8k --set ${stage}.data=DIR`
    yield { type: 'note', stage, text }
    return
  }
  await folderAtomic(folder, async (temporary) => {
    await writeFileAtomic(join(temporary, 'eval.json'), `${JSON.stringify(comparison, null, 2)}\n`)
  })
  yield { type: 'comparison', stage, ...comparison }
  yield { type: 'saved', stage, directory: folder }
}

async function measureOf(
  settings: EvalSettings,
  { builtInData }: StageContext,
  signal: AbortSignal,
): Promise<Measure | undefined> {
  const { tasks: names, data, limit, maxNewTokens } = settings
  if (names.length === 0) return builtInData ? comparePocket(limit || undefined) : undefined
  const options = { data: data === '' ? undefined : data, limit: limit || undefined, signal }
  const tasks = await loadTasks(await findTasks(names), options)
  return async ({ model, tokenizer, template }) => ({
    metrics: await evaluateTasks(model, tokenizer, tasks, {
      ...options,
      template,
      maxTokens: maxNewTokens || undefined,
    }),
    answers: [],
  })
}

async function compared(device: Device, measure: Measure, { stages, context }: EvaluationJob): Promise<Comparison> {
  const { dtype, report, signal, stage } = context
  const comparison: Comparison = { metrics: {}, answers: [] }
  let before: StageModel | undefined
  try {
    for (const [done, { name, folder }] of stages.entries()) {
      report({ type: 'progress', stage, what: `measuring ${name}`, done, total: stages.length })
      const text = await openChatText({ model: folder, template: '' }, context)
      const current = { name, ...text, model: await loadModel(device, folder, { dtype }) }
      try {
        const { metrics, answers } = await measure(current, before, signal)
        comparison.metrics[name] = metrics
        for (const [i, { prompt, answer }] of answers.entries()) {
          comparison.answers[i] ??= { prompt, byStage: {} }
          comparison.answers[i]!.byStage[name] = answer
        }
      } finally {
        before?.model.dispose()
        before = current
      }
    }
    return comparison
  } finally {
    before?.model.dispose()
  }
}
