// Drawing the next token of a sequence. The vocabulary meets the tokens here as it does in linear_logprob: the logits
// stay inside the op, in f32 whatever the weights are, so that the log-probability of a token is the trainer's.
import { CaravanError } from '../base/errors.js'
import { shapeText } from '../base/shape.js'
import { defineOp, type Sample, type SampleDraw, Tensor } from '../tensor/index.js'
import { gpuSamples } from './gpu_samples.js'

/** How the token of one row is chosen. */
export interface SampleSettings {
  /** Divides the logits; 0 takes the most probable token, the lowest id on a tie. */
  temperature: number
  /** Only the k most probable tokens and those that tie with the last of them; 0 = all. */
  topK: number
  /** Only the most probable tokens that together have at least this probability; 1 = all. */
  topP: number
  /** Only tokens with at least this share of the largest probability; 0 = all. */
  minP: number
  /** Positive logits of tokens that came before are divided by this, negative ones multiplied; 1 = off. */
  repetitionPenalty: number
}

/** What decides the random number of one row. Seed below 2^53, sample and position below 2^31. */
export interface SampleKey {
  seed: number
  sample: number
  position: number
}

/** The row of `settings` for the op. */
export function settingsRow(settings: SampleSettings): number[] {
  const { temperature, topK, topP, minP, repetitionPenalty } = settings
  return [temperature, topK, topP, minP, repetitionPenalty]
}

/** The row of `keys` for the op. */
export function keyRow({ seed, sample, position }: SampleKey): number[] {
  return [seed | 0, Math.floor(seed / 2 ** 32) | 0, sample, position]
}

/** Settings of every kind; all of them off with `plain: 1`, as rollouts have them. */
function drawnData(sample: Sample, draw: SampleDraw) {
  const { N, V, M = 0 } = sample as { N: number; V: number; M?: number }
  const off: SampleSettings = { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 }
  const ofEveryKind = (n: number): SampleSettings => ({
    temperature: n % 4 === 3 ? 0 : 0.5 + draw.integer(0, 100) / 100,
    topK: n % 3 === 1 ? draw.integer(1, V + 1) : 0,
    topP: n % 5 === 2 ? 0.8 : 1,
    minP: n % 7 === 4 ? 0.05 : 0,
    repetitionPenalty: n % 2 === 1 ? 1.3 : 1,
  })
  const rows = Array.from({ length: N }, (_, n) => (sample.plain ? off : ofEveryKind(n)))
  return {
    settings: Float64Array.from(rows.flatMap(settingsRow)),
    keys: Int32Array.from(rows.flatMap((_, n) => keyRow({ seed: 2 ** 40 + n, sample: n % 3, position: n }))),
    previous: Int32Array.from({ length: M }, () => draw.integer(0, V)),
    previous_ends: Int32Array.from({ length: N }, (_, n) => Math.floor(((n + 1) * M) / N)),
  }
}

/** token ~ filtered softmax(hidden head^T); logp = its log-probability before filters and temperature, drawn_logp after
 *  them; probs = the filtered distribution. A row whose logits have no finite softmax gives token 0 and NaN. */
export const sampleOp = defineOp({
  name: 'sample',
  signature:
    'hidden[N,D] head[V,D] settings[N,5]:f64 keys[N,4]:i32 previous[M]:i32? previous_ends[N]:i32? -> token[N]:i32 logp[N]:f32 drawn_logp[N]:f32 probs[N,V]:f32? | with_probs',
  data: drawnData,
  shapes: ({ head, previous, previous_ends }) => {
    if (head.shape[0] === 0) throw new CaravanError('ERR_SHAPE', `sample: head ${shapeText(head.shape)} has no tokens`)
    if (!previous !== !previous_ends) {
      throw new CaravanError('ERR_SHAPE', 'sample: previous and previous_ends belong together; got one of them')
    }
    return {}
  },
  flops: ({ N, V, D }) => 2 * N! * V! * D!,
  samples: [
    { N: 7, V: 11, D: 5, with_probs: 1 },
    { N: 9, V: 33, D: 16, M: 20, with_probs: 1, with_previous: 1, with_previous_ends: 1 },
    { N: 1, V: 1, D: 1, with_probs: 0 },
    { N: 0, V: 5, D: 3, with_probs: 0 },
    { N: 8, V: 32000, D: 288, with_probs: 0, bench: true },
    { N: 32, V: 151936, D: 896, with_probs: 0, bench: true },
    ...gpuSamples.sample,
  ],
})

export interface SampledRows {
  /** [N] i32 */
  token: Tensor
  /** [N] f32: log-probability of the token under softmax(hidden head^T), as linear_logprob gives it. */
  logp: Tensor
  /** [N] f32: log-probability with which it was drawn. */
  drawnLogp: Tensor
}

/** One row of a call of `sample`. */
export interface SampleRow {
  settings: SampleSettings
  key: SampleKey
  /** Tokens that came before, any order; repeats count once. Read when repetitionPenalty is not 1. */
  previous?: ArrayLike<number>
}

/** A token for every row of hidden [N,D] under head [V,D]. Not differentiable. ERR_SHAPE; ERR_DATA for settings out of
 *  range or previous ids that the vocabulary lacks. */
export function sample(hidden: Tensor, head: Tensor, rows: readonly SampleRow[]): SampledRows {
  const { device } = hidden
  const N = rows.length
  const settings = Float64Array.from(rows.flatMap((row) => settingsRow(row.settings)))
  const keys = Int32Array.from(rows.flatMap((row) => keyRow(row.key)))
  const { token, logp, drawn_logp } = sampleOp({
    hidden,
    head,
    settings: Tensor.from(device, settings, [N, 5]),
    keys: Tensor.from(device, keys, [N, 4]),
    ...previousOf(hidden, rows),
    with_probs: 0,
  })
  return { token, logp, drawnLogp: drawn_logp }
}

function previousOf({ device }: Tensor, rows: readonly SampleRow[]): { previous?: Tensor; previous_ends?: Tensor } {
  if (rows.every((row) => row.settings.repetitionPenalty === 1)) return {}
  const ids: number[] = []
  const ends = rows.map(({ settings, previous = [] }) => {
    if (settings.repetitionPenalty !== 1) for (let i = 0; i < previous.length; i++) ids.push(previous[i]!)
    return ids.length
  })
  return {
    previous: Tensor.from(device, Int32Array.from(ids), [ids.length]),
    previous_ends: Tensor.from(device, Int32Array.from(ends), [ends.length]),
  }
}
