// `caravan score`: per-token log-probabilities of given rows. Rows are packed end to end, so that short ones share a
// pass; the results do not depend on which rows share one, and keep the order of the file.
import { CaravanError, throwIfAborted } from '../base/errors.js'
import { writeFileAtomic } from '../data/atomic_file.js'
import { type CausalLm, loadModel } from '../models/index.js'
import { linearLogprob, openDevice, selfSegments } from '../ops/index.js'
import { scope, Tensor } from '../tensor/index.js'
import { type DtypeFlag, engineDtype } from './command_options.js'
import { exitCodes } from './failure.js'
import { countText, durationText, grouped } from './format.js'
import { ProgressLine } from './progress_line.js'
import { type ScoreRow, scoreRows } from './score_rows.js'
import { StopSignals } from './stop_signals.js'
import { Terminal } from './terminal.js'

export interface ScoreFlags {
  model: string
  input: string
  output: string
  template?: string
  dtype?: DtypeFlag
  threads?: number
  batchTokens: number
  quiet?: boolean
  json?: boolean
}

export interface ScoreSummary {
  rows: number
  tokens: number
  seconds: number
}

/** Scores the rows of a file; the value is the exit code. */
export async function score(flags: ScoreFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const progress = new ProgressLine(terminal)
  const silent = flags.quiet || flags.json
  const stopping = new StopSignals(() => {})
  try {
    const summary = await scoreFile(flags, stopping.stop, ({ rows, tokens }) => {
      const parts = ['scoring', `${grouped(rows)} rows`, `${countText(tokens)} tokens`]
      if (!silent) progress.show({ id: 'score', done: rows, parts })
    })
    progress.clear()
    const { rows, tokens, seconds } = summary
    if (flags.json) terminal.line(JSON.stringify({ ...summary, output: flags.output }))
    else if (!flags.quiet) {
      const rate = `${countText(Math.round(tokens / seconds))} tokens/s`
      terminal.line(
        `${grouped(rows)} rows, ${grouped(tokens)} tokens in ${durationText(seconds)} (${rate}) -> ${flags.output}`,
      )
    }
    return exitCodes.done
  } catch (error) {
    if (stopping.exitCode === undefined) throw error
    return stopping.exitCode
  } finally {
    progress.clear()
    stopping.release()
  }
}

/** Writes one line a row to `flags.output`, which appears whole or not at all. ERR_DATA names file and line of a bad
 *  row. */
async function scoreFile(
  flags: ScoreFlags,
  signal: AbortSignal,
  onProgress: (done: ScoreSummary) => void,
): Promise<ScoreSummary> {
  const { model: directory, input, output, template, threads, dtype, batchTokens } = flags
  const started = performance.now()
  using device = openDevice({ threads })
  using model = await loadModel(device, directory, { dtype: engineDtype(dtype) })
  const done: ScoreSummary = { rows: 0, tokens: 0, seconds: 0 }
  await writeFileAtomic(output, async (append) => {
    const rows = scoreRows(input, { model: directory, template, vocabularySize: model.config.V })
    for await (const batch of batchesOf(rows, batchTokens)) {
      throwIfAborted(signal)
      const lines = await scoreBatch(model, batch)
      await append(Buffer.from(lines.join('')))
      done.rows += batch.length
      done.tokens += batch.reduce((sum, { ids }) => sum + ids.length, 0)
      done.seconds = (performance.now() - started) / 1000
      onProgress(done)
    }
  })
  done.seconds = (performance.now() - started) / 1000
  return done
}

/** Groups rows, in order, as long as they have at most `tokens` tokens together; a longer row goes alone. */
async function* batchesOf(rows: AsyncIterable<ScoreRow>, tokens: number): AsyncGenerator<ScoreRow[]> {
  let batch: ScoreRow[] = []
  let size = 0
  for await (const row of rows) {
    if (batch.length > 0 && size + row.ids.length > tokens) {
      yield batch
      batch = []
      size = 0
    }
    batch.push(row)
    size += row.ids.length
  }
  if (batch.length > 0) yield batch
}

/** One line of JSON for each row. */
async function scoreBatch(model: CausalLm, batch: readonly ScoreRow[]): Promise<string[]> {
  const logprobs = await tokenLogprobs(
    model,
    batch.map(({ ids }) => ids),
  )
  return logprobs.map((values, i) => {
    const { file, line } = batch[i]!
    let sum = 0
    for (const value of values) sum += value
    if (!Number.isFinite(sum)) {
      throw new CaravanError('ERR_MODEL', `${file}:${line}: the model gives a log-probability that is not finite`, {
        details: { file, line },
        hint: 'the weights may hold NaN or infinities; a bf16 run can be compared with --dtype fp32',
      })
    }
    const shown = values.length > 0 || batch[i]!.ids.length > 0 ? [null, ...values] : []
    return `${JSON.stringify({ tokens: batch[i]!.ids.length, logprobs: shown, sum })}\n`
  })
}

/** For each sequence of n tokens the n - 1 log-probabilities of its second to last token. */
async function tokenLogprobs(model: CausalLm, sequences: readonly Int32Array[]): Promise<Float32Array[]> {
  const lengths = sequences.map((ids) => ids.length)
  const N = lengths.reduce((sum, length) => sum + length, 0)
  if (N === 0) return sequences.map(() => new Float32Array(0))
  const ids = new Int32Array(N)
  const positions = new Int32Array(N)
  const target = new Int32Array(N).fill(-100)
  const starts = [0]
  for (const sequence of sequences) {
    const start = starts.at(-1)!
    ids.set(sequence, start)
    for (let t = 0; t < sequence.length; t++) positions[start + t] = t
    target.set(sequence.subarray(1), start)
    starts.push(start + sequence.length)
  }
  const logp = await forward(model, { ids, positions, target, starts })
  return sequences.map((sequence, i) => logp.slice(starts[i]!, starts[i]! + Math.max(0, sequence.length - 1)))
}

interface PackedSequences {
  ids: Int32Array
  positions: Int32Array
  target: Int32Array
  starts: number[]
}

async function forward(model: CausalLm, { ids, positions, target, starts }: PackedSequences): Promise<Float32Array> {
  const { device } = model
  const N = ids.length
  using logp = scope(() => {
    // Empty sequences have no segment.
    const { data, shape } = selfSegments([...new Set(starts)])
    const rows = {
      ids: Tensor.from(device, ids, [N]),
      positions: Tensor.from(device, positions, [N]),
      segments: Tensor.from(device, data, shape),
    }
    return linearLogprob(model.hidden(rows), model.head, Tensor.from(device, target, [N])).logp
  })
  return (await logp.read()) as Float32Array
}
