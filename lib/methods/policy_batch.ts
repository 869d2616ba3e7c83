// Sampled answers as padding-free rows: each prompt once, its answers behind it, and beside each token the numbers that
// its loss needs.

import { throwIfAborted } from '../base/errors.js'
import { AnswerLayout, type AnswerRows } from '../data/answer_layout.js'
import { planPacking } from '../data/pack.js'
import type { CausalLm, RewardModel } from '../models/index.js'
import { affine, linearLogprob, targetsOn } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { type Checkpointing, scope, Tensor } from '../tensor/index.js'
import { answerRows } from './answer_rows.js'

/** One answer on its way into the loss; numbers are per token of the answer. */
export interface PolicySample {
  tokens: Int32Array
  /** Log-probability when it was drawn. */
  old: Float32Array
  /** Log-probability under the reference; undefined where the loss needs none. */
  reference?: Float32Array
  advantages: ArrayLike<number>
  /** What each of its tokens counts in the policy loss. */
  weight: number
  /** For the value model: values when sampled and returns, one more than tokens where the state after the last one has
   *  a value too. */
  values?: Float32Array
  returns?: ArrayLike<number>
}

/** Answers to one prompt. */
export interface PolicyGroup<S = PolicySample> {
  prompt: Int32Array
  samples: readonly S[]
}

/** Rows for one pass, with the samples in the order in which they lie. */
export interface PolicyMicro<S = PolicySample> {
  rows: AnswerRows
  samples: readonly S[]
}

type WithTokens = { tokens: Int32Array }

/** Tokens that go through the model for these answers. */
export function rowTokensOf({ prompt, samples }: PolicyGroup<WithTokens>): number {
  // The last token of the prompt predicts something else in each answer, so it stays with the answer.
  return samples.reduce((sum, { tokens }) => sum + 1 + tokens.length, prompt.length - 1)
}

/** Lays `groups` into rows of at most `tokens` tokens; one that does not fit is divided, and its prompt repeated. */
export function* policyRows<S extends WithTokens>(
  groups: readonly PolicyGroup<S>[],
  tokens: number,
): Generator<PolicyMicro<S>> {
  const units = groups.flatMap((group) => divided(group, tokens))
  const lengths = units.map(rowTokensOf)
  const limit = lengths.reduce((most, length) => Math.max(most, length), tokens)
  const plan = planPacking(lengths, limit, 'bfd')
  for (let row = 0; row < plan.rowCount; row++) {
    const chosen = plan.example.slice(plan.rowOffsets[row], plan.rowOffsets[row + 1])
    yield layOut(Array.from(chosen, (unit) => units[unit]!))
  }
}

function divided<S extends WithTokens>({ prompt, samples }: PolicyGroup<S>, tokens: number): PolicyGroup<S>[] {
  const parts: { prompt: Int32Array; samples: S[] }[] = []
  for (const sample of samples) {
    const last = parts.at(-1)
    if (last && rowTokensOf(last) + 1 + sample.tokens.length <= tokens) last.samples.push(sample)
    else parts.push({ prompt, samples: [sample] })
  }
  return parts
}

function layOut<S extends WithTokens>(groups: readonly PolicyGroup<S>[]): PolicyMicro<S> {
  const samples = groups.flatMap((group) => group.samples)
  const tokens = groups.reduce((sum, group) => sum + rowTokensOf(group), 0)
  const layout = new AnswerLayout({ tokens, answers: samples.length })
  for (const { prompt, samples: own } of groups) {
    layout.addPrompt(prompt.subarray(0, -1))
    for (const sample of own) {
      const ids = new Int32Array(1 + sample.tokens.length)
      ids[0] = prompt.at(-1)!
      ids.set(sample.tokens, 1)
      layout.addAnswer(ids, new Uint8Array(ids.length).fill(1))
    }
  }
  return { rows: layout.finish(), samples }
}

/** Log-probability [N] f32 of each row's target at `temperature`; 0 where a row has none. */
export function policyLogprobs(
  policy: CausalLm,
  rows: AnswerRows,
  { temperature, checkpoint }: { temperature: number; checkpoint?: Checkpointing },
): Tensor {
  const { device } = policy
  const hidden = policy.hidden(answerRows(device, rows), { checkpoint })
  const scaled = temperature === 1 ? hidden : affine(hidden, 1 / temperature, 0)
  return linearLogprob(scaled, policy.head, targetsOn(device, rows.labels)).logp
}

/** Values of the states before each token of every answer, one answer after the other; with `after`, where it is true,
 *  also of the state after its last one. */
export function stateValues(
  model: RewardModel,
  { rows, samples }: PolicyMicro<WithTokens>,
  { after, checkpoint }: { after: (sample: number) => boolean; checkpoint?: Checkpointing },
): Tensor {
  const at = samples.flatMap(({ tokens }, s) => {
    const begin = rows.spans[3 * s]!
    return Array.from({ length: tokens.length + Number(after(s)) }, (_, t) => begin + t)
  })
  const asked = new Set(at)
  const packed = answerRows(model.device, rows, (row) => asked.has(row))
  return model.scores(packed, Tensor.from(model.device, Int32Array.from(at), [at.length]), { checkpoint })
}

export interface PassOptions {
  /** Tokens that go through the model at once. */
  tokens: number
  signal?: AbortSignal
}

/** Runs `forward` without gradients over all rows of `groups` and gives `take` what came out for each. */
async function eachSample<S extends WithTokens>(
  groups: readonly PolicyGroup<S>[],
  forward: (micro: PolicyMicro<S>) => Tensor,
  { tokens, signal, take }: PassOptions & { take: (micro: PolicyMicro<S>, values: Float32Array) => void },
): Promise<void> {
  for (const micro of policyRows(groups, tokens)) {
    throwIfAborted(signal)
    using result = scope(() => forward(micro))
    take(micro, (await result.read()) as Float32Array)
  }
}

/** Log-probabilities of every answer's tokens under `policy`, by sample. */
export async function sampleLogprobs<S extends WithTokens>(
  policy: CausalLm,
  groups: readonly PolicyGroup<S>[],
  options: PassOptions & { temperature: number },
): Promise<Map<S, Float32Array>> {
  const found = new Map<S, Float32Array>()
  await eachSample(groups, ({ rows }) => policyLogprobs(policy, rows, options), {
    ...options,
    take({ rows, samples }, values) {
      for (const [s, sample] of samples.entries()) {
        const begin = rows.spans[3 * s]!
        found.set(sample, values.slice(begin, begin + sample.tokens.length))
      }
    },
  })
  return found
}

/** Values of every answer's states under `model`, by sample; `after` as in stateValues. */
export async function sampleValues<S extends WithTokens>(
  model: RewardModel,
  groups: readonly PolicyGroup<S>[],
  options: PassOptions & { after: (sample: S) => boolean },
): Promise<Map<S, Float32Array>> {
  const found = new Map<S, Float32Array>()
  const { after } = options
  await eachSample(groups, (micro) => stateValues(model, micro, { after: (s) => after(micro.samples[s]!) }), {
    ...options,
    take({ samples }, values) {
      let begin = 0
      for (const sample of samples) {
        const end = begin + sample.tokens.length + Number(after(sample))
        found.set(sample, values.slice(begin, end))
        begin = end
      }
    },
  })
  return found
}

/** Numbers of the samples of `micro` beside their rows, [N] f32: `of` gives those of a sample, one for each token. */
export function besideRows<S extends WithTokens>(
  device: Device,
  { rows, samples }: PolicyMicro<S>,
  of: (sample: S) => ArrayLike<number> | number,
): Tensor {
  const N = rows.inputIds.length
  const values = new Float32Array(N)
  for (const [s, sample] of samples.entries()) {
    const begin = rows.spans[3 * s]!
    const own = of(sample)
    if (typeof own === 'number') values.fill(own, begin, begin + sample.tokens.length)
    else values.set(Array.prototype.slice.call(own, 0, sample.tokens.length) as number[], begin)
  }
  return Tensor.from(device, values, [N])
}
