// What `caravan score` says of a row: the log-probability of every token, or the score of a reward model.
import { CaravanError } from '../base/errors.js'
import {
  type CausalLm,
  loadModel,
  loadRewardModel,
  type PackedRows,
  type RewardModel,
  readRows,
} from '../models/index.js'
import { linearLogprob, selfSegments, targetsOn } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { scope, Tensor } from '../tensor/index.js'
import type { ScoreRow } from './score_rows.js'

export interface RowScorer extends Disposable {
  readonly vocabularySize: number
  /** One line of JSON for each row. */
  lines(batch: readonly ScoreRow[]): Promise<string[]>
}

/** Loads the model of a folder: a language model, or with `reward` a reward model. */
export async function openScorer(
  device: Device,
  directory: string,
  { dtype, reward }: { dtype: 'f32' | 'bf16' | undefined; reward: boolean },
): Promise<RowScorer> {
  if (reward) {
    const model = await loadRewardModel(device, directory, { dtype })
    return { ...disposed(model), lines: (batch) => rewardLines(model, batch) }
  }
  const model = await loadModel(device, directory, { dtype })
  return { ...disposed(model), lines: (batch) => logprobLines(model, batch) }
}

function disposed(model: CausalLm | RewardModel): Pick<RowScorer, 'vocabularySize' | typeof Symbol.dispose> {
  return { vocabularySize: model.config.V, [Symbol.dispose]: () => model.dispose() }
}

async function logprobLines(model: CausalLm, batch: readonly ScoreRow[]): Promise<string[]> {
  const logprobs = await tokenLogprobs(model, batch)
  return logprobs.map((values, i) => {
    const row = batch[i]!
    let sum = 0
    for (const value of values) sum += value
    if (!Number.isFinite(sum)) throw notFinite(row, 'a log-probability')
    const shown = values.length > 0 || row.ids.length > 0 ? [null, ...values] : []
    return `${JSON.stringify({ tokens: row.ids.length, logprobs: shown, sum })}\n`
  })
}

async function rewardLines(model: RewardModel, batch: readonly ScoreRow[]): Promise<string[]> {
  const scores = await rewards(model, batch)
  return batch.map((row, i) => {
    // A row without tokens has no last one to score.
    if (row.ids.length === 0) return `${JSON.stringify({ tokens: 0, score: null })}\n`
    if (!Number.isFinite(scores[i])) throw notFinite(row, 'a score')
    return `${JSON.stringify({ tokens: row.ids.length, score: scores[i] })}\n`
  })
}

function notFinite({ file, line }: ScoreRow, what: string): CaravanError {
  return new CaravanError('ERR_MODEL', `${file}:${line}: the model gives ${what} that is not finite`, {
    details: { file, line },
    hint: 'the weights may hold NaN or infinities; a bf16 run can be compared with --dtype fp32',
  })
}

/** For each sequence of n tokens the n - 1 log-probabilities of its second to last token. */
async function tokenLogprobs(model: CausalLm, batch: readonly ScoreRow[]): Promise<Float32Array[]> {
  const { ids, positions, starts } = packed(batch)
  const N = ids.length
  if (N === 0) return batch.map(() => new Float32Array(0))
  const target = new Int32Array(N).fill(-100)
  for (const [i, { ids: own }] of batch.entries()) target.set(own.subarray(1), starts[i]!)
  using logp = scope(() => {
    const hidden = model.hidden(rowsOn(model.device, { ids, positions, starts }))
    return linearLogprob(hidden, model.head, targetsOn(model.device, target)).logp
  })
  const values = (await logp.read()) as Float32Array
  return batch.map(({ ids: own }, i) => values.slice(starts[i]!, starts[i]! + Math.max(0, own.length - 1)))
}

/** The score at the last token of each row; 0 for a row without tokens. */
async function rewards(model: RewardModel, batch: readonly ScoreRow[]): Promise<number[]> {
  const sequences = packed(batch)
  const present = batch.flatMap(({ ids }, i) => (ids.length > 0 ? [i] : []))
  if (present.length === 0) return batch.map(() => 0)
  const last = Int32Array.from(present, (i) => sequences.starts[i + 1]! - 1)
  using scores = scope(() => {
    const rows = rowsOn(model.device, sequences, (row) => last.includes(row))
    return model.scores(rows, Tensor.from(model.device, last, [last.length]))
  })
  const values = await scores.read()
  return batch.map((_, i) => values[present.indexOf(i)] ?? 0)
}

interface PackedSequences {
  ids: Int32Array
  positions: Int32Array
  /** First row of each sequence, and the end of the last one. */
  starts: number[]
}

function packed(batch: readonly ScoreRow[]): PackedSequences {
  const starts = [0]
  for (const { ids } of batch) starts.push(starts.at(-1)! + ids.length)
  const N = starts.at(-1)!
  const ids = new Int32Array(N)
  const positions = new Int32Array(N)
  for (const [i, row] of batch.entries()) {
    ids.set(row.ids, starts[i]!)
    for (let t = 0; t < row.ids.length; t++) positions[starts[i]! + t] = t
  }
  return { ids, positions, starts }
}

function rowsOn(
  device: Device,
  { ids, positions, starts }: PackedSequences,
  reads = (_row: number) => true,
): PackedRows {
  // Empty sequences have no segment.
  const { data, shape } = selfSegments([...new Set(starts)])
  return {
    ids: Tensor.from(device, ids, [ids.length]),
    positions: Tensor.from(device, positions, [ids.length]),
    segments: Tensor.from(device, data, shape),
    read: readRows(device, data, reads),
  }
}
