// The reward model stage: the decoder of a language model with a new scalar head, trained on pairs.
import { CaravanError } from '../base/errors.js'
import type { EncodedPairs } from '../data/pairs.js'
import { RewardTraining } from '../methods/reward_model.js'
import { loadRewardModel, type RewardModel } from '../models/index.js'
import type { Device } from '../runtime/index.js'
import { type ChatText, checkVocabulary, openChatText } from './chat_data.js'
import { applyLora, usesLora } from './lora_setting.js'
import { pairMargins, stagePairs } from './pair_data.js'
import { judgeRewards } from './pocket_pairs_judge.js'
import { type PreparedStage, type StageContext, work } from './prepared_stage.js'
import { pairScores } from './reward_scores.js'
import type { RewardSettings } from './stage.js'

/** Loads the body of the model, gives it a head, and tokenises the pairs. */
export async function prepareRewardModel(
  device: Device,
  settings: RewardSettings,
  context: StageContext,
): Promise<PreparedStage> {
  const text = await openChatText(settings, context)
  const { seed, dtype } = context
  // Stiennon et al. 2020 start from N(0, 1 / (D + 1)).
  const head = (D: number) => ({ seed, deviation: settings.headScale / Math.sqrt(D + 1) })
  const model = await loadRewardModel(device, settings.model, { dtype, trainable: !usesLora(settings), head })
  try {
    applyLora(model, settings, context)
    return await prepareData({ model, ...text }, settings, context)
  } catch (error) {
    model.dispose()
    throw error
  }
}

async function prepareData(
  loaded: ChatText & { model: RewardModel },
  settings: RewardSettings,
  context: StageContext,
): Promise<PreparedStage> {
  const { model, tokenizer } = loaded
  for (const message of model.warnings) context.report({ type: 'warning', stage: context.stage, message })
  checkVocabulary(model.config, tokenizer, settings.model)
  const margins = await givenMargins(settings, context.stage)
  const { train, held, loader } = await stagePairs(loaded, settings, context)
  const method = new RewardTraining(loader, margins, {
    centering: settings.centering,
    activationCheckpointing: settings.activationCheckpointing,
    maxSteps: settings.steps,
  })
  const { microBatchTokens: tokens } = settings
  return {
    ...loaded,
    ...work(method, { policy: model }),
    meanContext: train.sides.meanContext(settings.maxTokens),
    evaluate: held && ((signal) => heldOut(model, held, { tokens, signal })),
    ...(settings.data.length === 0 ? judgeRewards(loaded, settings, context) : {}),
  }
}

/** Margins by pair. They follow the order of the files, so the pairs must not be mixed or divided. */
async function givenMargins(settings: RewardSettings, stage: string): Promise<Float32Array | undefined> {
  const { marginColumn, data, mix, evaluationShare } = settings
  if (marginColumn === '') return undefined
  if (data.length !== 1 || mix.length > 0 || evaluationShare > 0) {
    const message = `${stage}.marginColumn needs one data file, used whole: no mix, no evaluationShare`
    throw new CaravanError('ERR_CONFIG', message)
  }
  return await pairMargins(settings, marginColumn)
}

/** Share of held-out pairs with the higher score for the chosen answer, and the mean difference. */
async function heldOut(
  model: RewardModel,
  held: EncodedPairs,
  options: { tokens: number; signal?: AbortSignal },
): Promise<Record<string, number>> {
  const scores = await pairScores(model, held, options)
  let [right, margins] = [0, 0]
  for (let pair = 0; pair < held.count; pair++) {
    const margin = scores[2 * pair]! - scores[2 * pair + 1]!
    margins += margin
    if (margin > 0) right++
  }
  return { 'eval/rewards/accuracy': right / held.count, 'eval/rewards/margin': margins / held.count }
}
