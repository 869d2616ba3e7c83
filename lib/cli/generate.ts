// `caravan generate`: continues the prompts of a file. They are read while others are being generated; results keep the
// order of the file and do not depend on what is generated beside them.
import { CaravanError } from '../base/errors.js'
import { writeFileAtomic } from '../data/atomic_file.js'
import { type Generated, type GenerateRequest, generate } from '../generate/index.js'
import { type CausalLm, loadModel } from '../models/index.js'
import { openDevice } from '../ops/index.js'
import { Tokenizer } from '../text/tokenizer.js'
import { type DeviceFlag, type DtypeFlag, engineDtype } from './command_options.js'
import { rowSummary, runFileCommand } from './file_command.js'
import { countText, grouped } from './format.js'
import { promptRows, withPlace } from './generate_rows.js'

export interface GenerateFlags {
  model: string
  input: string
  output: string
  template?: string
  maxTokens: number
  temperature: number
  topK: number
  topP: number
  minP: number
  repetitionPenalty: number
  /** Samples of each prompt. */
  n: number
  seed: number
  stop?: string[]
  slots: number
  dtype?: DtypeFlag
  device?: DeviceFlag
  threads?: number
  quiet?: boolean
  json?: boolean
}

interface Summary {
  rows: number
  tokens: number
  seconds: number
}

/** Generates for the rows of a file; the value is the exit code. */
export function generateFile(flags: GenerateFlags): Promise<number> {
  return runFileCommand<Summary>({
    flags,
    work: (signal, show) =>
      writeCompletions(flags, signal, ({ rows, tokens, seconds }) => {
        const rate = `${countText(Math.round(tokens / Math.max(seconds, 1e-3)))} tokens/s`
        const parts = ['generating', `${grouped(rows)} rows`, `${countText(tokens)} tokens`, rate]
        show({ id: 'generate', done: rows, parts })
      }),
    ...rowSummary(flags.output),
  })
}

/** Writes one line for each sample of each row to `flags.output`, which appears whole or not at all. */
async function writeCompletions(
  flags: GenerateFlags,
  signal: AbortSignal,
  onProgress: (done: Summary) => void,
): Promise<Summary> {
  const { model: directory, output, device: kind, threads, dtype } = flags
  const started = performance.now()
  using device = openDevice({ kind, threads })
  using model = await loadModel(device, directory, { dtype: engineDtype(dtype) })
  const tokenizer = await Tokenizer.load(directory)
  const done: Summary = { rows: 0, tokens: 0, seconds: 0 }
  await writeFileAtomic(output, async (append) => {
    const order = new RowOrder(flags.n)
    for await (const event of completions(flags, { model, tokenizer, signal })) {
      if (event.type === 'token') done.tokens++
      else {
        const lines = order.add(event)
        if (lines.length > 0) await append(Buffer.from(lines.join('')))
      }
      done.rows = order.rows
      done.seconds = (performance.now() - started) / 1000
      onProgress(done)
    }
  })
  done.seconds = (performance.now() - started) / 1000
  return done
}

interface Engine {
  model: CausalLm
  tokenizer: Tokenizer
  signal: AbortSignal
}

/** The engine's events; errors that speak of a request name its file and line. */
async function* completions(flags: GenerateFlags, { model, tokenizer, signal }: Engine) {
  const lines: number[] = []
  const { maxTokens, temperature, topK, topP, minP, repetitionPenalty, n, stop = [], seed, slots } = flags
  const ends = tokenizer.eosId === undefined ? model.config.eosIds : [...model.config.eosIds, tokenizer.eosId]
  async function* requests(): AsyncGenerator<GenerateRequest> {
    for await (const { ids, line } of promptRows(flags.input, { tokenizer, template: flags.template })) {
      lines.push(line)
      const sampling = { temperature, topK, topP, minP, repetitionPenalty }
      yield { prompt: ids, maxTokens, ...sampling, samples: n, stopIds: ends, stopTexts: stop }
    }
  }
  const decode = (sequences: readonly Int32Array[]) => tokenizer.decodeBatch(sequences, { skipSpecialTokens: true })
  try {
    yield* generate(model, requests(), { decode, seed, slots, signal })
  } catch (error) {
    const request = error instanceof CaravanError ? error.details.request : undefined
    if (typeof request !== 'number') throw error
    const placed = withPlace(error, flags.input, lines[request]!)
    // What is wrong with a row is wrong with the data; options have been checked before.
    if (!(placed instanceof CaravanError) || placed.code !== 'ERR_CONFIG') throw placed
    const { message, details, hint } = placed
    throw new CaravanError('ERR_DATA', message.replace(/request \d+: /, ''), { details, hint, cause: error })
  }
}

/** Brings samples back into the order of the rows. */
class RowOrder {
  /** Rows that are complete and in their place. */
  rows = 0
  readonly #waiting = new Map<number, string[]>()

  constructor(private readonly samples: number) {}

  /** The lines that are next now that `result` is there. */
  add(result: Generated): string[] {
    const row = this.#waiting.get(result.request) ?? []
    row[result.sample] = lineOf(result)
    this.#waiting.set(result.request, row)
    const ready: string[] = []
    for (let next = this.#waiting.get(this.rows); isComplete(next, this.samples); next = this.#waiting.get(this.rows)) {
      ready.push(...next)
      this.#waiting.delete(this.rows++)
    }
    return ready
  }
}

function isComplete(lines: string[] | undefined, samples: number): lines is string[] {
  return lines !== undefined && lines.filter(() => true).length === samples
}

function lineOf({ request, sample, text, tokens, logprobs, finishReason }: Generated): string {
  return `${JSON.stringify({
    index: request,
    sample,
    completion: text,
    token_ids: Array.from(tokens),
    logprobs: Array.from(logprobs),
    finish_reason: finishReason,
  })}\n`
}
