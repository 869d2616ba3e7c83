// A stage's settings are a plain object of defaults, and that object is the schema: an override must name an existing
// key and have the default's type. What came from where is kept, printed and saved with the run.
import { CaravanError, nearestName } from '../base/errors.js'
import { PACK_STRATEGIES } from '../data/pack.js'
import { groupAdvantageKinds } from '../losses/advantage.js'
import { preferenceLosses } from '../losses/preference.js'
import { lossReductions } from '../losses/sft.js'
import { lossAverages } from '../methods/online_method.js'
import type { DecoderShape } from '../nn/decoder_shape.js'
import { klKinds, surrogates } from '../ops/index.js'
import { masterForms, momentTypes } from '../optim/adamw.js'
import { scheduleKinds } from '../optim/schedule.js'
import { type Checkpointing, checkpointings } from '../tensor/index.js'
import { loraDefaults } from './lora_setting.js'

export type Setting = number | boolean | string | readonly string[] | { readonly [key: string]: string }
export type Settings = { readonly [key: string]: Setting }
export type Origin = 'default' | 'recipe' | 'flag'

/** Settings that hold one of a few words. */
const choices: { [key: string]: readonly string[] } = {
  schedule: scheduleKinds,
  packing: PACK_STRATEGIES,
  reduction: lossReductions,
  trainOn: ['all', 'last'],
  loss: [...preferenceLosses, 'kto'],
  algorithm: ['ppo', 'grpo', 'rloo'],
  advantage: groupAdvantageKinds,
  average: lossAverages,
  surrogate: surrogates,
  kl: klKinds,
  valueHead: ['keep', 'zero'],
  activationCheckpointing: checkpointings,
  master: masterForms,
  moments: momentTypes,
}

/** What every stage with an optimizer can be told. */
const optimizerDefaults = {
  /** Optimizer steps; 0 = as many as the data needs. */
  steps: 0,
  /** Tokens that go through the model at once. Changes memory and speed, not the result. */
  microBatchTokens: 8192,
  lr: 1e-5,
  schedule: 'linear',
  warmupRatio: 0.03,
  finalLrRatio: 0,
  beta1: 0.9,
  beta2: 0.999,
  eps: 1e-8,
  weightDecay: 0,
  /** Beside bf16 weights: the lower halves of f32 numbers (split), or full copies of them, 2 bytes a weight more. */
  master: 'split',
  /** Type of AdamW's two moments: f32, or bf16 rounded at random, 4 bytes a weight less. */
  moments: 'f32',
  /** Largest gradient norm; 0 = no clipping. */
  maxNorm: 1,
  /** Steps in a row with gradients that are not finite before the run gives up. */
  maxSkippedInARow: 10,
  /** How much of each block is computed again in the backward pass: none, selective (what is cheap) or full. Changes
   *  memory and speed, not the result. */
  activationCheckpointing: 'none' as Checkpointing,
  /** Steps between checkpoints; 0 = only when the run is stopped. */
  checkpointEvery: 0,
  keepCheckpoints: 2,
  /** Steps between evaluations; 0 = only at the end. */
  evaluateEvery: 0,
}

/** What every stage on fixed data can be told. */
export const trainingDefaults = {
  ...optimizerDefaults,
  epochs: 1,
  /** Sequences in a global batch; 0 = batchTokens decides. */
  batchSequences: 0,
  batchTokens: 0,
  /** Longest sequence; what is longer is cut on the right. */
  maxTokens: 2048,
  packing: 'bfd',
}

/** What every stage that starts from a model and reads conversations can be told. */
const conversationDefaults = {
  /** Model folder; empty = the result of the stage before. */
  model: '',
  /** Data files or folders; empty = the recipe's own data. */
  data: [] as readonly string[],
  /** Names of the fields to read, such as { prompt: 'question' }; empty = detected. */
  fields: {} as { readonly [key: string]: string },
  /** Chat template: tulu, pocket, a file, or empty = the tokenizer's own. */
  template: '',
  /** Evaluation tasks (names, or paths of task files) that are part of every evaluation, the folder of their data, and
   *  how many rows of each; 0 = all. */
  evalTasks: [] as readonly string[],
  evalData: '',
  evalLimit: 0,
  ...loraDefaults,
}

/** What stages on chat data can be told. */
const chatDefaults = {
  ...trainingDefaults,
  ...conversationDefaults,
  /** How many rows of each of `data`: a count ("1000") or a share ("0.5", "2.0"); empty = all of each. */
  mix: [] as readonly string[],
  trainOn: 'all',
  /** Share of the rows that is held out for evaluation. */
  evaluationShare: 0,
}

/** Supervised fine-tuning on chat rows. */
export const sftDefaults = {
  ...chatDefaults,
  reduction: 'token_mean',
  zLoss: 0,
  /** Rows of the recipe's own data. */
  rows: 9000,
}

/** What stages on preference pairs can be told; a batch is counted in pairs. */
const pairDefaults = {
  ...chatDefaults,
  /** The prompt that both answers of a pair follow is computed once. */
  sharePrompt: true,
  /** Pairs of the recipe's own data. */
  rows: 3000,
}

/** Preference tuning: DPO and its relatives. */
export const dpoDefaults = {
  ...pairDefaults,
  loss: 'dpo_norm',
  beta: 5,
  /** simpo: target margin divided by beta. */
  gammaBetaRatio: 0.3,
  labelSmoothing: 0,
  /** No reference model where the loss would have one. */
  referenceFree: false,
  /** kto, which takes unpaired answers too: weights of good and of bad ones. */
  desirableWeight: 1,
  undesirableWeight: 1,
}

/** A scalar reward trained on pairs. */
export const rewardDefaults = {
  ...pairDefaults,
  /** Standard deviation of the first head times sqrt(D + 1); 0 = a head of zeros. */
  headScale: 1,
  /** Weight of (chosen + rejected)^2; 0 = off. */
  centering: 0,
  /** Column with the margin by which the chosen answer is better; empty = none. */
  marginColumn: '',
}

/** Reinforcement learning with verifiable rewards. */
export const rlvrDefaults = {
  ...optimizerDefaults,
  ...conversationDefaults,
  /** ppo, grpo, or rloo: grpo with each answer compared to the mean of the others. */
  algorithm: 'ppo',
  /** Rollouts in all, and what each holds. */
  rollouts: 100,
  promptsPerRollout: 128,
  samplesPerPrompt: 1,
  /** Longer prompts are left out. */
  maxPromptTokens: 2048,
  /** An answer that has not ended by then is cut. */
  maxNewTokens: 2048,
  temperature: 1,
  /** Answers that are generated at the same time. Changes memory and speed, not the result. */
  slots: 64,
  /** Passes over a rollout, and optimizer steps of each pass. */
  updateEpochs: 1,
  miniBatches: 1,
  /** What a minibatch's loss is averaged over: token, sequence, constant. */
  average: 'token',
  surrogate: 'clip',
  clipLow: 0.2,
  clipHigh: 0.2,
  /** Bound of the ratio where the advantage is negative; 0 = none. */
  ratioCap: 0,
  /** Estimator and weight of the divergence from the starting model: ppo has it in the rewards, grpo in the loss. */
  kl: 'k1',
  klCoefficient: 0.05,
  /** Verifier of rows that name none. */
  verifier: '',
  /** Milliseconds after which a verifier is stopped and its answer gets nothing. */
  verifierTimeoutMs: 1000,
  /** Reward of an answer that the verifier accepts. */
  verifiedReward: 10,
  /** Reward, in place of any other, of an answer that did not end. */
  unfinishedReward: -10,
  penaliseUnfinished: true,
  /** Folder of a reward model, or of an ONNX classifier, whose score times the weight is added. */
  rewardModel: '',
  rewardModelWeight: 0,
  /** ppo: discount and mixing of the advantage estimate. */
  gamma: 1,
  lambda: 0.95,
  whitenAdvantages: true,
  /** ppo: the reward lies on the state after the last token, which has a value too, as upstream; else on the token. */
  rewardAfterEnd: false,
  /** ppo: folder of the model that values start from; empty = the run's reward model, else the starting model. */
  valueModel: '',
  /** ppo: head of a reward model that values start from: keep or zero. */
  valueHead: 'keep',
  /** ppo: learning rate of the values; 0 = lr. */
  valueLr: 0,
  clipValue: 0.2,
  valueWeight: 0.1,
  /** grpo: mean, standard, batch, rloo or none. */
  advantage: 'mean',
  /** grpo: groups whose answers are all worth the same are left out. */
  filterZeroVariance: true,
  /** grpo: answers that did not end have no loss. */
  maskTruncated: false,
  /** Each rollout is generated while the one before is trained on, by the policy from before that. */
  asyncRollouts: false,
  /** Rollouts whose log is kept; 0 = all. */
  keepRollouts: 0,
  /** Share of instructions among the recipe's own prompts. */
  instructionShare: 0.4,
}

/** Every model of the run on the same tasks. */
export const evalDefaults = {
  /** Names of tasks, or paths of task files; empty = the recipe's own measures, where it has any. */
  tasks: [] as readonly string[],
  /** Folder with the data of the tasks. */
  data: '',
  /** Rows of each task; 0 = all. */
  limit: 0,
  /** Most new tokens of an answer; 0 = the task's own number. */
  maxNewTokens: 0,
}

/** Language modelling from scratch: a tokenizer, a new model, generated text. */
export const pretrainDefaults = {
  ...trainingDefaults,
  reduction: 'token_mean',
  zLoss: 0,
  tokens: 2_500_000,
  vocabularySize: 1024,
  width: 128,
  layers: 4,
  heads: 4,
  keyValueHeads: 4,
  feedForwardWidth: 384,
  ropeTheta: 10_000,
  normEps: 1e-5,
  embeddingDeviation: 0.04,
  linearGain: 0.5,
}

export type ChatSettings = typeof chatDefaults
export type ConversationSettings = typeof conversationDefaults
export type PairSettings = typeof pairDefaults

/** What each kind of stage can be told: the defaults are the schema. */
const defaultsOf = {
  pretrain: pretrainDefaults,
  sft: sftDefaults,
  dpo: dpoDefaults,
  reward_model: rewardDefaults,
  rlvr: rlvrDefaults,
  eval: evalDefaults,
}

export type StageKind = keyof typeof defaultsOf
export type SettingsOf<K extends StageKind> = (typeof defaultsOf)[K]
export type PretrainSettings = SettingsOf<'pretrain'>
export type SftSettings = SettingsOf<'sft'>
export type DpoSettings = SettingsOf<'dpo'>
export type RewardSettings = SettingsOf<'reward_model'>
export type RlvrSettings = SettingsOf<'rlvr'>
export type EvalSettings = SettingsOf<'eval'>
/** Stages that train a model; the others look at what is there. */
export type TrainedKind = Exclude<StageKind, 'eval'>
export type StageSettings = SettingsOf<TrainedKind>

interface RecipeOf<K extends StageKind> {
  name: string
  kind: K
  /** Only what differs from the defaults. */
  settings: Partial<SettingsOf<K>>
  /** The stage whose result this one starts from; default the one before it. */
  from?: string
}

/** One stage as a recipe gives it. */
export type StageRecipe = { [K in StageKind]: RecipeOf<K> }[StageKind]

/** A stage with its settings, by kind. */
export type ResolvedStage = { [K in StageKind]: { kind: K; values: SettingsOf<K> } }[StageKind] & {
  origins: { [key: string]: Origin }
}

/** A recipe is data: what is done in which order, with which numbers. */
export interface Recipe {
  name: string
  scale: string
  description: string
  stages: StageRecipe[]
  /** Whether the recipe generates data for stages that are given none; default false. */
  builtInData?: boolean
  /** Precision of the weights that are trained. */
  dtype: 'f32' | 'bf16'
  /** The model that the published recipe starts from: for its plan, when no folder is given. */
  model?: { name: string; shape: DecoderShape }
}

/**
 * Overrides by `stage.key`, or by `stage.key.field` for settings that are tables; values as typed on a command line.
 */
export type Overrides = { readonly [path: string]: string }

/** The settings of `stage` after its overrides. ERR_CONFIG names the nearest setting for one that does not exist. */
export function resolveStage(stage: StageRecipe, overrides: Overrides): ResolvedStage {
  const defaults: Settings = defaultsOf[stage.kind]
  const values: { [key: string]: Setting } = { ...defaults }
  const origins: { [key: string]: Origin } = Object.fromEntries(Object.keys(defaults).map((key) => [key, 'default']))
  for (const [key, value] of Object.entries(stage.settings)) {
    values[key] = checked(stage.name, { key, value: value as Setting, model: defaults[key] })
    origins[key] = 'recipe'
  }
  for (const [path, text] of Object.entries(overrides)) {
    const name = path.split('.')[0]!
    if (name !== stage.name) continue
    const { key, field } = keyAndField(path.slice(name.length + 1), defaults)
    requireKnown(stage.name, key, Object.keys(defaults))
    values[key] = parseSetting(stage.name, { key, text, field, before: values[key]! })
    origins[key] = 'flag'
  }
  return { kind: stage.kind, values, origins } as unknown as ResolvedStage
}

/** Refuses overrides of stages that the run does not have. */
export function checkOverrideStages(overrides: Overrides, stages: readonly string[]): void {
  for (const path of Object.keys(overrides)) {
    const name = path.split('.')[0]!
    if (stages.includes(name) && path.includes('.')) continue
    const nearest = nearestName(name, stages)
    throw new CaravanError(
      'ERR_CONFIG',
      `--set ${path}: a setting is written stage.name, with a stage of this run: ${stages.join(', ')}`,
      {
        hint: nearest && `did you mean '${nearest}${path.includes('.') ? path.slice(name.length) : '.<setting>'}'?`,
      },
    )
  }
}

/** Divides what follows the name of the stage: `fields.prompt` is a field of a table, `lora.rank` a setting. */
function keyAndField(path: string, defaults: Settings): { key: string; field: string } {
  const [first, ...rest] = path.split('.') as [string, ...string[]]
  if (Object.hasOwn(defaults, path) || !Object.hasOwn(defaults, first)) return { key: path, field: '' }
  return { key: first, field: rest.join('.') }
}

function requireKnown(stage: string, key: string, known: string[]): void {
  if (known.includes(key)) return
  const group = known.filter((name) => name.startsWith(`${key}.`))
  const nearest = group.length > 0 ? group.join("', '") : nearestName(key, known)
  throw new CaravanError('ERR_CONFIG', `stage ${stage} has no setting '${key}'; known: ${known.join(', ')}`, {
    details: { stage, key },
    hint: nearest && `did you mean '${nearest}'?`,
  })
}

function parseSetting(
  stage: string,
  { key, text, field, before }: { key: string; text: string; field: string; before: Setting },
): Setting {
  const wrong = (wanted: string) =>
    new CaravanError('ERR_CONFIG', `${stage}.${key} must be ${wanted}, got "${text}"`, {
      details: { stage, key, text },
    })
  if (typeof before === 'number') {
    const value = Number(text)
    if (text.trim() === '' || !Number.isFinite(value)) throw wrong(`a number like ${before}`)
    return checked(stage, { key, value, model: before })
  }
  if (typeof before === 'boolean') {
    if (text !== 'true' && text !== 'false') throw wrong('true or false')
    return text === 'true'
  }
  if (typeof before === 'string') return checked(stage, { key, value: text, model: before })
  if (Array.isArray(before)) return text === '' ? [] : text.split(',')
  if (field === '') throw wrong(`set by field, as in --set ${stage}.${key}.prompt=question`)
  return { ...(before as { [key: string]: string }), [field]: text }
}

/** ERR_CONFIG for a value that a setting may not have; no number but a penalty is negative. */
function checked(
  stage: string,
  { key, value, model }: { key: string; value: Setting; model: Setting | undefined },
): Setting {
  if (model === undefined) throw new CaravanError('ERR_CONFIG', `stage ${stage} has no setting '${key}'`)
  if (typeof value === 'number' && !(value >= 0) && key !== 'unfinishedReward') {
    throw new CaravanError('ERR_CONFIG', `${stage}.${key} must not be negative, got ${value}`)
  }
  if (typeof value === 'number' && wholeNumbers.has(key) && !Number.isInteger(value)) {
    throw new CaravanError('ERR_CONFIG', `${stage}.${key} must be a whole number, got ${value}`)
  }
  const words = choices[key]
  if (words && typeof value === 'string' && !words.includes(value)) {
    const nearest = nearestName(value, words)
    throw new CaravanError('ERR_CONFIG', `${stage}.${key} must be one of ${words.join(', ')}; got "${value}"`, {
      hint: nearest && `did you mean '${nearest}'?`,
    })
  }
  return value
}

const wholeNumbers = new Set(
  ['steps', 'epochs', 'batchSequences', 'batchTokens', 'maxTokens', 'microBatchTokens', 'maxSkippedInARow'].concat(
    ['checkpointEvery', 'keepCheckpoints', 'evaluateEvery', 'rows', 'tokens', 'vocabularySize', 'width', 'layers'],
    ['heads', 'keyValueHeads', 'feedForwardWidth', 'lora.rank', 'rollouts', 'promptsPerRollout', 'samplesPerPrompt'],
    ['maxPromptTokens', 'maxNewTokens', 'slots', 'updateEpochs', 'miniBatches', 'keepRollouts', 'verifierTimeoutMs'],
  ),
)
