// The preference stage: pairs, the reference's opinion of them, and DPO or one of its relatives.
import type { EncodedPairs } from '../data/pairs.js'
import {
  checkPreferenceOptions,
  implicitReward,
  needsReference,
  type PreferenceLoss,
  type PreferenceLossOptions,
} from '../losses/preference.js'
import { answerLogprobs } from '../methods/answer_logprobs.js'
import { Dpo } from '../methods/dpo.js'
import { type CausalLm, loadModel } from '../models/index.js'
import type { Device } from '../runtime/index.js'
import { type ChatText, checkVocabulary, openChatText } from './chat_data.js'
import { applyLora, usesLora } from './lora_setting.js'
import { stagePairs } from './pair_data.js'
import { judgePairs } from './pocket_pairs_judge.js'
import { type PreparedStage, type StageContext, work } from './prepared_stage.js'
import { referenceLogprobs } from './reference_logprobs.js'
import type { DpoSettings } from './stage.js'
import { prepareKto } from './stage_kto.js'

/** Loads the policy, tokenises the pairs, and computes or reads the reference log-probabilities. */
export async function prepareDpo(device: Device, settings: DpoSettings, context: StageContext): Promise<PreparedStage> {
  if (settings.loss === 'kto') return await prepareKto(device, settings, context)
  const options = lossOptions(settings)
  checkPreferenceOptions(options)
  const text = await openChatText(settings, context)
  const model = await loadModel(device, settings.model, { dtype: context.dtype, trainable: !usesLora(settings) })
  try {
    // A new adapter changes nothing, so what is computed before the first step is still the reference's.
    applyLora(model, settings, context)
    return await prepareData({ model, ...text }, { settings, options }, context)
  } catch (error) {
    model.dispose()
    throw error
  }
}

function lossOptions({
  loss,
  beta,
  gammaBetaRatio,
  labelSmoothing,
  referenceFree,
}: DpoSettings): PreferenceLossOptions {
  return { loss: loss as PreferenceLoss, beta, gammaBetaRatio, labelSmoothing, referenceFree }
}

async function prepareData(
  loaded: ChatText & { model: CausalLm },
  { settings, options }: { settings: DpoSettings; options: PreferenceLossOptions },
  context: StageContext,
): Promise<PreparedStage> {
  const { model, tokenizer } = loaded
  for (const warning of model.warnings) context.report({ type: 'warning', stage: context.stage, message: warning })
  checkVocabulary(model.config, tokenizer, settings.model)
  const { train, held, loader } = await stagePairs(loaded, settings, context)
  const { model: folder, microBatchTokens: tokens } = settings
  const referenceOf = (pairs: EncodedPairs) => referenceLogprobs(model, pairs, { folder, tokens }, context)
  const wanted = needsReference(options)
  const reference = wanted ? await referenceOf(train) : undefined
  const method = new Dpo(loader, reference, {
    ...options,
    activationCheckpointing: settings.activationCheckpointing,
    maxSteps: settings.steps,
  })
  const evaluation = held && { pairs: held, reference: wanted ? await referenceOf(held) : undefined }
  return {
    ...loaded,
    ...work(method, { policy: model }),
    meanContext: train.sides.meanContext(settings.maxTokens),
    evaluate: evaluation && ((signal) => heldOut(model, evaluation, { options, tokens, signal })),
    ...(settings.data.length === 0 ? await judgePairs(loaded, settings, context) : {}),
  }
}

interface HeldOut {
  pairs: EncodedPairs
  reference: Float64Array | undefined
}

/** Share of held-out pairs whose chosen answer has the higher implicit reward, the mean margin, and the share whose
 *  chosen answer is the likelier one by mean log-probability. */
async function heldOut(
  model: CausalLm,
  { pairs, reference }: HeldOut,
  { options, tokens, signal }: { options: PreferenceLossOptions; tokens: number; signal?: AbortSignal },
): Promise<Record<string, number>> {
  const sums = await answerLogprobs(model, pairs, { tokens, signal })
  let [count, right, likelier, margins] = [0, 0, 0, 0]
  for (let pair = 0; pair < pairs.count; pair++) {
    if (pairs.targetsOf(pair) === 0) continue
    const [chosen, rejected] = [2 * pair, 2 * pair + 1].map((side) => {
      const length = pairs.sides.targetsOf(side)
      const sum = sums[side]!
      return { mean: sum / length, reward: implicitReward({ sum, length, reference: reference?.[side] ?? 0 }, options) }
    })
    count++
    margins += chosen!.reward - rejected!.reward
    if (chosen!.reward > rejected!.reward) right++
    if (chosen!.mean > rejected!.mean) likelier++
  }
  const share = (part: number) => (count === 0 ? 0 : part / count)
  return {
    'eval/rewards/accuracy': share(right),
    'eval/rewards/margin': share(margins),
    'eval/likelihood/accuracy': share(likelier),
  }
}
