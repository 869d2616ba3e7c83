// adapter_config.json of PEFT (read against peft 0.21). Whatever would change the mathematics in a way that is not
// built here is refused by name, also under a key that is not known yet: an adapter that loads and computes something
// else is worse than one that does not load.
import { runInNewContext } from 'node:vm'
import { CaravanError } from '../base/errors.js'
import { isNamed } from './adapter.js'
import { ConfigReader, isJsonObject, type JsonObject } from './config_reader.js'

/** Names of modules as PEFT gives them: parts at the end of a name, or a regular expression for the whole of it. */
export type ModuleNames = readonly string[] | string

export interface AdapterConfig {
  path: string
  rank: number
  alpha: number
  rankStabilised: boolean
  /** DoRA. */
  decomposed: boolean
  dropout: number
  targets: ModuleNames
  excluded: ModuleNames
  /** Layers of the decoder that the targets are in; undefined = all. */
  layers: readonly number[] | undefined
  /** Exceptions by pattern, first match first. */
  ranks: ReadonlyMap<string, number>
  alphas: ReadonlyMap<string, number>
  /** Heads that are stored whole. */
  heads: readonly string[]
}

/** Keys that say nothing about what the adapter computes, or that are read below. */
const KNOWN = new Set([
  ...['peft_type', 'r', 'lora_alpha', 'use_rslora', 'use_dora', 'lora_dropout', 'target_modules', 'exclude_modules'],
  ...['layers_to_transform', 'layers_pattern', 'rank_pattern', 'alpha_pattern', 'modules_to_save', 'init_lora_weights'],
  ...['bias', 'task_type', 'auto_mapping', 'base_model_name_or_path', 'revision', 'inference_mode', 'peft_version'],
  ...['megatron_core', 'qalora_group_size', 'runtime_config', 'eva_config', 'ensure_weight_tying'],
])

/** Ways to initialise an adapter that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, ...) take
 *  something away from its weights, which a plain base then still has. */
const HARMLESS_INITIALISATIONS: readonly unknown[] = [true, false, 'gaussian', 'eva', 'orthogonal']

/** Reads an adapter's configuration. ERR_MODEL names file and key of what is missing, mistyped or not supported. */
export function readAdapterConfig(path: string, json: JsonObject): AdapterConfig {
  const reader = new ConfigReader(path, json)
  refuseOthers(reader)
  if (reader.string('peft_type') !== 'LORA') throw reader.fault('peft_type', '"LORA"', 'other adapters are not read')
  const bias = reader.string('bias', 'none')
  if (bias !== 'none') throw reader.fault('bias', '"none"', 'adapters that train biases are not read')
  if (!HARMLESS_INITIALISATIONS.includes(json.init_lora_weights ?? true)) {
    const rule = 'one that leaves the base as it is: true, false, gaussian, eva, orthogonal'
    const hint = 'save it again with path_initial_model_for_weight_conversion of peft, which makes a plain adapter'
    throw reader.fault('init_lora_weights', rule, hint)
  }
  const targets = moduleNames(reader, 'target_modules')
  if (targets.length === 0) throw reader.fault('target_modules', 'a list of names or a regular expression')
  return {
    path,
    rank: reader.integer('r', { maximum: 1_000_000 }),
    alpha: reader.positive('lora_alpha'),
    rankStabilised: reader.boolean('use_rslora', false),
    decomposed: reader.boolean('use_dora', false),
    dropout: readDropout(reader),
    targets,
    excluded: moduleNames(reader, 'exclude_modules'),
    layers: readLayers(reader),
    ranks: numbersByPattern(reader, 'rank_pattern', (value) => Number.isSafeInteger(value) && value > 0),
    alphas: numbersByPattern(reader, 'alpha_pattern', (value) => Number.isFinite(value) && value > 0),
    heads: reader.strings('modules_to_save'),
  }
}

/** Values that mean "not used" for a key that is not known. */
function isInert(value: unknown): boolean {
  if (value === null || value === undefined || value === false) return true
  return Array.isArray(value) ? value.length === 0 : isJsonObject(value) && Object.keys(value).length === 0
}

function refuseOthers(reader: ConfigReader): void {
  for (const [key, value] of Object.entries(reader.json)) {
    if (KNOWN.has(key) || isInert(value)) continue
    const hint = 'it changes what the adapter computes: merge it with peft (merge_and_unload) and load the merged model'
    throw reader.fault(key, 'absent, null or false: this version does not have it', hint)
  }
}

function readDropout(reader: ConfigReader): number {
  const value = reader.has('lora_dropout') ? reader.json.lora_dropout : 0
  if (typeof value === 'number' && value >= 0 && value < 1) return value
  throw reader.fault('lora_dropout', 'a number from 0 to below 1')
}

function moduleNames(reader: ConfigReader, key: string): ModuleNames {
  return typeof reader.json[key] === 'string' ? reader.string(key) : reader.strings(key)
}

function readLayers(reader: ConfigReader): readonly number[] | undefined {
  const key = 'layers_to_transform'
  const pattern = reader.json.layers_pattern
  const isOurs = isInert(pattern) || pattern === '' || [pattern].flat().every((part) => part === 'layers')
  if (!isOurs) throw reader.fault('layers_pattern', '"layers", as the layers of these models are called')
  if (!reader.has(key)) return undefined
  const given = [reader.json[key]].flat()
  const isLayer = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0
  if (!given.every(isLayer)) throw reader.fault(key, 'the number of a layer or a list of them')
  return given.length > 0 ? given : undefined
}

function numbersByPattern(reader: ConfigReader, key: string, fits: (value: number) => boolean): Map<string, number> {
  const table = new Map<string, number>()
  for (const [pattern, value] of Object.entries(reader.object(key)?.json ?? {})) {
    if (typeof value !== 'number' || !fits(value)) throw reader.fault(key, 'an object with numbers > 0')
    table.set(pattern, value)
  }
  return table
}

/** Rank and alpha of one layer. */
export interface LayerSizes {
  rank: number
  alpha: number
}

/** The layers among `names` that `config` adapts, with their sizes. ERR_MODEL for a regular expression that is not one
 *  or takes too long. */
export function adaptedLayers(config: AdapterConfig, names: readonly string[]): Map<string, LayerSizes> {
  const isTarget = matcher(config, { key: 'target_modules', given: config.targets, names })
  const isExcluded = matcher(config, { key: 'exclude_modules', given: config.excluded, names })
  // PEFT looks at the numbers of layers only where the targets are a list.
  const layers = typeof config.targets === 'string' ? undefined : config.layers
  const chosen = names.filter(
    (name) => isTarget(name) && !isExcluded(name) && (!layers || layers.includes(layerNumber(name))),
  )
  const rankOf = byPattern(config, { key: 'rank_pattern', table: config.ranks, names: chosen })
  const alphaOf = byPattern(config, { key: 'alpha_pattern', table: config.alphas, names: chosen })
  const { rank, alpha } = config
  return new Map(chosen.map((name) => [name, { rank: rankOf(name) ?? rank, alpha: alphaOf(name) ?? alpha }]))
}

const layerNumber = (name: string): number => Number(/\.layers\.(\d+)\./.exec(name)?.[1])

interface Names {
  key: string
  names: readonly string[]
}

function matcher(
  config: AdapterConfig,
  { key, given, names }: Names & { given: ModuleNames },
): (name: string) => boolean {
  if (typeof given !== 'string') return (name) => isNamed(name, given)
  if (given === 'all-linear') return () => true
  const matched = matchingNames(config, { key, pattern: `^(?:${given})$`, names })
  return (name) => matched.has(name)
}

/** The value of the first pattern of `table` that matches a name or its last parts. */
function byPattern(
  config: AdapterConfig,
  { key, table, names }: Names & { table: ReadonlyMap<string, number> },
): (name: string) => number | undefined {
  const values = new Map<string, number>()
  for (const [pattern, value] of table) {
    for (const name of matchingNames(config, { key, pattern: `^(?:.*\\.)?(?:${pattern})$`, names })) {
      if (!values.has(name)) values.set(name, value)
    }
  }
  return (name) => values.get(name)
}

const MATCHING_MS = 200

/** The names that a regular expression of the file matches. It runs with a time limit, as a file may hold one that
 *  would never end. */
function matchingNames({ path }: AdapterConfig, { key, pattern, names }: Names & { pattern: string }): Set<string> {
  // Python writes named groups otherwise; the rest that such patterns use is the same in both languages.
  const given = { pattern: pattern.replaceAll('(?P<', '(?<'), names: [...names] }
  try {
    const code = 'const expression = new RegExp(pattern); names.filter((name) => expression.test(name))'
    return new Set(runInNewContext(code, given, { timeout: MATCHING_MS }) as string[])
  } catch (cause) {
    const why = (cause as Error).message
    throw new CaravanError(
      'ERR_MODEL',
      `${path}: ${key} must be a regular expression that can be run; got ${pattern}`,
      {
        details: { file: path, key, pattern, reason: why },
        hint: 'write the names of the modules as a list',
        cause,
      },
    )
  }
}
