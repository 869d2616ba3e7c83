// The plan of a run, before anything is allocated: sizes, memory, work and time, and where every setting comes from.
import { openDataset, withoutRows } from '../data/dataset.js'
import { pairRows } from '../data/pair_rows.js'
import { type FieldMap, type RowForm, singleRows } from '../data/rows.js'
import { forwardFlopsPerToken, parameterCount, trainingFlopsPerToken } from '../models/index.js'
import type { DecoderShape } from '../nn/decoder_shape.js'
import { linear, openDevice, randomNormal } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { type Checkpointing, keep, type Tensor } from '../tensor/index.js'
import { loraCost } from './lora_setting.js'
import { rowSizes, shortageOf, stageMemory, stageShape } from './memory_plan.js'
import { type RunOptions, resolveRun } from './resolve_run.js'
import type {
  ChatSettings,
  Origin,
  PretrainSettings,
  Recipe,
  ResolvedStage,
  RlvrSettings,
  Setting,
  StageSettings,
} from './stage.js'

export interface RunPlan {
  recipe: string
  scale: string
  dtype: string
  threads: number
  stages: StagePlan[]
}

export interface StagePlan {
  name: string
  settings: Record<string, Setting>
  origins: Record<string, Origin>
  parameters: number
  /** Those of them, or of an adapter beside them, that are trained. */
  trainedParameters: number
  /** Optimizer steps; null when the data decides and is not there. */
  steps: number | null
  /** Tokens through the model, at most. */
  tokens: number | null
  flops: number | null
  memory: { name: string; bytes: number }[]
  memoryBytes: number
  /** What memoryBytes would be in each mode of activation checkpointing. */
  checkpointing: { [mode in Checkpointing]: number }
  /** Estimated from a product measured on this machine; null when the work is unknown. */
  seconds: number | null
  /** Whether tokens, work and time are upper limits: how long rows and answers are is not known before. */
  atMost: boolean
  notes: string[]
}

/** Share of the measured product speed that a whole training step reaches. */
const STEP_EFFICIENCY = 0.6
const PROBE = { rows: 512, width: 1024, repeats: 4 }

/** Plans `recipe` without training. Errors as run() would give them before its first step. */
export async function planRun(recipe: Recipe, options: RunOptions): Promise<RunPlan> {
  const resolved = resolveRun(recipe, options)
  const { dtype = recipe.dtype, threads, device: kind, memoryBudgetBytes } = options
  using device = openDevice({ kind, threads, memoryBudgetBytes })
  const flopsPerSecond = await productSpeed(device)
  const { budgetBytes } = device.stats()
  const stages: StagePlan[] = []
  let shape: DecoderShape | undefined
  for (const [name, stage] of resolved) {
    if (stage.kind === 'eval') continue
    const { values, origins } = stage
    shape = await stageShape(name, values, { recipe, before: shape })
    const work = await workOf(values, recipe)
    stages.push(
      stagePlan({ name, values, origins, shape, work, dtype, flopsPerSecond, budgetBytes, device: device.kind }),
    )
  }
  const { name, scale } = recipe
  return { recipe: name, scale, dtype, threads: device.threads, stages }
}

function workOf(values: StageSettings, recipe: Recipe): Work | Promise<Work> {
  if ('width' in values) return pretrainWork(values)
  return 'algorithm' in values ? rlvrWork(values) : chatWork(values, recipe)
}

interface Work {
  steps: number | null
  tokens: number | null
  notes: string[]
  /** Forward passes beside those of training, as a share of the tokens: a reference model's. */
  forwardOnly: number
}

interface StageFacts {
  values: StageSettings
  origins: ResolvedStage['origins']
  name: string
  shape: DecoderShape
  work: Work
  dtype: 'f32' | 'bf16'
  flopsPerSecond: number
  device: 'cpu' | 'cuda'
  /** Most bytes that the device gives to tensors. */
  budgetBytes: number
}

function stagePlan({
  name,
  values,
  origins,
  shape,
  work,
  dtype,
  flopsPerSecond,
  budgetBytes,
  device,
}: StageFacts): StagePlan {
  const { steps, tokens, notes, forwardOnly } = work
  const adapter = loraCost(shape, values)
  const memory = stageMemory(shape, values, { dtype, device })
  const context = rowSizes(values).longest / 2
  const perToken = trainingFlopsPerToken(shape, context, adapter) + forwardOnly * forwardFlopsPerToken(shape, context)
  const flops = tokens === null ? null : perToken * tokens
  const parameters = parameterCount(shape)
  const shortage = shortageOf(memory, { stage: name, values, dtype, budgetBytes })
  if (shortage) notes.push(`${shortage.needs}, so a run is refused: ${shortage.remedy}`)
  return {
    name,
    settings: values as unknown as Record<string, Setting>,
    origins,
    parameters,
    trainedParameters: adapter?.parameters ?? parameters,
    steps,
    tokens,
    flops,
    memory: Object.entries(memory.parts).map(([part, bytes]) => ({ name: part, bytes })),
    memoryBytes: memory.total,
    checkpointing: memory.checkpointing,
    seconds: flops === null ? null : flops / (flopsPerSecond * STEP_EFFICIENCY),
    atMost: !('width' in values),
    notes,
  }
}

/** Every answer counts as full: how long they will be is not known. */
function rlvrWork(values: RlvrSettings): Work {
  const { rollouts, promptsPerRollout, samplesPerPrompt, updateEpochs, miniBatches, steps, kl, algorithm } = values
  const perRollout = updateEpochs * miniBatches
  const all = rollouts * perRollout
  const done = steps > 0 ? Math.min(steps, all) : all
  const longest = values.maxPromptTokens + values.maxNewTokens
  const tokens = Math.ceil(done / miniBatches) * promptsPerRollout * samplesPerPrompt * longest
  // Generation, and a pass each for the reference and the values.
  const forwardOnly = (1 + Number(kl !== 'none') + (algorithm === 'ppo' ? 4 : 0)) / updateEpochs
  const answers = promptsPerRollout * samplesPerPrompt
  const notes = [`${rollouts} rollouts of ${answers} answers; tokens and time are upper limits, with every answer full`]
  return { steps: done, tokens, notes, forwardOnly }
}

function pretrainWork({ steps, tokens, epochs, batchTokens }: PretrainSettings): Work {
  const all = Math.ceil((tokens * epochs) / batchTokens)
  const done = steps > 0 ? Math.min(steps, all) : all
  return { steps: done, tokens: Math.min(done * batchTokens, tokens * epochs), notes: [], forwardOnly: 0 }
}

/** Rows are counted; tokens are not known before they are made, so each row counts as full. */
async function chatWork(values: ChatSettings & { rows: number }, recipe: Recipe): Promise<Work> {
  const { data, steps, epochs, maxTokens, rows: ownRows, batchTokens } = values
  const pairs = 'sharePrompt' in values
  const forwardOnly = 'beta' in values ? 1 / epochs : 0
  if (data.length === 0 && !recipe.builtInData) {
    return { steps: null, tokens: null, notes: ['steps and tokens depend on the data: give --data'], forwardOnly }
  }
  const batch = values.batchSequences || 32
  const rows = data.length === 0 ? ownRows : await countRows(data, values.fields, pairs ? pairRows : singleRows)
  const rowTokens = maxTokens * (pairs ? 2 : 1)
  const perEpoch = batchTokens > 0 ? Math.ceil((rows * rowTokens) / batchTokens) : Math.ceil(rows / batch)
  const all = perEpoch * epochs
  const done = steps > 0 ? Math.min(steps, all) : all
  const what = pairs ? 'pairs' : 'rows'
  const notes = [`${rows} ${what}; tokens and time are upper limits, with every chat ${maxTokens} tokens long`]
  return { steps: done, tokens: Math.min(done * batch, rows * epochs) * rowTokens, notes, forwardOnly }
}

async function countRows(files: readonly string[], fields: FieldMap, form: RowForm): Promise<number> {
  let rows = 0
  for (const file of files) {
    const dataset = await openDataset([file], { fields, form })
    for await (const _ of dataset.rows());
    if (dataset.counts.rows === 0) throw withoutRows(dataset)
    rows += dataset.counts.rows
  }
  return rows
}

/** FLOP/s of a product of training size, best of a few. */
async function productSpeed(device: Device): Promise<number> {
  const { rows, width, repeats } = PROBE
  const random = { deviation: 1, seed: 1, stream: 0, dtype: 'f32' } as const
  const [x, w] = [rows, width].map((size) => keep(randomNormal(device, [size, width], random))) as [Tensor, Tensor]
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i <= repeats; i++) {
    await device.idle()
    const started = performance.now()
    linear(x, w).dispose()
    await device.idle()
    if (i > 0) best = Math.min(best, (performance.now() - started) / 1000)
  }
  x.dispose()
  w.dispose()
  return (2 * rows * width * width) / best
}
