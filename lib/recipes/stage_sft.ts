// The SFT stage: a model folder and chat rows (files, or the pocket run's own), tokenised, mixed, packed.
import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CaravanError, throwIfAborted } from '../base/errors.js'
import { workerUrl } from '../base/worker.js'
import { openDataset } from '../data/dataset.js'
import { encodeDataset, encodeRows } from '../data/encode.js'
import { EncodedBuilder, type EncodedExamples } from '../data/encoded.js'
import { Loader } from '../data/loader.js'
import { formatMixTable, mixEncoded, mixStatistics, planMix } from '../data/mix.js'
import { type PackedBatch, type PackStrategy, packRow, planPacking } from '../data/pack.js'
import { convertRow } from '../data/rows.js'
import type { LossReduction } from '../losses/sft.js'
import { Sft } from '../methods/sft.js'
import { type CausalLm, loadModel } from '../models/index.js'
import { linearLogprob, selfSegments } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { scope, Tensor } from '../tensor/index.js'
import { ChatTemplate } from '../text/chat_template.js'
import { Tokenizer } from '../text/tokenizer.js'
import { builtInTemplates } from '../text/tulu_template.js'
import { pocketData } from './pocket_data.js'
import { pocketJudge } from './pocket_judge.js'
import type { PreparedStage, StageContext } from './prepared_stage.js'
import type { RowEncoderOptions } from './row_encoder.js'
import type { SftSettings } from './stage.js'

export async function prepareSft(device: Device, settings: SftSettings, context: StageContext): Promise<PreparedStage> {
  if (settings.model === '') {
    throw new CaravanError('ERR_CONFIG', `stage ${context.stage} needs a model`, {
      hint: 'give the folder of a Hugging Face checkpoint with --model, or run the base stage before it',
    })
  }
  const tokenizer = await Tokenizer.load(settings.model)
  const template = await chosenTemplate(tokenizer, settings)
  const model = await loadModel(device, settings.model, { dtype: context.dtype, trainable: true })
  try {
    return await prepareData({ model, tokenizer, template }, settings, context)
  } catch (error) {
    model.dispose()
    throw error
  }
}

type Loaded = Pick<PreparedStage, 'model' | 'tokenizer'> & { template: ChatTemplate }

async function prepareData(loaded: Loaded, settings: SftSettings, context: StageContext): Promise<PreparedStage> {
  const { model, tokenizer, template } = loaded
  for (const warning of model.warnings) context.report({ type: 'warning', stage: context.stage, message: warning })
  checkVocabulary(model, tokenizer, settings.model)
  const examples = await encodedExamples(tokenizer, template, settings, context)
  const { train, held } = splitHeldOut(examples, settings.evaluationShare)
  const loader = new Loader(train, {
    batch: settings.batchTokens > 0 ? { tokens: settings.batchTokens } : { sequences: settings.batchSequences || 32 },
    microBatchTokens: settings.microBatchTokens,
    packing: settings.packing as PackStrategy,
    epochs: settings.epochs,
    seed: context.seed,
  })
  reportLoader(loader, context)
  const method = new Sft(loader, {
    reduction: settings.reduction as LossReduction,
    zLoss: settings.zLoss,
    activationCheckpointing: settings.activationCheckpointing,
    maxSteps: settings.steps,
  })
  const judged = settings.data.length === 0 ? await pocketJudge(model, tokenizer, template) : {}
  return {
    model,
    method,
    meanContext: train.meanContext(settings.maxTokens),
    tokenizer,
    template,
    evaluate: held && ((signal) => heldOutLoss(model, held, { tokens: settings.microBatchTokens, signal })),
    ...judged,
  }
}

/** The template of the settings, else the tokenizer's own, else Tulu's. */
async function chosenTemplate(tokenizer: Tokenizer, settings: SftSettings): Promise<ChatTemplate> {
  const { template } = settings
  if (template === '') return ChatTemplate.of(tokenizer, tokenizer.chatTemplate ?? 'tulu')
  if (builtInTemplates.has(template)) return ChatTemplate.of(tokenizer, template)
  const source = await readFile(template, 'utf8').catch((cause) => {
    throw new CaravanError(
      'ERR_TEMPLATE',
      `chat template '${template}' is neither built in nor a file that can be read`,
      {
        hint: `built in: ${[...builtInTemplates.keys()].join(', ')}`,
        cause,
      },
    )
  })
  return ChatTemplate.of(tokenizer, source)
}

/** A tokenizer that can write ids which the model does not have would read outside the embedding. */
export function checkVocabulary(model: CausalLm, tokenizer: Tokenizer, folder: string): void {
  if (tokenizer.vocabularySize <= model.config.V) return
  const file = join(folder, 'tokenizer.json')
  throw new CaravanError(
    'ERR_TOKENIZER',
    `${file}: the tokenizer has ${tokenizer.vocabularySize} tokens, the model's embedding only ${model.config.V} rows`,
    {
      details: { file, tokens: tokenizer.vocabularySize, rows: model.config.V },
      hint: 'use the tokenizer that belongs to this model',
    },
  )
}

async function encodedExamples(
  tokenizer: Tokenizer,
  template: ChatTemplate,
  settings: SftSettings,
  context: StageContext,
): Promise<EncodedExamples> {
  const options: RowEncoderOptions = {
    tokenizer: settings.model,
    template: template.source,
    maxTokens: settings.maxTokens,
    trainOn: settings.trainOn as 'all' | 'last',
  }
  const encoder = { module: workerUrl(import.meta.url, './row_encoder.js'), options }
  const onProgress = (progress: { rows: number; total?: number }) =>
    context.report({
      type: 'progress',
      stage: context.stage,
      what: 'tokenising',
      done: progress.rows,
      total: progress.total,
    })
  const shared = { encoder, onProgress, signal: context.signal }
  if (settings.data.length === 0) {
    const rows = pocketData(context.seed).sftRows(settings.rows)
    return await encodeRows(ownRows(rows), { ...shared, total: rows.length })
  }
  const encoded: EncodedExamples[] = []
  for (const file of settings.data) {
    const dataset = await openDataset([file], { fields: settings.fields })
    const identity = {
      tokenizerHash: tokenizer.hash,
      templateHash: createHash('sha256').update(template.source).digest('hex'),
      maxTokens: settings.maxTokens,
      options: { trainOn: settings.trainOn },
    }
    const cache = { directory: join(context.directory, '.cache'), identity }
    const { examples, badRows, cacheProblem } = await encodeDataset(dataset, { ...shared, cache })
    if (badRows > 0)
      context.report({ type: 'warning', stage: context.stage, message: `${file}: ${badRows} bad rows left out` })
    if (cacheProblem) context.report({ type: 'warning', stage: context.stage, message: cacheProblem.message })
    encoded.push(examples)
  }
  return mixed(encoded, settings, context)
}

function mixed(encoded: EncodedExamples[], settings: SftSettings, context: StageContext): EncodedExamples {
  const { mix, data } = settings
  if (mix.length > 0 && mix.length !== data.length) {
    throw new CaravanError(
      'ERR_CONFIG',
      `${context.stage}.mix has ${mix.length} amounts for ${data.length} data files`,
      {
        hint: 'give one amount for each file: a count such as 1000 or a share such as 0.5',
      },
    )
  }
  if (encoded.length === 1 && mix.length === 0) return encoded[0]!
  const sources = data.map((name, i) => ({ name, rowCount: encoded[i]!.count, amount: mix[i] ?? { fraction: 1 } }))
  const plan = planMix(sources, context.seed)
  for (const warning of plan.warnings) context.report({ type: 'warning', stage: context.stage, message: warning })
  context.report({ type: 'note', stage: context.stage, text: formatMixTable(mixStatistics(plan, encoded)) })
  return mixEncoded(plan, encoded)
}

async function* ownRows(rows: readonly { messages: unknown }[]) {
  for (const [i, { messages }] of rows.entries()) {
    const place = { file: 'pocket data', line: i + 1 }
    yield { row: convertRow({ messages }, place), ...place }
  }
}

/** Every k-th example, so that the split depends on nothing but the share. */
function splitHeldOut(
  all: EncodedExamples,
  share: number,
): { train: EncodedExamples; held: EncodedExamples | undefined } {
  if (share <= 0) return { train: all, held: undefined }
  if (share >= 1) throw new CaravanError('ERR_CONFIG', `evaluationShare must be below 1, got ${share}`)
  const every = Math.max(2, Math.round(1 / share))
  const [train, held] = [new EncodedBuilder(), new EncodedBuilder()]
  for (let i = 0; i < all.count; i++) {
    const example = { ids: all.idsOf(i), mask: all.maskOf(i) }
    ;(i % every === every - 1 ? held : train).append(example)
  }
  return { train: train.finish(), held: held.count > 0 ? held.finish() : undefined }
}

function reportLoader(loader: Loader, context: StageContext): void {
  const { withoutTarget, cut } = loader
  const warn = (message: string) => context.report({ type: 'warning', stage: context.stage, message })
  if (withoutTarget > 0) warn(`${withoutTarget} examples have no token to train on and were left out`)
  if (cut.examples > 0) warn(`${cut.examples} examples are longer than a micro-batch and lose ${cut.tokens} tokens`)
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
    using logp = scope(() => logprobsOf(model, micro))
    for (const value of await logp.read()) sum -= value
    count += micro.targetCount
  }
  return { evalLoss: count === 0 ? 0 : sum / count }
}

function logprobsOf(model: CausalLm, micro: PackedBatch): Tensor {
  const N = micro.inputIds.length
  const { data, shape } = selfSegments(micro.cuSeqlens)
  const { device } = model
  const hidden = model.hidden({
    ids: Tensor.from(device, micro.inputIds, [N]),
    positions: Tensor.from(device, micro.positions, [N]),
    segments: Tensor.from(device, data, shape),
  })
  return linearLogprob(hidden, model.head, Tensor.from(device, micro.labels, [N])).logp
}
