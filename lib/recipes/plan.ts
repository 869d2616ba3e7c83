// The plan of a run, before anything is allocated: sizes, memory, work and time, and where every setting comes from.
import { CaravanError } from '../base/errors.js'
import { openDataset, withoutRows } from '../data/dataset.js'
import { pairRows } from '../data/pair_rows.js'
import { type FieldMap, type RowForm, singleRows } from '../data/rows.js'
import { cacheBytes, pagesFor } from '../generate/index.js'
import {
  forwardFlopsPerToken,
  parameterCount,
  readModelConfig,
  type TrainingCostOptions,
  trainingFlopsPerToken,
  trainingMemory,
} from '../models/index.js'
import type { DecoderShape } from '../nn/decoder_shape.js'
import { linear, openDevice, randomNormal } from '../ops/index.js'
import type { MasterForm, MomentType } from '../optim/adamw.js'
import type { Device } from '../runtime/index.js'
import { keep, type Tensor } from '../tensor/index.js'
import { loraCost } from './lora_setting.js'
import { type RunOptions, resolveRun } from './resolve_run.js'
import type {
  ChatSettings,
  ConversationSettings,
  Origin,
  PretrainSettings,
  Recipe,
  ResolvedStage,
  RlvrSettings,
  Setting,
  StageSettings,
} from './stage.js'
import { pocketShape } from './stage_pretrain.js'

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
  const memoryBytes = device.stats().budgetBytes
  const stages: StagePlan[] = []
  let shape: DecoderShape | undefined
  for (const [name, stage] of resolved) {
    if (stage.kind === 'eval') continue
    const { values, origins } = stage
    shape =
      'width' in values
        ? pocketShape(values, values.vocabularySize)
        : await chatShape(name, values, { recipe, before: shape })
    const work = await workOf(values, recipe)
    stages.push(
      stagePlan({ name, values, origins, shape, work, dtype, flopsPerSecond, memoryBytes, device: device.kind }),
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
  memoryBytes: number
}

function stagePlan({
  name,
  values,
  origins,
  shape,
  work,
  dtype,
  flopsPerSecond,
  memoryBytes,
  device,
}: StageFacts): StagePlan {
  const { steps, tokens, notes, forwardOnly } = work
  const { longest, micro } = rowSizes(values)
  const adapter = loraCost(shape, values)
  const sizes = {
    tokens: micro,
    dtype,
    checkpoint: values.activationCheckpointing,
    master: values.master as MasterForm,
    moments: values.moments as MomentType,
    device,
  }
  const { total: own, ...parts } = trainingMemory(shape, { ...sizes, adapter })
  const beside = 'algorithm' in values ? modelsBeside(shape, values, sizes) : {}
  const total = Object.values(beside).reduce((sum, bytes) => sum + bytes, own)
  const context = longest / 2
  const perToken = trainingFlopsPerToken(shape, context, adapter) + forwardOnly * forwardFlopsPerToken(shape, context)
  const flops = tokens === null ? null : perToken * tokens
  const parameters = parameterCount(shape)
  if (total > memoryBytes) {
    const [wanted, there] = [total, memoryBytes].map((bytes) => (bytes / 2 ** 30).toFixed(0))
    notes.push(
      `needs ${wanted} GiB, ${there} GiB may be used: ${savings(values, { dtype, adapter: adapter !== undefined })}`,
    )
  }
  return {
    name,
    settings: values as unknown as Record<string, Setting>,
    origins,
    parameters,
    trainedParameters: adapter?.parameters ?? parameters,
    steps,
    tokens,
    flops,
    memory: Object.entries({ ...parts, ...beside }).map(([part, bytes]) => ({ name: part, bytes })),
    memoryBytes: total,
    seconds: flops === null ? null : flops / (flopsPerSecond * STEP_EFFICIENCY),
    atMost: !('width' in values),
    notes,
  }
}

/** What makes a stage smaller, of what it does not do yet. */
function savings(values: StageSettings, { dtype, adapter }: { dtype: 'f32' | 'bf16'; adapter: boolean }): string {
  const ways: string[] = []
  if (!values.activationCheckpointing) ways.push('activationCheckpointing=true')
  if (dtype === 'f32') ways.push('--dtype bf16')
  else if (!adapter && values.master === 'full') ways.push('master=split')
  if (values.moments === 'f32') ways.push('moments=bf16')
  ways.push('a smaller microBatchTokens')
  if (!adapter) ways.push('lora.rank=16')
  return `make it smaller with ${ways.join(', ')}`
}

/** Longest sequence, and tokens that go through the model at once. */
function rowSizes(values: StageSettings): { longest: number; micro: number } {
  const { microBatchTokens } = values
  if ('algorithm' in values) return { longest: values.maxPromptTokens + values.maxNewTokens, micro: microBatchTokens }
  const { maxTokens, packing } = values
  return { longest: maxTokens, micro: packing === 'none' ? maxTokens : microBatchTokens }
}

/** Bytes of what a stage with rollouts holds beside the policy. Models take turns, so activations count once. */
function modelsBeside(
  shape: DecoderShape,
  { algorithm, kl, asyncRollouts, slots, maxPromptTokens, maxNewTokens }: RlvrSettings,
  sizes: TrainingCostOptions,
): Record<string, number> {
  const bytes = sizes.dtype === 'bf16' ? 2 : 4
  const { weights, gradients, optimizer } = trainingMemory(shape, sizes)
  return {
    ...(algorithm === 'ppo' ? { 'value model': weights + gradients + optimizer } : {}),
    ...(kl === 'none' ? {} : { 'reference model': weights }),
    ...(asyncRollouts ? { 'behaviour model': weights } : {}),
    'keys and values': cacheBytes(shape, pagesFor(maxPromptTokens + maxNewTokens) * slots, bytes),
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

async function chatShape(
  stage: string,
  { model }: Pick<ConversationSettings, 'model'>,
  { recipe, before }: { recipe: Recipe; before: DecoderShape | undefined },
): Promise<DecoderShape> {
  if (model !== '') return (await readModelConfig(model)).config
  const shape = before ?? recipe.model?.shape
  if (shape) return shape
  throw new CaravanError('ERR_CONFIG', `the stage ${stage} needs a model`, {
    hint: 'give the folder of a Hugging Face checkpoint with --model, or run the stages before it',
  })
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
