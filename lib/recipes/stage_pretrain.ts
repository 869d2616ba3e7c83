// The base stage of the pocket run: trains a tokenizer on generated text, makes a new model, and models the language of
// the generated corpus.
import { join } from 'node:path'
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
import { pocketData } from './pocket_data.js'
import { pocketGates } from './pocket_eval.js'
import { type PreparedStage, type StageContext, work } from './prepared_stage.js'
import { folderAtomic, folderExists } from './run_folder.js'
import type { PretrainSettings } from './stage.js'

const TEXTS_PER_CHUNK = 256
/** Steps over which the final loss is averaged. */
const WINDOW = 152

export async function preparePretrain(
  device: Device,
  settings: PretrainSettings,
  context: StageContext,
): Promise<PreparedStage> {
  const tokenizerFolder = join(context.directory, 'tokenizer')
  const tokenizer = await pocketTokenizer(tokenizerFolder, settings, context)
  const examples = await corpus(tokenizer, settings, context)
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

/** The tokenizer of the run: trained once, then read from its folder. */
async function pocketTokenizer(folder: string, settings: PretrainSettings, context: StageContext): Promise<Tokenizer> {
  if (await folderExists(folder)) return await Tokenizer.load(folder)
  const what = 'training the tokenizer'
  context.report({ type: 'progress', stage: context.stage, what, done: 0, total: 1 })
  const json = await trainBpeAsync({
    texts: pocketData(context.seed).tokenizerTexts(),
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
  await makeFolder(context.directory)
  await folderAtomic(folder, async (temporary) => {
    await writeFileAtomic(join(temporary, 'tokenizer.json'), JSON.stringify(json))
    await writeFileAtomic(join(temporary, 'tokenizer_config.json'), JSON.stringify(config, null, 2))
  })
  context.report({ type: 'progress', stage: context.stage, what, done: 1, total: 1 })
  return await Tokenizer.load(folder)
}

/** Documents `<|bos|> text <|end|>` until there are enough tokens, every token a target. */
async function corpus(
  tokenizer: Tokenizer,
  settings: PretrainSettings,
  context: StageContext,
): Promise<EncodedExamples> {
  const builder = new EncodedBuilder()
  const documents = pocketData(context.seed).baseDocuments()[Symbol.iterator]()
  const startChunk = () => {
    const texts = Array.from({ length: TEXTS_PER_CHUNK }, () => documents.next().value as string)
    const encoded = tokenizer.encodeBatch(texts, { offsets: false })
    encoded.catch(() => {}) // awaited in its turn, or not wanted any more
    return encoded
  }
  let ahead = startChunk()
  while (builder.tokenCount < settings.tokens) {
    throwIfAborted(context.signal)
    const encoded = ahead
    ahead = startChunk() // written while the chunk before is tokenised
    for (const { ids } of await encoded) {
      if (builder.tokenCount >= settings.tokens) break
      const document = new Int32Array(ids.length + 2)
      document[0] = tokenizer.bosId!
      document.set(ids, 1)
      document[ids.length + 1] = tokenizer.eosId!
      builder.append({ ids: document, mask: new Uint8Array(document.length).fill(1) })
    }
    const { tokenCount } = builder
    context.report({
      type: 'progress',
      stage: context.stage,
      what: 'writing the corpus',
      done: tokenCount,
      total: settings.tokens,
    })
  }
  return builder.finish()
}
