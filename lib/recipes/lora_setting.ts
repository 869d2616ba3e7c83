// Training an adapter in place of all weights: a group of settings that any stage may have, and what follows from it
// for the run. The base is frozen and shared; a checkpoint holds the adapter and names the base by its hash.
import { createHash } from 'node:crypto'
import { basename, join, resolve } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { openCheckpointShards } from '../data/checkpoint_shards.js'
import { hashFile } from '../data/encode_cache.js'
import type { Method } from '../methods/method.js'
import {
  type AdaptableModel,
  type AdapterCost,
  adapterCost,
  addAdapter,
  type LoraSpec,
  trainedParameters,
  trainingFlopsPerToken,
} from '../models/index.js'
import type { DecoderShape } from '../nn/decoder_shape.js'
import type { Tensor } from '../tensor/index.js'
import type { StageContext } from './prepared_stage.js'

export const loraDefaults = {
  /** Rank of the adapters that are trained in place of the weights; 0 = the weights are. */
  'lora.rank': 0,
  /** The adapters' part is scaled by alpha / rank. */
  'lora.alpha': 16,
  /** Share of the elements that an adapter does not see of its input. */
  'lora.dropout': 0,
  /** Names of the layers: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or all-linear. */
  'lora.targetModules': ['all-linear'] as readonly string[],
  /** Scaled by alpha / sqrt(rank) instead (rsLoRA). */
  'lora.rsLora': false,
  /** Also trains the lengths of the rows of the changed weights (DoRA). */
  'lora.dora': false,
}

export type LoraSettings = typeof loraDefaults

/** Whether a stage with these settings trains an adapter. */
export function usesLora<S extends object>(settings: S): settings is S & LoraSettings {
  return 'lora.rank' in settings && (settings['lora.rank'] as number) > 0
}

function specOf(settings: LoraSettings): LoraSpec {
  return {
    rank: settings['lora.rank'],
    alpha: settings['lora.alpha'],
    rankStabilised: settings['lora.rsLora'],
    decomposed: settings['lora.dora'],
    dropout: settings['lora.dropout'],
    targetModules: settings['lora.targetModules'],
  }
}

/** Freezes `model` and gives it the adapter of the settings, if they ask for one. ERR_CONFIG for impossible ones. */
export function applyLora(model: AdaptableModel, settings: object, { stage, seed, report }: StageContext): void {
  if (!usesLora(settings)) return
  const { layers } = addAdapter(model, { ...specOf(settings), seed })
  const [all, trained] = [model.parameters(), trainedParameters(model)].map((parameters) =>
    [...parameters.values()].reduce((sum, tensor) => sum + tensor.count, 0),
  )
  const text = `an adapter of rank ${settings['lora.rank']} in ${layers.size} layers: ${trained} numbers are trained`
  report({ type: 'note', stage, text: `${text}, for a model of ${all}` })
}

/** Size of the adapter that the settings ask for, for plans. ERR_CONFIG for impossible settings. */
export function loraCost(shape: DecoderShape, settings: object): AdapterCost | undefined {
  return usesLora(settings) ? adapterCost(shape, specOf(settings)) : undefined
}

/** The frozen model that an adapter belongs to. */
export interface BaseReference {
  directory: string
  /** SHA-256 over the hashes of config.json and the files of weights. */
  sha256: string
}

/** Reads every byte of the model in `directory` once. */
export async function baseReference(directory: string): Promise<BaseReference> {
  const { files } = await openCheckpointShards(directory)
  const paths = [join(directory, 'config.json'), ...files.map(({ path }) => path).sort()]
  const hash = createHash('sha256')
  for (const path of paths) hash.update(`${basename(path)} ${await hashFile(path)}\n`)
  return { directory: resolve(directory), sha256: hash.digest('hex') }
}

/** What a stage trains. */
export interface TrainedPart<Models, Micro> {
  /** For the optimizer and the checkpoints, by name. */
  parameters: Map<string, Tensor>
  method: Method<Models, Micro>
  flopsPerToken: number
}

export interface PartOptions {
  settings: object
  meanContext: number
}

/** All of `model`, or its adapter: then the saved state of the method also says which base it belongs to and which
 *  dropout masks come next. */
export async function trainedPart<Models, Micro>(
  model: AdaptableModel,
  method: Method<Models, Micro>,
  { settings, meanContext }: PartOptions,
): Promise<TrainedPart<Models, Micro>> {
  const flopsPerToken = trainingFlopsPerToken(model.config, meanContext, loraCost(model.config, settings))
  const parameters = trainedParameters(model)
  if (!model.decoder.lora) return { parameters, method, flopsPerToken }
  const base = await baseReference((settings as { model: string }).model)
  return { parameters, method: withBase(method, model, base), flopsPerToken }
}

interface AdaptedState {
  method: unknown
  base: BaseReference
  dropoutPasses: number
}

function withBase<Models, Micro>(
  method: Method<Models, Micro>,
  { decoder }: AdaptableModel,
  base: BaseReference,
): Method<Models, Micro> {
  const masks = decoder.lora?.masks
  return {
    name: method.name,
    unitSeed: method.unitSeed,
    metricNames: method.metricNames,
    totalSteps: method.totalSteps,
    batches: (models) => method.batches(models),
    loss: (models, micro) => method.loss(models, micro),
    state: (): AdaptedState => ({ method: method.state(), base, dropoutPasses: masks?.passes ?? 0 }),
    restore(state) {
      const saved = state as AdaptedState
      if (saved.base.sha256 !== base.sha256) throw otherBase(saved.base, base)
      method.restore(saved.method)
      if (masks) masks.passes = saved.dropoutPasses
    },
  }
}

function otherBase(before: BaseReference, now: BaseReference): CaravanError {
  return new CaravanError(
    'ERR_CONFIG',
    `the adapter in the checkpoint was trained on another model: ${before.directory} had SHA-256 ${before.sha256}, ` +
      `${now.directory} has ${now.sha256}`,
    {
      details: { before, now },
      hint: 'put the model back that the run was started with, or start a new run with another --out',
    },
  )
}
