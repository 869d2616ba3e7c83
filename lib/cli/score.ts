// `caravan score`: per-token log-probabilities of given rows, or their rewards. Rows are packed end to end, so that
// short ones share a pass; the results do not depend on which rows share one, and keep the order of the file.
import { throwIfAborted } from '../base/errors.js'
import { writeFileAtomic } from '../data/atomic_file.js'
import { openDevice } from '../ops/index.js'
import { type DeviceFlag, type DtypeFlag, engineDtype } from './command_options.js'
import { rowSummary, runFileCommand } from './file_command.js'
import { countText, grouped } from './format.js'
import { openScorer } from './row_scorer.js'
import { type ScoreRow, scoreRows } from './score_rows.js'

export interface ScoreFlags {
  model: string
  input: string
  output: string
  template?: string
  /** The model is a reward model: one score a row. */
  reward?: boolean
  dtype?: DtypeFlag
  device?: DeviceFlag
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
export function score(flags: ScoreFlags): Promise<number> {
  return runFileCommand<ScoreSummary>({
    flags,
    work: (signal, show) =>
      scoreFile(flags, signal, ({ rows, tokens }) => {
        const parts = ['scoring', `${grouped(rows)} rows`, `${countText(tokens)} tokens`]
        show({ id: 'score', done: rows, parts })
      }),
    ...rowSummary(flags.output),
  })
}

/** Writes one line a row to `flags.output`, which appears whole or not at all. ERR_DATA names file and line of a bad
 *  row. */
async function scoreFile(
  flags: ScoreFlags,
  signal: AbortSignal,
  onProgress: (done: ScoreSummary) => void,
): Promise<ScoreSummary> {
  const { model: directory, input, output, template, reward, device: kind, threads, dtype, batchTokens } = flags
  const started = performance.now()
  using device = openDevice({ kind, threads })
  using scorer = await openScorer(device, directory, { dtype: engineDtype(dtype), reward: reward ?? false })
  const done: ScoreSummary = { rows: 0, tokens: 0, seconds: 0 }
  await writeFileAtomic(output, async (append) => {
    const rows = scoreRows(input, { model: directory, template, vocabularySize: scorer.vocabularySize })
    for await (const batch of batchesOf(rows, batchTokens)) {
      throwIfAborted(signal)
      const lines = await scorer.lines(batch)
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
