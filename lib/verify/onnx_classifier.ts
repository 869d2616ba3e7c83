// A classifier as a reward: an ONNX graph in a folder as Hugging Face exports it, run on the CPU beside training. The
// graph alone decides what a score means; which number of its output that is must be said where there is a choice.
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CaravanError, nearestName, throwIfAborted } from '../base/errors.js'
import { Tokenizer } from '../text/tokenizer.js'
import { joinRow, type RowTemplate, rowTemplate, type TokenRow } from './onnx_classifier_pair.js'
import { type OnnxOutput, OnnxProcess, type OnnxSignature } from './onnx_classifier_process.js'

export interface OnnxClassifierOptions {
  /** The graph, from the folder on. Default: model.onnx, else onnx/model.onnx. */
  file?: string
  /** Which output is the score: index, or name in `id2label` of config.json. Needed where there are several. */
  label?: number | string
  /** What is made of the logits. Default: nothing of a single one, softmax of several. */
  activation?: 'none' | 'sigmoid' | 'softmax'
  /** Longest row; the prompt loses its beginning. Default: model_max_length of tokenizer_config.json, else 512. */
  maxTokens?: number
  /** Tokens of a batch, padding included. Default 4096. */
  batchTokens?: number
  /** Threads of the runtime. Default 1: it runs beside training. */
  threads?: number
}

export interface ScoredPair {
  /** Left out where `completion` is the whole text. */
  prompt?: string
  completion: string
}

type Json = Record<string, unknown>

/** More characters than a token has, what a tokenizer drops around it included. */
const UNITS_PER_TOKEN = 1024

const INPUTS = ['input_ids', 'attention_mask', 'token_type_ids', 'position_ids'] as const
type InputName = (typeof INPUTS)[number]

interface Setup {
  process: OnnxProcess
  tokenizer: Tokenizer
  inputs: InputName[]
  output: string
  maxTokens: number
  batchTokens: number
  /** What shorter rows of a batch are filled with. */
  padId: number
}

/** Scores completions with an ONNX graph for text classification. */
export class OnnxClassifier {
  readonly #setup: Setup
  readonly #template: RowTemplate
  #scoreOf: (logits: Float64Array) => number = () => 0

  private constructor(setup: Setup) {
    this.#setup = setup
    this.#template = rowTemplate(setup.tokenizer)
  }

  /**
   * Loads graph and tokenizer of a folder and runs the graph once. ERR_CONFIG for options that do not fit it and where
   * onnxruntime-node is not installed; ERR_MODEL for a graph that is no classifier of text; ERR_TOKENIZER.
   */
  static async load(folder: string, options: OnnxClassifierOptions = {}): Promise<OnnxClassifier> {
    const file = graphFile(folder, options.file)
    const tokenizer = await Tokenizer.load(folder)
    const config = await readJson(join(folder, 'config.json'))
    const maxTokens = count('maxTokens', options.maxTokens ?? modelMaxLength(tokenizer))
    const batchTokens = count('batchTokens', options.batchTokens ?? 4096)
    const process = new OnnxProcess({ file, threads: count('threads', options.threads ?? 1) })
    try {
      const signature = await process.signature
      const { inputs, output } = checkedSignature(file, signature)
      const classifier = new OnnxClassifier({
        ...{ process, tokenizer, inputs, output, maxTokens, batchTokens },
        padId: padOf(config, tokenizer),
      })
      const [probe] = await classifier.#logits([{ prompt: 'a', completion: 'a' }])
      classifier.#scoreOf = scoring(file, probe!.length, labelsOf(config), options)
      return classifier
    } catch (error) {
      await process.dispose()
      throw error
    }
  }

  /** A score a pair, in order. ERR_MODEL where the graph fails or gives no finite number; ERR_ABORTED. */
  async score(pairs: readonly ScoredPair[], signal?: AbortSignal): Promise<number[]> {
    const logits = await this.#logits(pairs, signal)
    return logits.map((row, i) => {
      const score = this.#scoreOf(row)
      if (Number.isFinite(score)) return score
      throw new CaravanError('ERR_MODEL', `the classifier's score of pair ${i} is ${score}`, { details: { pair: i } })
    })
  }

  /** Ends the process that runs the graph. */
  async dispose(): Promise<void> {
    await this.#setup.process.dispose()
  }

  /** The logits of each pair, computed in batches of rows of like length. */
  async #logits(pairs: readonly ScoredPair[], signal?: AbortSignal): Promise<Float64Array[]> {
    throwIfAborted(signal)
    const rows = await this.#rows(pairs, signal)
    const order = rows.map((_, i) => i).sort((a, b) => rows[a]!.ids.length - rows[b]!.ids.length || a - b)
    const logits: Float64Array[] = new Array(rows.length)
    for (let from = 0; from < order.length; ) {
      throwIfAborted(signal)
      const to = batchEnd(order, rows, from, this.#setup.batchTokens)
      const batch = order.slice(from, to)
      const output = await this.#run(batch.map((i) => rows[i]!))
      for (const [at, i] of batch.entries()) logits[i] = output[at]!
      from = to
    }
    return logits
  }

  async #rows(pairs: readonly ScoredPair[], signal: AbortSignal | undefined): Promise<TokenRow[]> {
    const { tokenizer, maxTokens } = this.#setup
    const options = { offsets: false, signal }
    // What lies further from where the texts meet could not be part of the row in any case.
    const longest = Math.min(tokenizer.maximumTextUnits, maxTokens * UNITS_PER_TOKEN)
    const answers = await tokenizer.encodeBatch(
      pairs.map(({ completion }) => completion.slice(0, longest)),
      options,
    )
    const prompts = await tokenizer.encodeBatch(
      pairs.map(({ prompt }) => (prompt ?? '').slice(-longest)),
      options,
    )
    return pairs.map(({ prompt }, i) => {
      const texts = { prompt: prompt === undefined ? undefined : prompts[i]!.ids, answer: answers[i]!.ids }
      return joinRow(this.#template, texts, maxTokens)
    })
  }

  async #run(rows: readonly TokenRow[]): Promise<Float64Array[]> {
    const { process, inputs, output, padId } = this.#setup
    const width = Math.max(1, ...rows.map(({ ids }) => ids.length))
    const values: Record<InputName, Int32Array> = {
      input_ids: new Int32Array(rows.length * width).fill(padId),
      attention_mask: new Int32Array(rows.length * width),
      token_type_ids: new Int32Array(rows.length * width),
      position_ids: new Int32Array(rows.length * width),
    }
    for (const [i, { ids, segments }] of rows.entries()) {
      values.input_ids.set(ids, i * width)
      values.attention_mask.fill(1, i * width, i * width + ids.length)
      values.token_type_ids.set(segments, i * width)
      for (let at = 0; at < ids.length; at++) values.position_ids[i * width + at] = at
    }
    const result = await process.run({
      inputs: Object.fromEntries(inputs.map((name) => [name, values[name]])),
      shape: [rows.length, width],
      output,
    })
    return logitRows(output, result, rows.length)
  }
}

function graphFile(folder: string, file: string | undefined): string {
  const candidates = file === undefined ? ['model.onnx', 'onnx/model.onnx'] : [file]
  const found = candidates.map((name) => join(folder, name)).find((path) => existsSync(path))
  if (found !== undefined) return found
  throw new CaravanError('ERR_MODEL', `${folder}: there is no ${candidates.join(' or ')}`, {
    details: { folder },
    hint: 'optimum-cli export onnx --task text-classification writes such a folder; `file` names another graph',
  })
}

async function readJson(path: string): Promise<Json> {
  if (!existsSync(path)) return {}
  try {
    return JSON.parse(await readFile(path, 'utf8')) as Json
  } catch (cause) {
    throw new CaravanError('ERR_MODEL', `${path}: ${(cause as Error).message}`, { details: { file: path }, cause })
  }
}

/** The configuration's, for graphs find the last token of a row, or its positions, by it. */
function padOf({ pad_token_id: id }: Json, tokenizer: Tokenizer): number {
  return typeof id === 'number' && Number.isInteger(id) && id >= 0 ? id : (tokenizer.padId ?? 0)
}

/** Configurations write an absurdly large number for "no limit". */
function modelMaxLength(tokenizer: Tokenizer): number {
  const text = tokenizer.files.get('tokenizer_config.json')?.toString('utf8') ?? '{}'
  const { model_max_length: length } = JSON.parse(text) as Json
  return typeof length === 'number' && Number.isInteger(length) && length > 0 && length < 1e6 ? length : 512
}

function checkedSignature(file: string, { inputs, outputs }: OnnxSignature): { inputs: InputName[]; output: string } {
  const unknown = inputs.filter((name) => !INPUTS.includes(name as InputName))
  if (unknown.length > 0 || !inputs.includes('input_ids')) {
    const wanted = `input_ids and maybe ${INPUTS.slice(1).join(', ')}`
    throw new CaravanError(
      'ERR_MODEL',
      `${file}: a classifier of text has the inputs ${wanted}; got ${inputs.join(', ')}`,
      {
        details: { file, inputs },
      },
    )
  }
  return { inputs: inputs as InputName[], output: outputs.includes('logits') ? 'logits' : outputs[0]! }
}

/** The names of the labels in order, where the configuration has them. */
function labelsOf({ id2label }: Json): string[] {
  if (typeof id2label !== 'object' || id2label === null) return []
  return Object.entries(id2label)
    .sort(([a], [b]) => Number(a) - Number(b))
    .map(([, name]) => String(name))
}

/** How the score is read from `width` logits. */
function scoring(
  file: string,
  width: number,
  labels: readonly string[],
  { label, activation }: OnnxClassifierOptions,
): (logits: Float64Array) => number {
  const at = width === 1 && label === undefined ? 0 : labelIndex(file, width, labels, label)
  const chosen = activation ?? (width === 1 ? 'none' : 'softmax')
  if (!['none', 'sigmoid', 'softmax'].includes(chosen)) {
    throw new CaravanError('ERR_CONFIG', `activation must be none, sigmoid or softmax; got ${chosen}`)
  }
  if (chosen === 'softmax' && width === 1) {
    throw new CaravanError('ERR_CONFIG', `${file}: the softmax of its only logit is always 1; use sigmoid or none`)
  }
  if (chosen === 'none') return (logits) => logits[at]!
  if (chosen === 'sigmoid') return (logits) => 1 / (1 + Math.exp(-logits[at]!))
  return (logits) => {
    const largest = Math.max(...logits)
    const sum = logits.reduce((total, logit) => total + Math.exp(logit - largest), 0)
    return Math.exp(logits[at]! - largest) / sum
  }
}

function labelIndex(
  file: string,
  width: number,
  labels: readonly string[],
  label: number | string | undefined,
): number {
  const index = typeof label === 'string' ? labels.indexOf(label) : label
  if (index !== undefined && Number.isInteger(index) && index >= 0 && index < width) return index
  const known = labels.length === width ? `${labels.join(', ')} (0 to ${width - 1})` : `0 to ${width - 1}`
  const near = typeof label === 'string' ? nearestName(label, labels) : undefined
  const got = label === undefined ? 'none' : JSON.stringify(label)
  throw new CaravanError('ERR_CONFIG', `${file} has ${width} labels: \`label\` must be one of ${known}; got ${got}`, {
    details: { file, labels: [...labels], label },
    hint: near === undefined ? undefined : `did you mean '${near}'?`,
  })
}

/** The output [B] or [B, N] as a list for each row. */
function logitRows(name: string, { values, type, shape }: OnnxOutput, rows: number): Float64Array[] {
  const width = shape[1] ?? 1
  if (values === undefined || shape.length > 2 || shape[0] !== rows || width < 1) {
    const got = `${type} [${shape.join(', ')}]`
    throw new CaravanError('ERR_MODEL', `the output ${name} must be float [${rows}, labels]; got ${got}`, {
      details: { output: name, type, shape },
      hint: 'export the model for text classification, in float32',
    })
  }
  return Array.from({ length: rows }, (_, i) => values.slice(i * width, (i + 1) * width))
}

function batchEnd(order: readonly number[], rows: readonly TokenRow[], from: number, batchTokens: number): number {
  let to = from + 1
  while (to < order.length && (to + 1 - from) * rows[order[to]!]!.ids.length <= batchTokens) to++
  return to
}

function count(name: string, value: number): number {
  if (Number.isSafeInteger(value) && value > 0) return value
  throw new CaravanError('ERR_CONFIG', `OnnxClassifier: \`${name}\` must be a whole number above 0; got ${value}`)
}
