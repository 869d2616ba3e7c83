// Language models: configuration, Hugging Face folders in and out, sizes and costs.

export type { PackedRows } from '../nn/decoder.js'
export { readRows } from '../nn/read_rows.js'
export {
  type AdaptableModel,
  adapterParameters,
  addAdapter,
  type LoraOptions,
  type LoraSpec,
  mergeAdapter,
  removeAdapter,
  trainedParameters,
  withAdapter,
} from './adapter.js'
export { type AdapterCost, adapterCost } from './adapter_cost.js'
export { type LoadAdapterOptions, loadAdapter, type SaveAdapterOptions, saveAdapter } from './adapter_files.js'
export { CausalLm, type ModelOrigin } from './causal_lm.js'
export { ConfigReader, type JsonObject } from './config_reader.js'
export {
  blockKeptBytesPerToken,
  blockTapeBytesPerToken,
  forwardFlopsPerToken,
  parameterCount,
  type TrainingCostOptions,
  type TrainingMemory,
  tapeBytes,
  trainingFlopsPerToken,
  trainingMemory,
  workspaceBytes,
} from './cost.js'
export { checkConfig, type DecoderConfig, type StoredDtype } from './decoder_config.js'
export type { Family } from './family.js'
export { type LoadModelOptions, loadModel, openModelFolder, ParameterLoader, readModelConfig } from './load_model.js'
export { type Initialisation, type NewModelOptions, newModel } from './new_model.js'
export { families, familyNamed, readConfig, type Task } from './registry.js'
export { holdsRewardModel, loadRewardModel, RewardModel, type ScoreHeadInit } from './reward_model.js'
export { configJsonOf, type SaveModelOptions, saveModel } from './save_model.js'
