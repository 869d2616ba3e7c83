// Adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors. Both must agree tensor for tensor:
// one that nobody reads, or one that is missing, would be another adapter than the one that was trained.
import { join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { makeFolder } from '../base/make_folder.js'
import { sameShape, shapeText } from '../base/shape.js'
import { fileError, type WrittenFile, writeFileAtomic } from '../data/atomic_file.js'
import { type CheckpointShards, openCheckpointShards } from '../data/checkpoint_shards.js'
import { type TensorSource, writeSafetensors } from '../data/safetensors_writer.js'
import type { Lora, LoraAdapter } from '../nn/lora.js'
import type { Device } from '../runtime/index.js'
import { keep, Tensor } from '../tensor/index.js'
import {
  type AdaptableModel,
  adapterParameters,
  attach,
  headName,
  isNamed,
  lastPart,
  linearLayers,
  matrixName,
  removeAdapter,
  trainAdapter,
  trainedHeads,
} from './adapter.js'
import { type AdapterConfig, adaptedLayers, readAdapterConfig } from './adapter_config.js'
import type { JsonObject } from './config_reader.js'
import { FILE_DTYPES, readJson } from './load_model.js'

export const ADAPTER_CONFIG = 'adapter_config.json'
const STEM = 'adapter_model'

export interface LoadAdapterOptions {
  /** Whether gradients flow to the adapter; the base is frozen then. Default false. */
  trainable?: boolean
  /** Seed of the dropout masks, where the adapter is trained further. Default 1. */
  seed?: number
}

/** Gives `model` the adapter in `directory`. ERR_MODEL (details: file, key or tensor) for one that does not fit the
 *  model or needs what is not built, ERR_CONFIG where the model has an adapter, ERR_FORMAT for damaged files,
 *  ERR_FILE. */
export async function loadAdapter(
  model: AdaptableModel,
  directory: string,
  { trainable = false, seed = 1 }: LoadAdapterOptions = {},
): Promise<Lora> {
  const json = await readJson(directory, ADAPTER_CONFIG)
  if (!json) {
    throw new CaravanError('ERR_MODEL', `${directory}: ${ADAPTER_CONFIG} is not there`, {
      details: { file: join(directory, ADAPTER_CONFIG) },
      hint: 'give the folder of an adapter in PEFT format',
    })
  }
  const config = readAdapterConfig(join(directory, ADAPTER_CONFIG), json)
  const shards = await openCheckpointShards(directory, { stem: STEM })
  const layers = linearLayers(model)
  const sizes = adaptedLayers(config, [...layers.keys()])
  if (sizes.size === 0) throw matchesNothing(config, json, [...layers.keys()])
  const reader = new AdapterReader(model.device, directory, shards)
  const lora = attach(model, { dropout: config.dropout, seed })
  try {
    for (const [name, { rank, alpha }] of sizes) {
      const linear = layers.get(name)!
      const [outputs, inputs] = linear.weight.shape as [number, number]
      const a = reader.matrix(matrixName(name, 'a'), [rank, inputs])
      const b = reader.matrix(matrixName(name, 'b'), [outputs, rank])
      const magnitude = config.decomposed ? reader.matrix(matrixName(name, 'magnitude'), [outputs]) : undefined
      linear.adapter = lora.add(name, magnitude ? { a, b, magnitude } : { a, b }, {
        alpha,
        rankStabilised: config.rankStabilised,
      })
    }
    const heads = headsOf(model, config, shards)
    for (const [name, { shape }] of heads) reader.expect(headName(name), shape)
    reader.finish()
    // Only now, as a head is overwritten.
    for (const [name, tensor] of heads) reader.load(headName(name), tensor)
    await model.device.idle()
  } catch (error) {
    removeAdapter(model)
    reader.dispose()
    throw error
  }
  if (trainable) trainAdapter(model)
  return lora
}

function matchesNothing({ path }: AdapterConfig, json: JsonObject, names: readonly string[]): CaravanError {
  const known = [...new Set(names.map(lastPart))].join(', ')
  const given = JSON.stringify(json.target_modules)
  return new CaravanError('ERR_MODEL', `${path}: target_modules must name linear layers of the blocks; got ${given}`, {
    details: { file: path, key: 'target_modules', received: json.target_modules },
    hint: `the model has ${known}; adapters of the embedding and the output head are not read`,
  })
}

/** The parameters of the heads that the file holds whole. PEFT also lists names under which it would look for a head;
 *  one without a tensor means nothing. */
function headsOf(model: AdaptableModel, { path, heads }: AdapterConfig, shards: CheckpointShards): Map<string, Tensor> {
  const known = trainedHeads(model)
  const moduleOf = (parameter: string) => parameter.slice(0, parameter.lastIndexOf('.'))
  const names = [...known.keys()].map(moduleOf)
  const stored = heads.filter((head) =>
    [...shards.tensors.keys()].some((name) => name.startsWith(headName(`${head}.`))),
  )
  const unknown = stored.find((head) => !names.includes(head))
  if (unknown !== undefined) {
    const rule = names.length > 0 ? `among ${names.join(', ')}` : 'empty, as this model has no head of its own'
    throw new CaravanError('ERR_MODEL', `${path}: modules_to_save must be ${rule}; got "${unknown}"`, {
      details: { file: path, key: 'modules_to_save', received: unknown },
      hint: 'embeddings and the output head cannot be replaced by an adapter: merge it with peft',
    })
  }
  return new Map([...known].filter(([name]) => stored.includes(moduleOf(name))))
}

/** Reads tensors out of an adapter's file into device memory, and says what is missing or left over. */
class AdapterReader {
  readonly #made: Tensor[] = []
  readonly #asked = new Set<string>()
  readonly #missing: string[] = []

  constructor(
    private readonly device: Device,
    private readonly directory: string,
    private readonly shards: CheckpointShards,
  ) {}

  /** A new f32 tensor with the values of `name`; without any where the file lacks it. */
  matrix(name: string, shape: readonly number[]): Tensor {
    const isThere = this.expect(name, shape)
    const tensor = keep(Tensor.empty(this.device, 'f32', isThere ? shape : [0]))
    this.#made.push(tensor)
    if (isThere) this.load(name, tensor)
    return tensor
  }

  /** Whether the file has `name`, which must be of this shape then. */
  expect(name: string, shape: readonly number[]): boolean {
    this.#asked.add(name)
    const entry = this.shards.tensors.get(name)
    if (!entry) {
      this.#missing.push(name)
      return false
    }
    const dtypes = Object.keys(FILE_DTYPES)
    const isShape = sameShape(entry.shape, shape)
    if (isShape && entry.dtype in FILE_DTYPES) return true
    const rule = isShape ? dtypes.join(', ') : `${shapeText(shape)}, by the rank in ${ADAPTER_CONFIG} and the model`
    const got = isShape ? entry.dtype : shapeText(entry.shape)
    throw new CaravanError(
      'ERR_MODEL',
      `${entry.path}: byte ${entry.byteOffset}: tensor "${name}" must be ${rule}; got ${got}`,
      {
        details: { file: entry.path, offset: entry.byteOffset, tensor: name, expected: shape, shape: entry.shape },
        hint: 'the adapter belongs to another base model, or its two files do not belong together',
      },
    )
  }

  /** Reads `name`, which was expected, into `tensor`. */
  load(name: string, tensor: Tensor): void {
    const { path, byteOffset, dtype } = this.shards.tensors.get(name)!
    this.device.loadFile(tensor.id, { path, byteOffset, dtype: FILE_DTYPES[dtype]! })
  }

  /** ERR_MODEL unless the file holds exactly what was asked for. */
  finish(): void {
    const { tensors } = this.shards
    const unused = [...tensors.keys()].filter((name) => !this.#asked.has(name))
    if (this.#missing.length === 0 && unused.length === 0) return
    const [first, what] =
      this.#missing.length > 0 ? [this.#missing, 'lacks'] : [unused, 'has, and the model does not use,']
    const count = `${first.length} of ${this.#missing.length > 0 ? this.#asked.size : tensors.size} tensors`
    throw new CaravanError(
      'ERR_MODEL',
      `${this.directory}: the adapter ${what} ${count}: ${first.slice(0, 3).join(', ')}`,
      {
        details: { file: this.directory, missing: this.#missing, unused },
        hint: `target_modules of ${ADAPTER_CONFIG} and the tensors must name the same layers, and the model must have them`,
      },
    )
  }

  /** Frees everything given out that nobody has freed. */
  dispose(): void {
    for (const tensor of this.#made) tensor.dispose()
  }
}

export interface SaveAdapterOptions {
  /** Folder or name of the base, for the reader; default unknown. */
  baseModel?: string
}

/** Writes the model's adapter into `directory` (made if absent), so that PEFT reads it. ERR_CONFIG where the model has
 *  none, ERR_FILE when the system refuses. Returns the files written. */
export async function saveAdapter(
  model: AdaptableModel,
  directory: string,
  { baseModel }: SaveAdapterOptions = {},
): Promise<WrittenFile[]> {
  if (!model.decoder.lora) throw new CaravanError('ERR_CONFIG', 'the model has no adapter to save')
  await makeFolder(directory).catch((error) => {
    throw fileError('create folder', directory, error)
  })
  const tensors = [...adapterParameters(model)].map(([name, tensor]) => sourceOf(name, tensor))
  const weights = await writeSafetensors(join(directory, `${STEM}.safetensors`), tensors)
  // Last: a folder with a configuration is one that has everything.
  const json = `${JSON.stringify(configOf(model, model.decoder.lora, baseModel), null, 2)}\n`
  return [weights, await writeFileAtomic(join(directory, ADAPTER_CONFIG), json)]
}

function sourceOf(name: string, tensor: Tensor): TensorSource {
  return {
    name,
    dtype: tensor.dtype === 'bf16' ? 'BF16' : 'F32',
    shape: tensor.shape,
    async bytes() {
      const { buffer, byteOffset, byteLength } = await tensor.readRaw()
      return new Uint8Array(buffer, byteOffset, byteLength)
    },
  }
}

/** The adapter_config.json that describes `lora`; keys in the order of the alphabet, as PEFT writes them. */
function configOf(model: AdaptableModel, { layers, masks }: Lora, baseModel: string | undefined): JsonObject {
  const names = [...layers.keys()]
  const parts = [...new Set(names.map(lastPart))].sort()
  const isWhole = [...linearLayers(model).keys()].filter((name) => isNamed(name, parts)).length === names.length
  const { rank, scaling, matrices } = layers.values().next().value as LoraAdapter
  const heads = [...new Set([...trainedHeads(model).keys()].map((name) => name.slice(0, name.lastIndexOf('.'))))]
  return {
    alpha_pattern: exceptions(layers, scaling.alpha, (adapter) => adapter.scaling.alpha),
    auto_mapping: null,
    base_model_name_or_path: baseModel ?? null,
    bias: 'none',
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: true,
    layers_pattern: null,
    layers_to_transform: null,
    lora_alpha: scaling.alpha,
    lora_dropout: masks?.rate ?? 0,
    modules_to_save: heads.length > 0 ? heads : null,
    peft_type: 'LORA',
    r: rank,
    rank_pattern: exceptions(layers, rank, (adapter) => adapter.rank),
    revision: null,
    target_modules: isWhole ? parts : names,
    task_type: heads.length > 0 ? 'SEQ_CLS' : 'CAUSAL_LM',
    use_dora: matrices.magnitude !== undefined,
    use_rslora: scaling.rankStabilised,
  }
}

/** Values of the layers that differ from the `usual` one, by name. */
function exceptions(
  layers: ReadonlyMap<string, LoraAdapter>,
  usual: number,
  numberOf: (adapter: LoraAdapter) => number,
): JsonObject {
  return Object.fromEntries(
    [...layers].flatMap(([name, adapter]) => (numberOf(adapter) === usual ? [] : [[name, numberOf(adapter)]])),
  )
}
