// The stage with verifiable rewards: prompts, verifiers, and PPO, GRPO or RLOO on the policy's own answers.
import { join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import type { GroupAdvantage } from '../losses/advantage.js'
import { Grpo } from '../methods/grpo.js'
import type { LossAverage, OnlineModels, OnlineOptions } from '../methods/online_method.js'
import { Ppo } from '../methods/ppo.js'
import { type CausalLm, holdsRewardModel, loadModel, loadRewardModel, type RewardModel } from '../models/index.js'
import { copyWeights } from '../nn/module.js'
import { addInto, type KlKind, neg, type Surrogate } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { scope, withoutTape } from '../tensor/index.js'
import { VerifierPool } from '../verify/verifier_pool.js'
import { AnswerJudge } from './answer_judge.js'
import { type ChatText, checkVocabulary, openChatText } from './chat_data.js'
import { applyLora, usesLora } from './lora_setting.js'
import { openModelReward } from './model_reward.js'
import { judgeRlvr } from './pocket_rlvr_judge.js'
import { type BesideModel, type PreparedStage, type StageContext, work } from './prepared_stage.js'
import { type LabelledPrompt, promptSource } from './prompt_data.js'
import { RolloutLog } from './rollout_log.js'
import { folderExists } from './run_folder.js'
import type { RlvrSettings } from './stage.js'

/** Loads the models of the algorithm and the prompts. */
export async function prepareRlvr(
  device: Device,
  settings: RlvrSettings,
  context: StageContext,
): Promise<PreparedStage> {
  checkSettings(settings, context.stage)
  const text = await openChatText(settings, context)
  const { dtype } = context
  const models = new Models()
  try {
    const policy = models.own(await loadModel(device, settings.model, { dtype, trainable: !usesLora(settings) }))
    for (const message of policy.warnings) context.report({ type: 'warning', stage: context.stage, message })
    checkVocabulary(policy.config, text.tokenizer, settings.model)
    applyLora(policy, settings, context)
    const beside: BesideModel[] = []
    if (settings.kl !== 'none') {
      const model = models.own(await loadModel(device, settings.model, { dtype }))
      beside.push({ name: 'reference', model })
    }
    if (settings.algorithm === 'ppo') {
      const model = models.own(await valueModel(device, settings, context))
      const lrRatio = settings.valueLr === 0 || settings.lr === 0 ? 1 : settings.valueLr / settings.lr
      beside.push({ name: 'value', model, trained: { lrRatio } })
    }
    if (settings.asyncRollouts) {
      const model = models.own(await loadModel(device, settings.model, { dtype }))
      beside.push({ name: 'behaviour', model, inCheckpoints: true })
    }
    return await prepareMethod({ ...text, model: policy, beside }, settings, context)
  } catch (error) {
    models.dispose()
    throw error
  }
}

/** What has been loaded so far. */
class Models {
  readonly #all: { dispose(): void }[] = []

  own<T extends { dispose(): void }>(model: T): T {
    this.#all.push(model)
    return model
  }

  dispose(): void {
    for (const model of this.#all) model.dispose()
  }
}

function checkSettings(settings: RlvrSettings, stage: string): void {
  const wrong = (what: string, hint?: string) => {
    throw new CaravanError('ERR_CONFIG', `${stage}.${what}`, { hint })
  }
  if (!(settings.temperature > 0))
    wrong(`temperature must be above 0, since answers are sampled; got ${settings.temperature}`)
  if (settings.asyncRollouts && usesLora(settings)) {
    wrong('asyncRollouts copies all weights, which an adapter is not', 'leave out one of asyncRollouts and lora.rank')
  }
  if (settings.asyncRollouts && settings.keepRollouts === 1) {
    wrong('keepRollouts must be 0 or at least 2 with asyncRollouts, which begins a rollout before the last one is done')
  }
  if (settings.rewardModelWeight > 0 && settings.rewardModel === '') {
    wrong('rewardModelWeight needs a model', `give its folder with --set ${stage}.rewardModel=DIR`)
  }
  if (settings.algorithm !== 'ppo' && settings.samplesPerPrompt < 2) {
    wrong(`samplesPerPrompt must be at least 2 with ${settings.algorithm}; got ${settings.samplesPerPrompt}`)
  }
}

/** From the settings' folder, the run's reward model, or the model that the policy starts from. */
async function valueModel(device: Device, settings: RlvrSettings, context: StageContext): Promise<RewardModel> {
  const { dtype, seed, stage, report } = context
  const ofRun = join(context.directory, 'reward_model')
  const folder = settings.valueModel || ((await folderExists(ofRun)) ? ofRun : settings.model)
  const isReward = await holdsRewardModel(folder)
  report({ type: 'note', stage, text: `values start from ${folder}` })
  // A head of zeros says that every state is worth the mean.
  const head = isReward ? undefined : () => ({ seed, deviation: 0 })
  const model = await loadRewardModel(device, folder, { dtype, trainable: true, head })
  const { weight } = model.score
  if (isReward && settings.valueHead === 'zero') withoutTape(() => scope(() => addInto(weight, neg(weight))))
  return model
}

async function prepareMethod(
  loaded: ChatText & { model: CausalLm; beside: readonly BesideModel[] },
  settings: RlvrSettings,
  context: StageContext,
): Promise<PreparedStage> {
  const { model: policy, beside, tokenizer } = loaded
  const { verifiedReward, penaliseUnfinished, unfinishedReward, microBatchTokens: tokens } = settings
  const { rewardModel: folder, rewardModelWeight: weight, verifierTimeoutMs: timeoutMs } = settings
  const rewards = { verifiedReward, unfinishedReward: penaliseUnfinished ? unfinishedReward : undefined }
  const ofModel =
    weight > 0
      ? await openModelReward(policy.device, { folder, weight, tokenizer, dtype: context.dtype, tokens })
      : undefined
  const pool = new VerifierPool({ timeoutMs })
  const source = await promptSource({ ...loaded, verdicts: pool }, settings, context)
  const judge = new AnswerJudge(tokenizer, pool, rewards, ofModel?.scores)
  const named = Object.fromEntries(beside.map(({ name, model }) => [name, model]))
  const models: OnlineModels = { policy, ...named }
  const { behaviour } = models
  const options: OnlineOptions<LabelledPrompt> = {
    ...settings,
    surrogate: settings.surrogate as Surrogate,
    average: settings.average as LossAverage,
    lossKl: settings.algorithm === 'ppo' ? 'none' : (settings.kl as KlKind),
    lossKlCoefficient: settings.algorithm === 'ppo' ? 0 : settings.klCoefficient,
    prompts: source.of,
    judge,
    store: new RolloutLog(join(context.directory, 'rollouts', context.stage), { keep: settings.keepRollouts }),
    stopIds: stopIdsOf(loaded),
    seed: context.seed,
    maxSteps: settings.steps,
    refresh: behaviour && (() => copyWeights(policy, behaviour)),
    ...context.training,
  }
  return {
    ...loaded,
    ...work(methodOf(options, settings), models),
    async close() {
      await pool.dispose()
      await ofModel?.dispose()
    },
    meanContext: (settings.maxPromptTokens + settings.maxNewTokens) / 2,
    ...(settings.data.length === 0 ? await judgeRlvr(loaded, settings, context) : {}),
  }
}

function methodOf(
  options: OnlineOptions<LabelledPrompt>,
  settings: RlvrSettings,
): Ppo<LabelledPrompt> | Grpo<LabelledPrompt> {
  const { algorithm, advantage, kl, klCoefficient } = settings
  if (algorithm === 'ppo') {
    return new Ppo({ ...settings, ...options, rewardKl: kl as KlKind, rewardKlCoefficient: klCoefficient })
  }
  const kind = algorithm === 'rloo' ? 'rloo' : (advantage as GroupAdvantage)
  return new Grpo({ ...settings, ...options, advantage: kind })
}

/** The end of a turn, and what else the model's configuration says ends an answer. */
function stopIdsOf({ tokenizer, model }: ChatText & { model: CausalLm }): number[] {
  const ids = new Set(model.config.eosIds)
  if (tokenizer.eosId !== undefined) ids.add(tokenizer.eosId)
  if (ids.size > 0) return [...ids]
  throw new CaravanError('ERR_TOKENIZER', 'neither the tokenizer nor the model says which token ends an answer', {
    hint: 'set eos_token in tokenizer_config.json',
  })
}
