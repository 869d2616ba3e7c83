// The SFT stage: a model folder and chat rows (files, or the pocket run's own), tokenised, mixed, packed.
import { throwIfAborted } from '../base/errors.js'
import type { EncodedExamples } from '../data/encoded.js'
import { Loader } from '../data/loader.js'
import { packRow, planPacking } from '../data/pack.js'
import type { LossReduction } from '../losses/sft.js'
import { packedLogprobs } from '../methods/packed_logprobs.js'
import { Sft } from '../methods/sft.js'
import { type CausalLm, loadModel } from '../models/index.js'
import type { Device } from '../runtime/index.js'
import { scope } from '../tensor/index.js'
import { type ChatText, checkVocabulary, encodedExamples, openChatText, splitHeldOut } from './chat_data.js'
import { applyLora, usesLora } from './lora_setting.js'
import { pocketData } from './pocket_data.js'
import { pocketGates, pocketTable } from './pocket_eval.js'
import { measurePocket, pocketSamples } from './pocket_judge.js'
import { loaderOptions, type PreparedStage, reportLoader, type StageContext, work } from './prepared_stage.js'
import type { SftSettings } from './stage.js'

/** Loads the model and tokenises the data of an SFT stage. */
export async function prepareSft(device: Device, settings: SftSettings, context: StageContext): Promise<PreparedStage> {
  const text = await openChatText(settings, context)
  const model = await loadModel(device, settings.model, { dtype: context.dtype, trainable: !usesLora(settings) })
  try {
    applyLora(model, settings, context)
    return await prepareData({ model, ...text }, settings, context)
  } catch (error) {
    model.dispose()
    throw error
  }
}

type Loaded = ChatText & { model: CausalLm }

async function prepareData(loaded: Loaded, settings: SftSettings, context: StageContext): Promise<PreparedStage> {
  const { model, tokenizer } = loaded
  for (const warning of model.warnings) context.report({ type: 'warning', stage: context.stage, message: warning })
  checkVocabulary(model.config, tokenizer, settings.model)
  const own = context.builtInData ? () => [...pocketData(context.seed).sftRows(settings.rows)] : undefined
  const examples = await encodedExamples(loaded, settings, context, { own })
  const { train, held } = splitHeldOut(examples, settings.evaluationShare)
  const loader = new Loader(train, loaderOptions(settings, context))
  reportLoader(loader, context)
  const method = new Sft(loader, {
    reduction: settings.reduction as LossReduction,
    zLoss: settings.zLoss,
    activationCheckpointing: settings.activationCheckpointing,
    maxSteps: settings.steps,
  })
  return {
    ...loaded,
    ...work(method, { policy: model }),
    meanContext: train.meanContext(settings.maxTokens),
    evaluate: held && ((signal) => heldOutLoss(model, held, { tokens: settings.microBatchTokens, signal })),
    ...(settings.data.length === 0 ? await judged(loaded) : {}),
  }
}

/** Samples and gates of the pocket run. */
async function judged(loaded: Loaded): Promise<Pick<PreparedStage, 'samples' | 'gates'>> {
  return {
    samples: await pocketSamples('sft', loaded),
    async gates({ signal }) {
      const metrics = await measurePocket(loaded, { signal })
      return { gates: pocketGates('sft', metrics), metrics: Object.fromEntries(pocketTable(metrics)) }
    },
  }
}

/** Token-mean loss over the held-out examples. */
async function heldOutLoss(
  model: CausalLm,
  held: EncodedExamples,
  { tokens, signal }: { tokens: number; signal?: AbortSignal },
): Promise<Record<string, number>> {
  const plan = planPacking(held.lengths(), tokens, 'bfd')
  let [sum, count] = [0, 0]
  for (let row = 0; row < plan.rowCount; row++) {
    throwIfAborted(signal)
    const micro = packRow(plan, row, held)
    using logp = scope(() => packedLogprobs(model, micro))
    for (const value of await logp.read()) sum -= value
    count += micro.targetCount
  }
  return { evalLoss: count === 0 ? 0 : sum / count }
}
