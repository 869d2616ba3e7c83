// The public face of the package. Everything else may change between versions.

export type { DType } from './base/dtype.js'
export { CaravanError, type ErrorCode } from './base/errors.js'
export { Random } from './base/random.js'
export { openDataset } from './data/dataset.js'
export { EncodedBuilder, EncodedExamples } from './data/encoded.js'
export { Loader, type LoaderOptions } from './data/loader.js'
export { openSafetensors } from './data/safetensors.js'
export { writeSafetensors } from './data/safetensors_writer.js'
export {
  type EvaluateOptions,
  type EvaluationResult,
  evaluate,
  evaluateTasks,
  findTasks,
  loadTasks,
  type SampleRecord,
  TASKS,
  type Task,
  type TaskResult,
} from './evals/index.js'
export {
  type BudgetForcingOptions,
  type Generated,
  type GenerateEvent,
  type GenerateOptions,
  type GenerateRequest,
  generate,
  generateAll,
  generateWithBudget,
} from './generate/index.js'
export { Dpo } from './methods/dpo.js'
export { Grpo } from './methods/grpo.js'
export { Kto } from './methods/kto.js'
export type { Batch, Method } from './methods/method.js'
export { Ppo } from './methods/ppo.js'
export { RewardTraining } from './methods/reward_model.js'
export type { Judge, RolloutPrompt, RolloutStore } from './methods/rollout.js'
export { Sft } from './methods/sft.js'
export {
  addAdapter,
  CausalLm,
  type DecoderConfig,
  type LoraOptions,
  loadAdapter,
  loadModel,
  loadRewardModel,
  mergeAdapter,
  newModel,
  RewardModel,
  removeAdapter,
  saveAdapter,
  saveModel,
  trainedParameters,
  withAdapter,
} from './models/index.js'
export * as ops from './ops/index.js'
export { openDevice } from './ops/index.js'
export { AdamW, type AdamWOptions } from './optim/adamw.js'
export { type ScheduleOptions, scheduleFactor } from './optim/schedule.js'
export { planRun, type RunOptions, type RunPlan, run, type StagePlan } from './recipes/index.js'
export type { Overrides, Recipe } from './recipes/stage.js'
export { tulu3 } from './recipes/tulu3.js'
export type { Device, DeviceOptions, DeviceStats } from './runtime/index.js'
export {
  type Checkpointing,
  checkGradient,
  checkpoint,
  defineOp,
  type GradientReport,
  Gradients,
  keep,
  reshape,
  scope,
  Tape,
  Tensor,
  withoutTape,
} from './tensor/index.js'
export { trainBpe, trainBpeAsync } from './text/bpe_trainer.js'
export { encodeChat, encodeChatBatch, encodePromptBatch } from './text/chat_encoding.js'
export { type ChatMessage, ChatTemplate } from './text/chat_template.js'
export { Tokenizer } from './text/tokenizer.js'
export type { RunEvent, StepEvent } from './train/events.js'
export { type Step, trainLoop } from './train/loop.js'
export { MATH_VOTES, type Majority, majorityVote, NUMBER_VOTES } from './verify/majority_vote.js'
export { OnnxClassifier, type OnnxClassifierOptions, type ScoredPair } from './verify/onnx_classifier.js'
export { findVerifier, VERIFIERS } from './verify/registry.js'
export { guardedVerify, type Verdict, type Verifier, type VerifyInput } from './verify/verifier.js'
export { loadVerifier } from './verify/verifier_module.js'
export { VerifierPool, type VerifierPoolOptions, type VerifyTask } from './verify/verifier_pool.js'
