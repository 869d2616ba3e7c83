// What the stages on chat data share: tokenizer and template of the model they start from, rows tokenised with a cache,
// mixed, and divided into a part to train on and a part held out.
import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { workerUrl } from '../base/worker.js'
import { type DatasetRow, openDataset, withoutRows } from '../data/dataset.js'
import { encodeDataset, encodeRows } from '../data/encode.js'
import { EncodedBuilder, type EncodedExamples } from '../data/encoded.js'
import type { EncoderModule } from '../data/encoder.js'
import { formatMixTable, mixEncoded, mixStatistics, planMix } from '../data/mix.js'
import { pairRows } from '../data/pair_rows.js'
import { EncodedPairs } from '../data/pairs.js'
import { type RowForm, singleRows } from '../data/rows.js'
import type { DecoderConfig } from '../models/index.js'
import { ChatTemplate } from '../text/chat_template.js'
import { Tokenizer } from '../text/tokenizer.js'
import { builtInTemplates } from '../text/tulu_template.js'
import type { StageContext } from './prepared_stage.js'
import type { RowEncoderOptions } from './row_encoder.js'
import type { ChatSettings, ConversationSettings } from './stage.js'

/** How chats become text, and text tokens. */
export interface ChatText {
  tokenizer: Tokenizer
  template: ChatTemplate
}

/** Tokenizer and template of the stage's model folder. */
export async function openChatText(
  settings: Pick<ConversationSettings, 'model' | 'template'>,
  context: StageContext,
): Promise<ChatText> {
  if (settings.model === '') {
    throw new CaravanError('ERR_CONFIG', `stage ${context.stage} needs a model`, {
      hint: 'give the folder of a Hugging Face checkpoint with --model, or run the stages before it',
    })
  }
  const tokenizer = await Tokenizer.load(settings.model)
  return { tokenizer, template: await chosenTemplate(tokenizer, settings) }
}

/** The template of the settings, else the tokenizer's own, else Tulu's. */
async function chosenTemplate(tokenizer: Tokenizer, settings: { template: string }): Promise<ChatTemplate> {
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
export function checkVocabulary(config: DecoderConfig, tokenizer: Tokenizer, folder: string): void {
  if (tokenizer.vocabularySize <= config.V) return
  const file = join(folder, 'tokenizer.json')
  throw new CaravanError(
    'ERR_TOKENIZER',
    `${file}: the tokenizer has ${tokenizer.vocabularySize} tokens, the model's embedding only ${config.V} rows`,
    {
      details: { file, tokens: tokenizer.vocabularySize, rows: config.V },
      hint: 'use the tokenizer that belongs to this model',
    },
  )
}

/** Where a stage's rows come from when no files are given, and what they become. */
export interface RowSource {
  /** What a row of a file is; default one example. */
  form?: RowForm
  /** Examples that a row becomes; default 1. */
  perRow?: number
  /** Rows of the recipe's own data, as its files would hold them; undefined where it brings none. */
  own: (() => readonly Record<string, unknown>[]) | undefined
}

function rowEncoder({ template }: ChatText, settings: ChatSettings): EncoderModule {
  const options: RowEncoderOptions = {
    tokenizer: settings.model,
    template: template.source,
    maxTokens: settings.maxTokens,
    trainOn: settings.trainOn as 'all' | 'last',
  }
  return { module: workerUrl(import.meta.url, './row_encoder.js'), options }
}

/** The stage's data, tokenised and mixed. */
export async function encodedExamples(
  text: ChatText,
  settings: ChatSettings,
  context: StageContext,
  { form = singleRows, perRow = 1, own }: RowSource,
): Promise<EncodedExamples> {
  const { tokenizer, template } = text
  const encoder = rowEncoder(text, settings)
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
    if (!own) {
      throw new CaravanError('ERR_CONFIG', `stage ${context.stage} needs data`, {
        hint: `give files with --data, or with --set ${context.stage}.data=FILE,FILE`,
      })
    }
    const rows = own()
    return await encodeRows(ownRows(rows, form), { ...shared, total: rows.length * perRow })
  }
  const encoded: EncodedExamples[] = []
  for (const file of settings.data) {
    const dataset = await openDataset([file], { fields: settings.fields, form })
    const identity = {
      tokenizerHash: tokenizer.hash,
      templateHash: createHash('sha256').update(template.source).digest('hex'),
      maxTokens: settings.maxTokens,
      options: { trainOn: settings.trainOn },
    }
    const cache = { directory: join(context.directory, '.cache'), identity }
    const { examples, badRows, cacheProblem } = await encodeDataset(dataset, { ...shared, cache })
    if (examples.count === 0) throw withoutRows(dataset)
    if (badRows > 0)
      context.report({ type: 'warning', stage: context.stage, message: `${file}: ${badRows} rows left out` })
    if (cacheProblem) context.report({ type: 'warning', stage: context.stage, message: cacheProblem.message })
    encoded.push(examples)
  }
  return mixed(encoded, { settings, context, perRow })
}

function mixed(
  encoded: EncodedExamples[],
  { settings, context, perRow }: { settings: ChatSettings; context: StageContext; perRow: number },
): EncodedExamples {
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
  const sources = data.map((name, i) => ({
    name,
    rowCount: encoded[i]!.count / perRow,
    amount: mix[i] ?? { fraction: 1 },
  }))
  const plan = planMix(sources, context.seed)
  for (const warning of plan.warnings) context.report({ type: 'warning', stage: context.stage, message: warning })
  context.report({ type: 'note', stage: context.stage, text: formatMixTable(mixStatistics(plan, encoded, perRow)) })
  return mixEncoded(plan, encoded, perRow)
}

/** Pairs of the recipe's own, tokenised as those of the stage are. */
export async function encodedPairsOf(
  text: ChatText,
  {
    rows,
    settings,
    signal,
  }: { rows: readonly Record<string, unknown>[]; settings: ChatSettings; signal?: AbortSignal },
): Promise<EncodedPairs> {
  const encoder = rowEncoder(text, settings)
  const sides = await encodeRows(ownRows(rows, pairRows), { encoder, signal })
  return new EncodedPairs(sides, false)
}

async function* ownRows(rows: readonly Record<string, unknown>[], form: RowForm): AsyncGenerator<DatasetRow> {
  for (const [i, row] of rows.entries()) {
    const place = { file: 'built-in data', line: i + 1 }
    for (const converted of form.convert(row, place)) yield { row: converted, ...place }
  }
}

/** Every k-th row (of `perRow` examples), so that the split depends on nothing but the share. */
export function splitHeldOut(
  all: EncodedExamples,
  share: number,
  perRow = 1,
): { train: EncodedExamples; held: EncodedExamples | undefined } {
  if (share <= 0) return { train: all, held: undefined }
  if (share >= 1) throw new CaravanError('ERR_CONFIG', `evaluationShare must be below 1, got ${share}`)
  const every = Math.max(2, Math.round(1 / share))
  const [train, held] = [new EncodedBuilder(), new EncodedBuilder()]
  for (let i = 0; i < all.count; i++) {
    const example = { ids: all.idsOf(i), mask: all.maskOf(i) }
    ;(Math.floor(i / perRow) % every === every - 1 ? held : train).append(example)
  }
  return { train: train.finish(), held: held.count > 0 ? held.finish() : undefined }
}
