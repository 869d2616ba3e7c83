// What a stage takes of the device's memory in each mode of activation checkpointing: for the plan that is printed, and
// for the refusal of a run that its budget cannot hold. Nothing is switched on its own: the mode that fits is named.
import { CaravanError } from '../base/errors.js'
import { cacheBytes, pagesFor } from '../generate/index.js'
import { readModelConfig, type TrainingCostOptions, trainingMemory } from '../models/index.js'
import type { DecoderShape } from '../nn/decoder_shape.js'
import type { MasterForm, MomentType } from '../optim/adamw.js'
import type { Device } from '../runtime/index.js'
import { type Checkpointing, checkpointings } from '../tensor/index.js'
import { loraCost } from './lora_setting.js'
import type { ConversationSettings, Recipe, ResolvedStage, RlvrSettings, StageSettings } from './stage.js'
import { pocketShape } from './stage_pretrain.js'

export interface StageMemory {
  /** By what it is for. */
  parts: { [name: string]: number }
  total: number
  /** The total in each mode of activation checkpointing, all else as it is. */
  checkpointing: { [mode in Checkpointing]: number }
}

interface Placement {
  dtype: 'f32' | 'bf16'
  device: 'cpu' | 'cuda'
}

/** Bytes at the worst moment of training a model of `shape` with these settings, with micro-batches that are full. */
export function stageMemory(shape: DecoderShape, values: StageSettings, placement: Placement): StageMemory {
  const sizes = {
    ...placement,
    tokens: rowSizes(values).micro,
    master: values.master as MasterForm,
    moments: values.moments as MomentType,
  }
  const adapter = loraCost(shape, values)
  const beside = 'algorithm' in values ? modelsBeside(shape, values, sizes) : {}
  const besideBytes = Object.values(beside).reduce((sum, bytes) => sum + bytes, 0)
  const planned = (checkpoint: Checkpointing) => trainingMemory(shape, { ...sizes, adapter, checkpoint })
  const { total, ...parts } = planned(values.activationCheckpointing)
  const totals = checkpointings.map((mode) => [mode, planned(mode).total + besideBytes])
  return { parts: { ...parts, ...beside }, total: total + besideBytes, checkpointing: Object.fromEntries(totals) }
}

/** Longest sequence, and tokens that go through the model at once. */
export function rowSizes(values: StageSettings): { longest: number; micro: number } {
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

export interface Shortage {
  needs: string
  remedy: string
}

interface StageBudget {
  stage: string
  values: StageSettings
  dtype: 'f32' | 'bf16'
  budgetBytes: number
}

/** What is missing, and what would help, where a stage needs more than `budgetBytes`. */
export function shortageOf(
  { total, checkpointing }: StageMemory,
  { stage, values, dtype, budgetBytes }: StageBudget,
): Shortage | undefined {
  if (total <= budgetBytes) return undefined
  const needs = `needs ${sizeText(total)} by its memory plan, ${sizeText(budgetBytes)} may be used`
  const mode = checkpointings.find((name) => checkpointing[name] <= budgetBytes)
  const setting = `${stage}.activationCheckpointing`
  const fitting = mode
    ? `--set ${setting}=${mode} would fit (${sizeText(checkpointing[mode])})`
    : `no ${setting} would fit (full: ${sizeText(checkpointing.full)})`
  return { needs, remedy: `${fitting}; what else helps: ${savings(values, dtype).join(', ')}` }
}

/** What makes a stage smaller, of what it does not do yet. */
function savings(values: StageSettings, dtype: 'f32' | 'bf16'): string[] {
  const adapter = 'lora.rank' in values && values['lora.rank'] > 0
  const ways = [`a smaller micro-batch (microBatchTokens is ${values.microBatchTokens})`]
  if (dtype === 'f32') ways.push('--dtype bf16')
  else if (!adapter && values.master === 'full') ways.push('master=split')
  if (values.moments === 'f32') ways.push('moments=bf16')
  if (!adapter && 'lora.rank' in values) ways.push('lora.rank=16')
  return ways
}

function sizeText(bytes: number): string {
  const [value, unit] = bytes < 2 ** 30 ? [bytes / 2 ** 20, 'MiB'] : [bytes / 2 ** 30, 'GiB']
  return `${value >= 100 ? value.toFixed(0) : value.toPrecision(3)} ${unit}`
}

/** Shape of the model that a stage trains: that of its folder, of the stage before, or of the recipe's published model.
 *  ERR_CONFIG when there is none. */
export async function stageShape(
  stage: string,
  values: StageSettings,
  { recipe, before }: { recipe: Recipe; before: DecoderShape | undefined },
): Promise<DecoderShape> {
  if ('width' in values) return pocketShape(values, values.vocabularySize)
  const { model }: Pick<ConversationSettings, 'model'> = values
  if (model !== '') return (await readModelConfig(model)).config
  const shape = before ?? recipe.model?.shape
  if (shape) return shape
  throw new CaravanError('ERR_CONFIG', `the stage ${stage} needs a model`, {
    hint: 'give the folder of a Hugging Face checkpoint with --model, or run the stages before it',
  })
}

interface MemoryCheck {
  recipe: Recipe
  dtype: 'f32' | 'bf16'
  device: Device
  /** Stages that are not run again. */
  finished: ReadonlySet<string>
}

/** Refuses a run of `stages` that needs more than the device may give, before anything is loaded: ERR_OOM with the
 *  mode of activation checkpointing that would fit. Stages whose model is not known yet are left to themselves. */
export async function requireMemory(
  stages: ReadonlyMap<string, ResolvedStage>,
  { recipe, dtype, device, finished }: MemoryCheck,
): Promise<void> {
  const { budgetBytes } = device.stats()
  let shape: DecoderShape | undefined
  for (const [name, { kind, values }] of stages) {
    if (kind === 'eval') continue
    // What is wrong with a model, its stage says better.
    shape = await stageShape(name, values, { recipe, before: shape }).catch(() => undefined)
    if (!shape || finished.has(name)) continue
    const memory = stageMemory(shape, values, { dtype, device: device.kind })
    const shortage = shortageOf(memory, { stage: name, values, dtype, budgetBytes })
    if (!shortage) continue
    throw new CaravanError('ERR_OOM', `the stage ${name} ${shortage.needs}`, {
      details: { stage: name, neededBytes: memory.total, budgetBytes, checkpointing: memory.checkpointing },
      hint: `${shortage.remedy}, a larger memory budget (--memory-limit)`,
    })
  }
}
