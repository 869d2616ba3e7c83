// Loads a Hugging Face folder: configuration checked first, then every tensor the model needs is found in the headers
// of the safetensors files and read straight into device memory, with conversion of the element type on the way.
import { join } from 'node:path'
import type { DType } from '../base/dtype.js'
import { CaravanError } from '../base/errors.js'
import { sameShape, shapeText } from '../base/shape.js'
import { type CheckpointShards, openCheckpointShards, type ShardTensor } from '../data/checkpoint_shards.js'
import { exists, pathInside } from '../data/folder.js'
import { openRegularFile, readExactly } from '../data/regular_file.js'
import type { SafetensorsDtype } from '../data/safetensors.js'
import type { ParameterPlace } from '../nn/module.js'
import { affine, broadcastTo, iota, scatterRows, sum } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep, rowsOf, scope, Tensor } from '../tensor/index.js'
import { CausalLm } from './causal_lm.js'
import { ConfigReader, isJsonObject, type JsonObject } from './config_reader.js'
import type { DecoderConfig } from './decoder_config.js'
import type { Family } from './family.js'
import { huggingFaceName, isHarmlessExtra } from './parameter_names.js'
import { readConfig, type Task } from './registry.js'

export interface LoadModelOptions {
  /** Element type in memory; default bf16 for a bf16 checkpoint, else f32. */
  dtype?: 'f32' | 'bf16'
  /** Whether gradients flow to the parameters; default false. */
  trainable?: boolean
  /** Rows of the vocabulary, at least those of the checkpoint. New rows are the mean of the old ones, so that a new
   *  token starts out as likely as an average one (transformers' `mean_resizing` without its 1e-9 noise). */
  vocabularyRows?: number
}

/** Reads a model folder onto `device`. ERR_MODEL for a configuration or a set of tensors that does not fit, ERR_FORMAT
 *  for damaged files, ERR_FILE, ERR_OOM. */
export async function loadModel(device: Device, directory: string, options: LoadModelOptions = {}): Promise<CausalLm> {
  const folder = await openModelFolder(directory, 'CausalLM')
  const rows = checkedRows(folder, options.vocabularyRows)
  const config = { ...folder.config, V: rows }
  const loader = new ParameterLoader(device, folder, {
    dtype: options.dtype ?? (config.dtype === 'bf16' ? 'bf16' : 'f32'),
    vocabularyRows: rows,
  })
  let model: CausalLm | undefined
  try {
    model = new CausalLm(loader.source, config, {
      configJson: folder.configJson,
      generationConfigJson: await readJson(directory, 'generation_config.json'),
      warnings: loader.warnings,
    })
    loader.finish()
    model.setTrainable(options.trainable ?? false)
    await device.idle()
    return model
  } catch (error) {
    if (model) model.dispose()
    else loader.dispose()
    throw error
  }
}

/** A model folder whose configuration has been read and whose safetensors headers have been checked. */
export interface ModelFolder {
  directory: string
  config: DecoderConfig
  family: Family
  configJson: JsonObject
  shards: CheckpointShards
}

/** Reads configuration and headers of a model folder; no weights yet. */
export async function openModelFolder(directory: string, task: Task): Promise<ModelFolder> {
  const { config, family, configJson } = await readModelConfig(directory, task)
  return { directory, config, family, configJson, shards: await openCheckpointShards(directory) }
}

/** Reads config.json of a model folder. ERR_MODEL when it is missing or does not describe a model for `task`. */
export async function readModelConfig(
  directory: string,
  task: Task = 'CausalLM',
): Promise<{ config: DecoderConfig; family: Family; configJson: JsonObject }> {
  const configJson = await readJson(directory, 'config.json')
  if (!configJson) {
    throw new CaravanError('ERR_MODEL', `${directory}: config.json is not there`, {
      details: { file: join(directory, 'config.json') },
      hint: (await exists(join(directory, 'adapter_config.json')))
        ? 'this is the folder of an adapter: merge it with its base by `caravan merge-lora` and give the result'
        : 'give the folder of a model in Hugging Face format',
    })
  }
  return { ...readConfig(new ConfigReader(join(directory, 'config.json'), configJson), task), configJson }
}

const MAX_JSON_BYTES = 10_000_000

/** The object in a JSON file of the folder, or undefined when there is no such file. */
export async function readJson(directory: string, name: string): Promise<JsonObject | undefined> {
  const path = await pathInside(directory, name, directory)
  if (!(await exists(path))) return undefined
  const { handle, size } = await openRegularFile(path)
  const fault = (offset: number, why: string, cause?: unknown) =>
    new CaravanError('ERR_FORMAT', `${path}: byte ${offset}: ${why}`, { details: { file: path, offset }, cause })
  try {
    if (size > MAX_JSON_BYTES) throw fault(0, `must be at most ${MAX_JSON_BYTES} bytes; got ${size}`)
    const text = (await readExactly(handle, path, { at: 0, length: size })).toString('utf8')
    const json = parseJson(text, fault)
    if (isJsonObject(json)) return json
    throw fault(0, 'must be a JSON object')
  } finally {
    await handle.close()
  }
}

function parseJson(text: string, fault: (offset: number, why: string, cause?: unknown) => CaravanError): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    const why = (cause as Error).message
    const position = /at position (\d+)/.exec(why)?.[1]
    const characters = position === undefined ? text.length : Number(position)
    throw fault(Buffer.byteLength(text.slice(0, characters)), `not valid JSON: ${why}`, cause)
  }
}

/** Element types that weights may have in a file. */
export const FILE_DTYPES: { [name in SafetensorsDtype]?: DType } = { F32: 'f32', BF16: 'bf16', F16: 'f16', F64: 'f64' }

/** Gives a model its parameters out of an open folder, and afterwards says what was missing or left over. */
export class ParameterLoader {
  readonly warnings: string[]
  readonly #made: Tensor[] = []
  readonly #asked = new Set<string>()
  readonly #missing: string[] = []

  constructor(
    private readonly device: Device,
    private readonly folder: ModelFolder,
    private readonly options: { dtype: DType; vocabularyRows: number },
  ) {
    const { unlisted, wrongTotalBytes, directory } = folder.shards
    this.warnings = unlisted.map((name) => `${directory}: tensor "${name}" is in a shard but not in the index`)
    if (wrongTotalBytes !== undefined) this.warnings.push(`${directory}: total_size of the index is wrong`)
  }

  /** The ParameterSource of the model. */
  readonly source = (place: ParameterPlace): Tensor => {
    const name = huggingFaceName(place.name, this.folder.family.blockNorms)
    this.#asked.add(name)
    const entry = this.folder.shards.tensors.get(name)
    if (!entry) this.#missing.push(name)
    const stored = entry && { entry, ...this.#check(name, entry, place) }
    // Memory is taken only for what lies in a file: sizes that config.json alone claims may be anything.
    const tensor = keep(Tensor.empty(this.device, this.options.dtype, stored ? place.shape : [0]))
    this.#made.push(tensor)
    if (stored) this.#fill(tensor, stored)
    return tensor
  }

  /** ERR_MODEL when a parameter was not in the files; parameters of no use become warnings, unless they are `spare`. */
  finish(spare: readonly string[] = []): void {
    const { directory, shards, config } = this.folder
    const unused = [...shards.tensors.keys()].filter(
      (name) => !this.#asked.has(name) && !isHarmlessExtra(name, config.tiedHead) && !spare.includes(name),
    )
    if (this.#missing.length > 0) {
      const counts = `${this.#missing.length} of ${this.#asked.size} tensors`
      const why = `the checkpoint lacks ${counts}: ${firstFew(this.#missing)}`
      throw new CaravanError('ERR_MODEL', `${directory}: ${why}`, {
        details: { file: directory, missing: this.#missing, unused },
        hint:
          unused.length > 0
            ? `it has others that the model does not use: ${firstFew(unused)}; does config.json belong to it?`
            : 'the checkpoint is incomplete: copy or download it again',
      })
    }
    if (unused.length > 0) this.warnings.push(`${directory}: ${unused.length} unused tensors: ${firstFew(unused)}`)
  }

  /** Frees everything given out; for a model whose construction failed. */
  dispose(): void {
    for (const tensor of this.#made) tensor.dispose()
  }

  /** Element type and rows of a stored tensor. ERR_MODEL unless it has the shape that config.json asks for. */
  #check(name: string, entry: ShardTensor, place: ParameterPlace): { dtype: DType; rows: number } {
    const inVocabulary = place.role === 'embedding' || place.role === 'head'
    const wanted = inVocabulary ? [this.folder.config.V, ...place.shape.slice(1)] : place.shape
    const dtype = FILE_DTYPES[entry.dtype]
    const where = `${entry.path}: byte ${entry.byteOffset}`
    const fault = (rule: string, received: string) =>
      new CaravanError(
        'ERR_MODEL',
        `${where}: tensor "${name}" must be ${rule} for this config.json; got ${received}`,
        { details: { file: entry.path, offset: entry.byteOffset, tensor: name, expected: wanted, shape: entry.shape } },
      )
    if (!sameShape(entry.shape, wanted)) throw fault(shapeText(wanted), shapeText(entry.shape))
    if (!dtype) throw fault(Object.keys(FILE_DTYPES).join(', '), entry.dtype)
    return { dtype, rows: wanted[0]! }
  }

  #fill(tensor: Tensor, { entry, dtype, rows }: { entry: ShardTensor; dtype: DType; rows: number }): void {
    const { path, byteOffset } = entry
    if (rows === tensor.shape[0]) {
      this.device.loadFile(tensor.id, { path, byteOffset, dtype })
      return
    }
    scope(() => {
      const old = rowsOf(tensor, 0, rows)
      this.device.loadFile(old.id, { path, byteOffset, dtype })
      appendMeanRows(tensor, old)
    })
  }
}

/** Fills the rows of `table` after those of `old`, its first ones, with their mean. */
function appendMeanRows(table: Tensor, old: Tensor): void {
  const [oldRows, D] = old.shape as [number, number]
  const added = table.shape[0]! - oldRows
  const mean = affine(sum(old, 0), 1 / oldRows, 0)
  const index = iota(table.device, added, { start: oldRows, dtype: 'i32' })
  scatterRows(table, broadcastTo(mean, [added, D]), index)
}

function checkedRows({ config, directory }: ModelFolder, wanted = config.V): number {
  if (Number.isSafeInteger(wanted) && wanted >= config.V) return wanted
  const rule = `an integer >= vocab_size ${config.V} of ${directory}`
  throw new CaravanError('ERR_CONFIG', `vocabularyRows must be ${rule}; got ${wanted}`)
}

function firstFew(names: readonly string[]): string {
  const shown = names.slice(0, 5).join(', ')
  return names.length > 5 ? `${shown}, and ${names.length - 5} more` : shown
}
