// The preference stage with the loss of KTO: unpaired answers, each good or bad, from rows with a label or from pairs.
import { CaravanError } from '../base/errors.js'
import { openDataset } from '../data/dataset.js'
import { EncodedBuilder, type EncodedExamples } from '../data/encoded.js'
import { feedbackLabels, feedbackRows } from '../data/feedback_rows.js'
import { Loader } from '../data/loader.js'
import { EncodedPairs } from '../data/pairs.js'
import type { RowForm } from '../data/rows.js'
import { checkKtoOptions } from '../losses/kto.js'
import { Kto, LabelledExamples, mismatchedAnswers } from '../methods/kto.js'
import { type CausalLm, loadModel } from '../models/index.js'
import type { Device } from '../runtime/index.js'
import { type ChatText, checkVocabulary, encodedExamples, openChatText } from './chat_data.js'
import { applyLora, usesLora } from './lora_setting.js'
import { pocketData } from './pocket_data.js'
import { loaderOptions, type PreparedStage, reportLoader, type StageContext, work } from './prepared_stage.js'
import { referenceLogprobs } from './reference_logprobs.js'
import type { DpoSettings } from './stage.js'

/** Loads the policy, tokenises the answers, and computes or reads what the reference thinks of them. */
export async function prepareKto(device: Device, settings: DpoSettings, context: StageContext): Promise<PreparedStage> {
  checkKtoOptions(settings)
  checkUndivided(settings, context.stage)
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

/** Labels follow the order of the rows, so the rows must not be mixed or divided; nor may an answer be. */
function checkUndivided({ mix, evaluationShare, referenceFree, packing }: DpoSettings, stage: string): void {
  if (packing !== 'bfd' && packing !== 'none') {
    const message = `${stage}.packing must be bfd or none, which keep an answer together; got ${packing}`
    throw new CaravanError('ERR_CONFIG', message)
  }
  if (mix.length > 0 || evaluationShare > 0) {
    throw new CaravanError('ERR_CONFIG', `${stage}.loss=kto uses its data whole: no mix, no evaluationShare`)
  }
  if (referenceFree) throw new CaravanError('ERR_CONFIG', `${stage}.loss=kto needs its reference model`)
}

async function prepareData(
  loaded: ChatText & { model: CausalLm },
  settings: DpoSettings,
  context: StageContext,
): Promise<PreparedStage> {
  const { model, tokenizer } = loaded
  for (const message of model.warnings) context.report({ type: 'warning', stage: context.stage, message })
  checkVocabulary(model.config, tokenizer, settings.model)
  const own = context.builtInData ? () => [...pocketData(context.seed).pairs(settings.rows)] : undefined
  const examples = await encodedExamples(loaded, settings, context, { form: feedbackRows, own })
  refuseCut(examples, settings, context.stage)
  const desirable = settings.data.length === 0 ? alternating(examples.count) : await labelsOf(settings)
  const mismatched = mismatchedAnswers(examples, settings.maxTokens)
  const both = new EncodedPairs(interleaved(examples, mismatched), false)
  const { model: folder, microBatchTokens } = settings
  const sums = await referenceLogprobs(model, both, { folder, tokens: microBatchTokens }, context)
  const loader = new Loader(new LabelledExamples(examples), loaderOptions(settings, context))
  reportLoader(loader, context)
  const data = {
    examples,
    desirable,
    mismatched,
    reference: sums.filter((_, i) => i % 2 === 0),
    mismatchedReference: sums.filter((_, i) => i % 2 === 1),
  }
  const method = new Kto(loader, data, { ...settings, maxSteps: settings.steps })
  return { ...loaded, ...work(method, { policy: model }), meanContext: examples.meanContext(settings.maxTokens) }
}

/** The reference speaks of whole answers: a part of one cannot be compared with it. */
function refuseCut(examples: EncodedExamples, { microBatchTokens, packing }: DpoSettings, stage: string): void {
  const isCut = (_: unknown, i: number) => packing === 'bfd' && examples.lengthOf(i) > microBatchTokens
  const count = Array.from({ length: examples.count }, isCut).filter(Boolean).length
  if (count === 0) return
  const what = `${count} answers with their prompts are longer than ${stage}.microBatchTokens`
  throw new CaravanError('ERR_CONFIG', `${what}, ${microBatchTokens}, and would be cut`, {
    details: { examples: count, microBatchTokens },
    hint: `raise ${stage}.microBatchTokens, lower ${stage}.maxTokens, or set ${stage}.packing=none`,
  })
}

/** Labels of pairs laid out one side after the other. */
const alternating = (count: number): boolean[] => Array.from({ length: count }, (_, i) => i % 2 === 0)

async function labelsOf(settings: DpoSettings): Promise<boolean[]> {
  const labels: boolean[] = []
  const form: RowForm = {
    ...feedbackRows,
    convert(row, place, map = {}) {
      const converted = feedbackRows.convert(row, place, map)
      if (converted.length > 0) labels.push(...feedbackLabels(row, place, map))
      return converted
    },
  }
  const dataset = await openDataset(settings.data, { fields: settings.fields, form })
  for await (const _ of dataset.rows());
  return labels
}

function interleaved(a: EncodedExamples, b: EncodedExamples): EncodedExamples {
  const builder = new EncodedBuilder()
  for (let i = 0; i < a.count; i++) {
    for (const side of [a, b]) builder.append({ ids: side.idsOf(i), mask: side.maskOf(i) })
  }
  return builder.finish()
}
