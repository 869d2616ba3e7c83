// Saves a model as a Hugging Face folder that transformers loads unchanged. Files are atomic one by one; a caller who
// needs the folder to be atomic saves into a new one and renames it.
import { readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { CaravanError } from '../base/errors.js'
import { bf16ToF32, f32ToBf16, f32ToF16 } from '../base/half.js'
import { makeFolder } from '../base/make_folder.js'
import { fileError, type WrittenFile, writeFileAtomic } from '../data/atomic_file.js'
import type { SafetensorsDtype } from '../data/safetensors.js'
import { type TensorSource, writeSafetensorsShards } from '../data/safetensors_writer.js'
import type { Tensor } from '../tensor/index.js'
import type { CausalLm } from './causal_lm.js'
import { ConfigReader, type JsonObject } from './config_reader.js'
import type { DecoderConfig, StoredDtype } from './decoder_config.js'
import { architectureName, familyNamed, type Task } from './registry.js'
import type { RewardModel } from './reward_model.js'

export interface SaveModelOptions {
  /** Element type on disk; default that in memory. */
  dtype?: StoredDtype
  /** Upper limit of a file's tensor data; default 5 GB as Hugging Face. */
  shardBytes?: number
  /** Files to copy beside the weights: tokenizer.json, tokenizer_config.json, chat_template.jinja, ... */
  tokenizerFiles?: readonly string[]
  /** generation_config.json; default what the model was loaded with, else its token ids. */
  generationConfig?: JsonObject
}

/** Writes `model` into `directory` (made if absent). ERR_MODEL when its family cannot express the configuration,
 *  ERR_FILE when the system refuses. Returns the files written. */
export async function saveModel(
  model: CausalLm | RewardModel,
  directory: string,
  options: SaveModelOptions = {},
): Promise<WrittenFile[]> {
  const dtype = options.dtype ?? (model.dtype as StoredDtype)
  const configJson = configJsonOf({ ...model.config, dtype }, model.origin?.configJson, model.task)
  try {
    await makeFolder(directory)
  } catch (error) {
    throw fileError('create folder', directory, error)
  }
  const tensors = [...model.parameters()].map(([name, tensor]) => sourceOf(name, tensor, dtype))
  const written = await writeSafetensorsShards(directory, tensors, { maxShardBytes: options.shardBytes })
  for (const path of options.tokenizerFiles ?? []) {
    const content = await readFile(path).catch((error) => {
      throw fileError('read', path, error)
    })
    written.push(await writeFileAtomic(join(directory, basename(path)), content))
  }
  if (model.task === 'CausalLM') {
    const given = options.generationConfig ?? model.origin?.generationConfigJson
    const text = configText(given ?? generationConfigOf(model.config))
    written.push(await writeFileAtomic(join(directory, 'generation_config.json'), text))
  }
  // Last: a folder with a config.json is one that has everything.
  written.push(await writeFileAtomic(join(directory, 'config.json'), configText(configJson)))
  return written
}

/** config.json for `config`. Keys of `original` that are not ours stay. ERR_MODEL when the family has no key for
 *  something that `config` asks for. */
export function configJsonOf(config: DecoderConfig, original: JsonObject = {}, task: Task = 'CausalLM'): JsonObject {
  const family = familyNamed(config.family)
  const ours = family.write(config)
  const again = family.read(new ConfigReader('config.json', ours))
  for (const [key, value] of Object.entries(config)) {
    const read = again[key as keyof DecoderConfig]
    if (isDeepStrictEqual(read, value)) continue
    const [asked, gets] = [JSON.stringify(value), JSON.stringify(read)]
    throw new CaravanError('ERR_MODEL', `a ${family.name} model cannot have ${key} = ${asked}; it would be ${gets}`, {
      details: { family: family.name, key, value },
      hint: 'choose a family whose config.json can say this',
    })
  }
  const json = { ...original, ...ours, architectures: [architectureName(family, task)], model_type: family.name }
  return task === 'CausalLM' ? json : { ...json, ...oneLabel }
}

/** What tells transformers that a classifier has a single output: num_labels is the size of id2label. */
const oneLabel: JsonObject = { id2label: { 0: 'LABEL_0' }, label2id: { LABEL_0: 0 } }

function generationConfigOf({ bosId, eosIds, padId }: DecoderConfig): JsonObject {
  const json: JsonObject = {}
  if (bosId !== undefined) json.bos_token_id = bosId
  if (eosIds.length > 0) json.eos_token_id = eosIds.length > 1 ? eosIds : eosIds[0]
  if (padId !== undefined) json.pad_token_id = padId
  return json
}

/** Keys whose whole values transformers wants as floats: `8.0`, which JSON.stringify would write as `8`. */
const floatNames = [
  'attention_dropout',
  'clip_qkv',
  'factor',
  'high_freq_factor',
  'initializer_range',
  'low_freq_factor',
  'rms_norm_eps',
  'rope_theta',
]
const wholeFloats = new RegExp(`^(\\s*"(?:${floatNames.join('|')})": -?\\d+)(,?)$`, 'gm')

/** JSON as transformers writes it: two spaces, sorted keys, a final newline. */
function configText(json: JsonObject): string {
  const sorted = Object.fromEntries(Object.entries(json).sort(([a], [b]) => (a < b ? -1 : 1)))
  return `${JSON.stringify(sorted, null, 2)}\n`.replace(wholeFloats, '$1.0$2')
}

const fileDtypes: Record<StoredDtype, SafetensorsDtype> = { f32: 'F32', bf16: 'BF16', f16: 'F16' }

function sourceOf(name: string, tensor: Tensor, dtype: StoredDtype): TensorSource {
  return {
    name,
    dtype: fileDtypes[dtype],
    shape: tensor.shape,
    bytes: async () => bytesOf(convert(await tensor.readRaw(), dtype)),
  }
}

function convert(values: ArrayBufferView, dtype: StoredDtype): Float32Array | Uint16Array {
  if (values instanceof Uint16Array) {
    if (dtype === 'bf16') return values
    const wide = bf16ToF32(values)
    return dtype === 'f32' ? wide : f32ToF16(wide)
  }
  if (!(values instanceof Float32Array)) throw new CaravanError('ERR_DTYPE', 'only f32 and bf16 weights can be saved')
  if (dtype === 'f32') return values
  return dtype === 'bf16' ? f32ToBf16(values) : f32ToF16(values)
}

function bytesOf(values: Float32Array | Uint16Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
}
