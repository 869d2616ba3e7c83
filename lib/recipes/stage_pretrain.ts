// The base stage of the pocket run: trains a tokenizer on generated text, makes a new model, and models the language of
// the generated corpus.
import { dirname, join } from 'node:path'
import { throwIfAborted } from '../base/errors.js'
import { makeFolder } from '../base/make_folder.js'
import { writeFileAtomic } from '../data/atomic_file.js'
import { EncodedBuilder, type EncodedExamples } from '../data/encoded.js'
import { Loader } from '../data/loader.js'
import type { PackStrategy } from '../data/pack.js'
import type { LossReduction } from '../losses/sft.js'
import { Sft } from '../methods/sft.js'
import { type DecoderConfig, newModel } from '../models/index.js'
import type { DecoderShape } from '../nn/decoder_shape.js'
import type { Device } from '../runtime/index.js'
import { trainBpeAsync } from '../text/bpe_trainer.js'
import { wordSplitPattern } from '../text/split_pattern.js'
import { Tokenizer } from '../text/tokenizer.js'
import { pocketSpecialTokens, pocketTemplate } from '../text/tulu_template.js'
import { pocketData, TOKENIZER_DOCUMENTS } from './pocket_data.js'
import { pocketGates } from './pocket_eval.js'
import { PocketWriter } from './pocket_writer.js'
import { type PreparedStage, type StageContext, work } from './prepared_stage.js'
import { folderAtomic, folderExists } from './run_folder.js'
import type { PretrainSettings } from './stage.js'

/** Steps over which the final loss is averaged. */
const WINDOW = 152

export async function preparePretrain(
  device: Device,
  settings: PretrainSettings,
  context: StageContext,
): Promise<PreparedStage> {
  const { tokenizer, examples } = await tokenizerAndCorpus(settings, context)
  const loader = new Loader(examples, {
    batch: { tokens: settings.batchTokens },
    microBatchTokens: settings.microBatchTokens,
    packing: settings.packing as PackStrategy,
    epochs: settings.epochs,
    seed: context.seed,
  })
  const config = llamaConfig(tokenizer, settings, context.dtype)
  const { embeddingDeviation, linearGain } = settings
  const model = newModel(device, config, {
    seed: context.seed,
    init: { embeddingDeviation, linearGain },
    dtype: context.dtype,
  })
  const method = new Sft(loader, {
    reduction: settings.reduction as LossReduction,
    zLoss: settings.zLoss,
    activationCheckpointing: settings.activationCheckpointing,
    maxSteps: settings.steps,
  })
  return {
    model,
    ...work(method, { policy: model }),
    meanContext: examples.meanContext(settings.maxTokens),
    tokenizer,
    template: undefined,
    async gates({ losses }) {
      const window = losses.slice(-WINDOW)
      const lastWindowLoss = window.reduce((sum, loss) => sum + loss, 0) / window.length
      return { gates: pocketGates('base', { lastWindowLoss }), metrics: { lastWindowLoss } }
    },
  }
}

async function tokenizerAndCorpus(settings: PretrainSettings, context: StageContext) {
  const folder = join(context.directory, 'tokenizer')
  const documents = new Documents(context.seed)
  let saved: Promise<void> | undefined
  try {
    const kept = await folderExists(folder)
    const tokenizer = kept ? await Tokenizer.load(folder) : await trainTokenizer(documents, settings, context)
    if (!kept) saved = saveTokenizer(tokenizer, folder)
    saved?.catch(() => {}) // awaited below: the disk has time until the corpus is there
    const examples = await corpus(tokenizer, documents, { settings, context })
    await saved
    return { tokenizer, examples }
  } finally {
    await Promise.allSettled([saved, documents.close()])
  }
}

/** A Llama with tied embeddings of the settings' sizes. */
export function pocketShape(settings: PretrainSettings, V: number): DecoderShape {
  const { width: D, layers: L, heads: H, keyValueHeads: K, feedForwardWidth: F } = settings
  return {
    V,
    D,
    L,
    H,
    K,
    C: D / H,
    F,
    normPlacement: 'pre',
    normKind: 'rms',
    eps: settings.normEps,
    queryKeyNorm: 'none',
    attentionBias: 'none',
    mlpBias: false,
    tiedHead: true,
    windows: Array(L).fill(0),
    clipQkv: undefined,
    rope: { theta: settings.ropeTheta, scaling: undefined },
  }
}

function llamaConfig(tokenizer: Tokenizer, settings: PretrainSettings, dtype: 'f32' | 'bf16'): DecoderConfig {
  return {
    family: 'llama',
    ...pocketShape(settings, tokenizer.vocabularySize),
    contextTokens: settings.maxTokens,
    dtype,
    bosId: tokenizer.bosId,
    eosIds: [tokenizer.eosId!],
    padId: tokenizer.padId,
    initializerDeviation: settings.embeddingDeviation,
  }
}

/** Documents of the corpus as they are written; what the tokenizer is trained on is kept for the corpus. */
class Documents {
  readonly #writer: PocketWriter
  readonly #read: string[][] = []

  constructor(private readonly seed: number) {
    this.#writer = new PocketWriter(seed)
  }

  /** The prompts first: while they are drawn, documents are written. */
  async *tokenizerTexts(): AsyncGenerator<string> {
    yield* pocketData(this.seed).tokenizerPrompts()
    for (let left = TOKENIZER_DOCUMENTS; left > 0; ) {
      const texts = await this.#writer.next()
      this.#read.push(texts)
      yield* texts.slice(0, left)
      left -= texts.length
    }
  }

  /** All documents from the first on, some at a time. */
  async next(): Promise<string[]> {
    return this.#read.shift() ?? (await this.#writer.next())
  }

  close(): Promise<void> {
    return this.#writer.close()
  }
}

async function trainTokenizer(
  documents: Documents,
  settings: PretrainSettings,
  context: StageContext,
): Promise<Tokenizer> {
  const what = 'training the tokenizer'
  context.report({ type: 'progress', stage: context.stage, what, done: 0, total: 1 })
  const json = await trainBpeAsync({
    texts: documents.tokenizerTexts(),
    vocabularySize: settings.vocabularySize,
    specialTokens: pocketSpecialTokens,
    splitRegex: wordSplitPattern(1),
    signal: context.signal,
  })
  const config = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    bos_token: '<|bos|>',
    eos_token: '<|end|>',
    pad_token: '<|pad|>',
    clean_up_tokenization_spaces: false,
    chat_template: pocketTemplate.source,
  }
  context.report({ type: 'progress', stage: context.stage, what, done: 1, total: 1 })
  return Tokenizer.fromJson(JSON.stringify(json), config)
}

/** A resumed run reads the tokenizer from its folder. */
async function saveTokenizer(tokenizer: Tokenizer, folder: string): Promise<void> {
  await makeFolder(dirname(folder))
  await folderAtomic(folder, async (temporary) => {
    for (const [name, bytes] of tokenizer.files) await writeFileAtomic(join(temporary, name), bytes)
  })
}

/** Documents `<|bos|> text <|end|>` until there are enough tokens, every token a target. */
async function corpus(
  tokenizer: Tokenizer,
  documents: Documents,
  { settings, context }: { settings: PretrainSettings; context: StageContext },
): Promise<EncodedExamples> {
  const { tokens: total } = settings
  const builder = new EncodedBuilder()
  while (builder.tokenCount < total) {
    const encoded = await tokenizer.encodeBatch(await documents.next(), { offsets: false })
    throwIfAborted(context.signal)
    for (const { ids } of encoded) {
      if (builder.tokenCount >= total) break
      builder.appendTrained([tokenizer.bosId!], ids, [tokenizer.eosId!])
    }
    const done = builder.tokenCount
    context.report({ type: 'progress', stage: context.stage, what: 'writing the corpus', done, total })
  }
  return builder.finish()
}
