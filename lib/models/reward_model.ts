// A reward model: the decoder with one number on top, read at the last token of an answer. Saved and loaded as
// transformers' *ForSequenceClassification with one label.
import type { DType } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import { Decoder, type ForwardOptions, type PackedRows } from '../nn/decoder.js'
import { Linear } from '../nn/linear.js'
import { Module, type ParameterPlace, ParameterScope, type ParameterSource } from '../nn/module.js'
import { cast, fill, linear, randomNormal, takeRows } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep, reshape, type Tensor } from '../tensor/index.js'
import type { ModelOrigin } from './causal_lm.js'
import type { DecoderConfig } from './decoder_config.js'
import { type LoadModelOptions, openModelFolder, ParameterLoader, readJson } from './load_model.js'
import { huggingFaceName } from './parameter_names.js'
import { familyNamed, type Task } from './registry.js'

export class RewardModel extends Module {
  readonly task: Task = 'SequenceClassification'
  readonly decoder: Decoder
  /** [1,D], without bias; a new one is f32 on a body of any precision. */
  readonly score: Linear

  constructor(
    source: ParameterSource,
    readonly config: DecoderConfig,
    readonly origin?: ModelOrigin,
  ) {
    super()
    const root = new ParameterScope(source)
    this.score = new Linear(root.at('score'), { inputs: config.D, outputs: 1 })
    this.decoder = new Decoder(root.at('decoder'), config)
  }

  get device(): Device {
    return this.score.weight.device
  }

  /** Element type of the weights in memory. */
  get dtype(): DType {
    return this.decoder.embedding.weight.dtype
  }

  get warnings(): readonly string[] {
    return this.origin?.warnings ?? []
  }

  /** Scores [S] f32 at the rows `at` [S] i32 of the packed rows. The head is computed in f32 whatever the weights
   *  are. */
  scores(rows: PackedRows, at: Tensor, options: ForwardOptions = {}): Tensor {
    const hidden = takeRows(this.decoder.forward(rows, options), at)
    const scores = linear(widened(hidden), widened(this.score.weight))
    return reshape(scores, [at.shape[0]!])
  }

  /** Parameters by their Hugging Face name. */
  override parameters(): Map<string, Tensor> {
    const { blockNorms } = familyNamed(this.config.family)
    return new Map([...super.parameters()].map(([name, tensor]) => [huggingFaceName(name, blockNorms), tensor]))
  }

  /** Whether gradients flow to the parameters. */
  setTrainable(trainable: boolean): void {
    for (const tensor of this.parameters().values()) tensor.tracked = trainable
  }
}

const widened = (x: Tensor): Tensor => (x.dtype === 'f32' ? x : cast(x, 'f32'))

/** The first head of a reward model that starts from a language model. */
export interface ScoreHeadInit {
  seed: number
  /** Standard deviation; 1 / sqrt(D + 1) upstream (Stiennon et al. 2020), 0 for a head of zeros. */
  deviation: number
}

/** Reads a reward model from a folder: one that was saved as such, or (with `head`, told the model's width) a language
 *  model that gets a new head. Errors as loadModel. */
export async function loadRewardModel(
  device: Device,
  directory: string,
  options: Omit<LoadModelOptions, 'vocabularyRows'> & { head?: (D: number) => ScoreHeadInit } = {},
): Promise<RewardModel> {
  const folder = await openModelFolder(directory, options.head ? 'CausalLM' : 'SequenceClassification')
  const { config, configJson } = folder
  const dtype = options.dtype ?? (config.dtype === 'bf16' ? 'bf16' : 'f32')
  checkLabels(folder.directory, configJson)
  const loader = new ParameterLoader(device, folder, { dtype, vocabularyRows: config.V })
  const made: Tensor[] = []
  const source = (place: ParameterPlace): Tensor => {
    if (!options.head || place.name !== 'score.weight') return loader.source(place)
    const tensor = keep(newHead(device, place, options.head(config.D)))
    made.push(tensor)
    return tensor
  }
  let model: RewardModel | undefined
  try {
    const origin = { configJson, generationConfigJson: undefined, warnings: loader.warnings }
    model = new RewardModel(source, config, origin)
    loader.finish(options.head ? ['lm_head.weight'] : [])
    model.setTrainable(options.trainable ?? false)
    await device.idle()
    return model
  } catch (error) {
    if (model) model.dispose()
    else for (const part of [loader, ...made]) part.dispose()
    throw error
  }
}

/** Whether a folder holds a model with a score head; false for any other, and for none. */
export async function holdsRewardModel(directory: string): Promise<boolean> {
  return isClassifier((await readJson(directory, 'config.json'))?.architectures)
}

/** f32, so that its gradient is too: through the widening of a bf16 one it would be bf16. It costs D numbers. */
function newHead(device: Device, { shape }: ParameterPlace, { seed, deviation }: ScoreHeadInit): Tensor {
  const dtype = 'f32'
  if (deviation === 0) return fill(device, shape, { value: 0, dtype })
  return randomNormal(device, shape, { deviation, seed, stream: SCORE_STREAM, dtype })
}

/** Keeps the head's random numbers apart from those of other parameters under the same seed. */
const SCORE_STREAM = 0x5c0e

function checkLabels(directory: string, json: { [key: string]: unknown }): void {
  const labels = typeof json.id2label === 'object' && json.id2label ? Object.keys(json.id2label).length : undefined
  const count = json.num_labels ?? labels ?? 1
  if (count === 1 || json.architectures === undefined || !isClassifier(json.architectures)) return
  throw new CaravanError('ERR_MODEL', `${directory}: a reward model has one label; config.json has ${String(count)}`, {
    details: { file: directory, labels: count },
    hint: 'a classifier with several labels cannot score answers',
  })
}

const isClassifier = (architectures: unknown): boolean => /ForSequenceClassification/.test(String(architectures))
