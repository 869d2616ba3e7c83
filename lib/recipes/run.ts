// Runs a recipe: its stages in order, each from the folder that the one before has saved. The public face of training.
import { readFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { writeFileAtomic } from '../data/atomic_file.js'
import { mergeAdapter, saveAdapter, saveModel } from '../models/index.js'
import { openDevice } from '../ops/index.js'
import { AdamW, type MasterForm, type MomentType } from '../optim/adamw.js'
import { JointOptimizer, type Optimizer } from '../optim/optimizer.js'
import { scheduleKind } from '../optim/schedule.js'
import type { Device } from '../runtime/index.js'
import type { Tensor } from '../tensor/index.js'
import type { TensorGroups } from '../train/checkpoint.js'
import type { RunEvent } from '../train/events.js'
import { MetricsLog } from '../train/metrics.js'
import { writeReport } from '../train/report.js'
import { runStage } from '../train/run_stage.js'
import { trainedPart } from './lora_setting.js'
import { requireMemory } from './memory_plan.js'
import type { BesideModel, PreparedStage, StageContext } from './prepared_stage.js'
import { reporting } from './progress.js'
import { type RunOptions, resolveRun } from './resolve_run.js'
import { folderAtomic, folderExists, openRunFolder, runRecord } from './run_folder.js'
import type { Recipe, SettingsOf, StageRecipe, StageSettings, TrainedKind } from './stage.js'
import { prepareDpo } from './stage_dpo.js'
import { evaluateStages, type FinishedStage } from './stage_eval.js'
import { preparePretrain } from './stage_pretrain.js'
import { prepareRewardModel } from './stage_reward_model.js'
import { prepareRlvr } from './stage_rlvr.js'
import { prepareSft } from './stage_sft.js'
import { withTasks } from './task_hook.js'

export { planRun, type RunPlan, type StagePlan } from './plan.js'
export type { RunOptions } from './resolve_run.js'

/** Runs `recipe` and yields what happens. Stop iterating, or use `signal` or `stop`, to end it early. */
export async function* run(recipe: Recipe, options: RunOptions): AsyncGenerator<RunEvent> {
  const started = performance.now()
  const { directory, seed = 1, dtype = recipe.dtype, resume = false } = options
  const resolved = resolveRun(recipe, options)
  const { model, data = [], fields = {}, overrides = {} } = options
  const record = runRecord(recipe, resolved, { dtype, seed, model, data, fields, overrides })
  await openRunFolder(directory, record, resume)
  yield { type: 'run', directory, recipe: recipe.name, scale: recipe.scale, stages: [...resolved.keys()] }
  const { device: kind, threads, memoryBudgetBytes } = options
  using device = openDevice({ kind, threads, memoryBudgetBytes })
  const finished = resume ? await finishedFolders(directory, resolved.keys()) : new Set<string>()
  await requireMemory(resolved, { recipe, dtype, device, finished })
  let gatesPassed = true
  let before: string | undefined = model
  for (const [name, resolvedStage] of resolved) {
    const stage = recipe.stages.find((entry) => entry.name === name)!
    const folder = join(directory, name)
    const { origins } = resolvedStage
    if (finished.has(name)) {
      yield { type: 'note', stage: name, text: `${folder} is finished` }
      gatesPassed &&= await gatesPassedBefore(directory, name)
    } else if (resolvedStage.kind === 'eval') {
      if (options.stop?.aborted) throw stoppedBefore(name, options.stop)
      const judged = await finishedStages(recipe, directory)
      const context = contextOf({ recipe, stage, options: { ...options, seed, dtype } })
      yield* evaluateStages(device, { stages: judged, settings: resolvedStage.values, context, folder })
      continue
    } else {
      const { values } = resolvedStage
      if (options.stop?.aborted) throw stoppedBefore(name, options.stop)
      const given = stage.from !== undefined && !resolved.has(stage.from) ? model : undefined
      const start = (await resultOf(directory, stage.from)) ?? given ?? before ?? ''
      const settings = { ...values, ...('model' in values && values.model === '' ? { model: start } : {}) }
      const judged = yield* runOne({
        recipe,
        stage,
        settings,
        origins,
        folder,
        device,
        options: { ...options, seed, dtype },
      })
      gatesPassed &&= judged
    }
    before = folder
  }
  await writeReport(directory)
  yield { type: 'done', directory, gatesPassed, seconds: (performance.now() - started) / 1000 }
}

/** Those of `stages` that an earlier process has finished. */
async function finishedFolders(directory: string, stages: Iterable<string>): Promise<Set<string>> {
  const finished = new Set<string>()
  for (const name of stages) if (await folderExists(join(directory, name))) finished.add(name)
  return finished
}

/** Stages of this run whose models write text. */
async function finishedStages(recipe: Recipe, directory: string): Promise<FinishedStage[]> {
  const finished: FinishedStage[] = []
  for (const { name, kind } of recipe.stages) {
    const folder = join(directory, name)
    const writes = kind !== 'reward_model' && kind !== 'eval'
    if (writes && (await folderExists(folder))) finished.push({ name, folder })
  }
  return finished
}

/** Folder of a finished stage of this run. */
async function resultOf(directory: string, stage: string | undefined): Promise<string | undefined> {
  const folder = stage === undefined ? undefined : join(directory, stage)
  return folder !== undefined && (await folderExists(folder)) ? folder : undefined
}

type Prepare<K extends TrainedKind> = (
  device: Device,
  settings: SettingsOf<K>,
  context: StageContext,
) => Promise<PreparedStage>

const preparations: { [K in TrainedKind]: Prepare<K> } = {
  pretrain: preparePretrain,
  sft: prepareSft,
  dpo: prepareDpo,
  reward_model: prepareRewardModel,
  rlvr: prepareRlvr,
}

interface StageJob {
  recipe: Recipe
  stage: StageRecipe
  settings: StageSettings
  origins: { [key: string]: string }
  folder: string
  device: Device
  options: RunOptions & { seed: number; dtype: 'f32' | 'bf16' }
}

/** Prepares, trains, judges and saves one stage; the value says whether its gates passed. */
async function* runOne(job: StageJob): AsyncGenerator<RunEvent, boolean> {
  const { stage, settings, folder, device, options } = job
  const { directory, signal } = options
  const prepare = async (report: StageContext['report'], ending: AbortSignal): Promise<PreparedStage> => {
    const context = { ...contextOf(job), signal: ending, report }
    return await (preparations[stage.kind as TrainedKind] as Prepare<TrainedKind>)(device, settings as never, context)
  }
  // Before the first step there is nothing to save, so `stop` ends the preparation as `signal` does.
  const ends = { signals: [signal, options.stop], discard: closeStage }
  const prepared = yield* reporting(prepare, ends)
  const { model, models, meanContext, beside = [] } = prepared
  let optimizer: Optimizer | undefined
  try {
    const evaluate = await withTasks(prepared, settings, signal)
    const trained = await trainedPart(model, prepared.method, { settings, meanContext })
    const { method, flopsPerToken } = trained
    const parameters = allParameters(trained.parameters, beside)
    optimizer = optimizerOf(trained.parameters, beside, settings)
    yield* runStage({
      stage: stage.name,
      device,
      method,
      models,
      parameters,
      optimizer,
      saved: savedBeside(beside),
      settings: {
        ...settings,
        schedule: {
          kind: scheduleKind(settings.schedule),
          warmupSteps: Math.floor(method.totalSteps * settings.warmupRatio),
          finalRatio: settings.finalLrRatio,
        },
      },
      directory,
      resume: options.resume ?? false,
      evaluate,
      flopsPerToken,
      signal,
      stop: options.stop,
    })
    optimizer.dispose()
    const passed = yield* judge(prepared, job)
    const base = 'model' in settings ? settings.model : undefined
    await folderAtomic(folder, (temporary) => saveStage(prepared, temporary, base))
    yield { type: 'saved', stage: stage.name, directory: folder }
    return passed
  } finally {
    optimizer?.dispose()
    await closeStage(prepared)
  }
}

function contextOf({ recipe, stage, options }: Pick<StageJob, 'recipe' | 'stage' | 'options'>): StageContext {
  const { directory, seed, dtype, signal, stop } = options
  const { builtInData = false } = recipe
  return { stage: stage.name, seed, dtype, directory, builtInData, training: { signal, stop }, report: () => {} }
}

async function closeStage({ model, beside = [], close }: PreparedStage): Promise<void> {
  await close?.()
  model.dispose()
  for (const other of beside) other.model.dispose()
}

/** The trained parameters of a stage; those of further models under the model's name. */
function allParameters(own: Map<string, Tensor>, beside: readonly BesideModel[]): Map<string, Tensor> {
  const others = beside.filter(({ trained }) => trained)
  return new Map([
    ...own,
    ...others.flatMap(({ name, model }) =>
      [...model.parameters()].map(([key, one]) => [`${name}.${key}`, one] as const),
    ),
  ])
}

function optimizerOf(
  own: Map<string, Tensor>,
  beside: readonly BesideModel[],
  { beta1, beta2, eps, weightDecay, ...forms }: StageSettings,
): Optimizer {
  const [master, moments] = [forms.master as MasterForm, forms.moments as MomentType]
  const options = { beta1, beta2, eps, weightDecay, master, moments }
  const main = new AdamW(own, options)
  const others = beside.flatMap(({ name, model, trained }) =>
    trained ? [{ name, optimizer: new AdamW(model.parameters(), options), ...trained }] : [],
  )
  return others.length === 0 ? main : new JointOptimizer([{ name: 'policy', optimizer: main, lrRatio: 1 }, ...others])
}

function savedBeside(beside: readonly BesideModel[]): TensorGroups {
  const kept = beside.filter(({ inCheckpoints }) => inCheckpoints)
  return Object.fromEntries(kept.map(({ name, model }) => [name, model.parameters()]))
}

/** A Hugging Face folder: weights, configuration, tokenizer, and the chat template that was trained on. An adapter lies
 *  in adapter/, and the weights hold it too, so that the next stage reads this folder as any other. */
async function saveStage(prepared: PreparedStage, folder: string, base: string | undefined): Promise<void> {
  const { model, tokenizer, template } = prepared
  if (model.decoder.lora) {
    await saveAdapter(model, join(folder, 'adapter'), { baseModel: base && resolve(base) })
    await mergeAdapter(model)
  }
  await saveModel(model, folder)
  for (const { name, model: other, trained } of prepared.beside ?? []) {
    if (trained) await saveModel(other, join(folder, name))
  }
  await tokenizer.save(folder)
  if (template && template.source !== tokenizer.chatTemplate) {
    await writeFileAtomic(join(folder, 'chat_template.jinja'), template.source)
  }
}

/** Samples and gates of a finished stage. Gates are for the recipe as it is: a shortened stage is not judged. */
async function* judge(prepared: PreparedStage, job: StageJob): AsyncGenerator<RunEvent, boolean> {
  const { stage, origins, options } = job
  const { directory, signal } = options
  const samples: RunEvent[] = []
  for await (const sample of prepared.samples?.(signal) ?? []) {
    samples.push(sample)
    yield sample
  }
  if (samples.length > 0) await replaceSamples(directory, stage.name, samples)
  if (!prepared.gates) return true
  const changed = Object.keys(origins).filter((key) => origins[key] === 'flag' && !uncritical.has(key))
  if (changed.length > 0) {
    yield {
      type: 'note',
      stage: stage.name,
      text: `gates are not judged, since these were changed: ${changed.join(', ')}`,
    }
    return true
  }
  const rows = await new MetricsLog(directory).rows()
  const losses = rows.flatMap(({ stage: of, loss }) => (of === stage.name && typeof loss === 'number' ? [loss] : []))
  const { gates, metrics } = await prepared.gates({ losses, signal })
  yield { type: 'evaluation', stage: stage.name, step: prepared.method.totalSteps, metrics }
  for (const gate of gates) yield { type: 'gate', stage: stage.name, ...gate }
  await addResult(directory, stage.name, { metrics, gates })
  return gates.every(({ passed }) => passed)
}

const uncritical = new Set([
  'checkpointEvery',
  'keepCheckpoints',
  'evaluateEvery',
  'microBatchTokens',
  'activationCheckpointing',
  'evalTasks',
  'evalData',
  'evalLimit',
  'keepRollouts',
])

/**
 * Writes the samples of a stage into samples.jsonl, in place of those of an attempt that was killed before it ended.
 */
async function replaceSamples(directory: string, stage: string, samples: readonly RunEvent[]): Promise<void> {
  const path = join(directory, 'samples.jsonl')
  const before = await readFile(path, 'utf8').catch(() => '')
  const ofOthers = before.split('\n').filter((line) => line !== '' && JSON.parse(line).stage !== stage)
  const lines = [...ofOthers, ...samples.map((sample) => JSON.stringify(sample))]
  await writeFileAtomic(path, lines.map((line) => `${line}\n`).join(''))
}

interface StageResult {
  metrics: { [name: string]: number | null }
  gates: readonly { passed: boolean }[]
}

async function readResults(directory: string): Promise<{ [stage: string]: StageResult }> {
  return readFile(join(directory, 'result.json'), 'utf8').then(JSON.parse, () => ({}))
}

async function addResult(directory: string, stage: string, result: StageResult): Promise<void> {
  const results = { ...(await readResults(directory)), [stage]: result }
  await writeFileAtomic(join(directory, 'result.json'), `${JSON.stringify(results, null, 2)}\n`)
}

/** Whether a stage that an earlier process has finished passed its gates. */
async function gatesPassedBefore(directory: string, stage: string): Promise<boolean> {
  const result = (await readResults(directory))[stage]
  return result?.gates.every(({ passed }) => passed) ?? true
}

function stoppedBefore(stage: string, stop: AbortSignal): CaravanError {
  return new CaravanError('ERR_ABORTED', `stopped before stage ${stage}; the stages before it are saved`, {
    details: { stage },
    hint: 'continue with --resume',
    cause: stop.reason,
  })
}
