// The DPO family against TRL in float64: loss, rewards and gradients from sequence log-probabilities and, through the
// fused vocabulary product, from logits.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  checkPreferenceOptions,
  needsReference,
  type PreferenceLossOptions,
  preferenceLoss,
} from '../../lib/losses/preference.js'
import { fill, linearLogprob, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Gradients, Tape, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenJson, goldenTensors, largest, largestDifference } from '../train/golden_tensors.js'

const facts = goldenJson<{ [group: string]: { values?: { loss: number }; metrics?: { [name: string]: number } } }>(
  'losses/losses.json',
)
const golden = goldenTensors('losses/losses.safetensors')
const values = (name: string) => golden.get(name)!.data

const base = { gammaBetaRatio: 0, labelSmoothing: 0, referenceFree: false }
/** A reference group, and the options with which the engine computes it. */
const cases: [string, PreferenceLossOptions][] = [
  ['dpo_sigmoid', { ...base, loss: 'dpo', beta: 0.1 }],
  ['dpo_norm', { ...base, loss: 'dpo_norm', beta: 5 }],
  ['ipo_avg', { ...base, loss: 'ipo', beta: 0.2 }],
  ['dpo_hinge', { ...base, loss: 'hinge', beta: 0.1 }],
  ['dpo_robust', { ...base, loss: 'robust', beta: 0.1, labelSmoothing: 0.1 }],
]
/** The same from sums of log-probabilities. */
const fromSums: [string, PreferenceLossOptions][] = [
  ['dpo_sigmoid_from_logps', { ...base, loss: 'dpo', beta: 0.1 }],
  ['dpo_norm_from_logps', { ...base, loss: 'dpo_norm', beta: 5 }],
  ['dpo_smoothed_from_logps', { ...base, loss: 'dpo', beta: 0.1, labelSmoothing: 0.1 }],
  ['ipo_sum_from_logps', { ...base, loss: 'ipo_sum', beta: 0.2 }],
  ['simpo', { ...base, loss: 'simpo', beta: 2, gammaBetaRatio: 0.8 }],
  ['simpo_smoothed', { ...base, loss: 'simpo', beta: 2, gammaBetaRatio: 0.8, labelSmoothing: 0.1 }],
]

const [B, T, V] = [4, 11, 19]

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

/** Row of the reference that holds side `side` (0 chosen) of pair `pair`. */
const goldenRow = (pair: number, side: number) => side * B + pair

/** Loss, metrics and gradient of `logp` for spans of its rows. */
async function evaluated(
  logp: Float32Array,
  { spans, reference, options }: { spans: number[]; reference: number[]; options: PreferenceLossOptions },
) {
  const P = spans.length / 6
  const x = Tensor.from(device, logp, [logp.length])
  const s = Tensor.from(device, Int32Array.from(spans), [P, 2, 3])
  const r = Tensor.from(device, Float64Array.from(reference), [P, 2])
  const seed = fill(device, [1], { value: 1, dtype: 'f32' })
  x.tracked = true
  using gradients = new Gradients()
  const tape = new Tape()
  const { sum, metrics } = tape.record(() => preferenceLoss(x, { spans: s, reference: r }, options))
  tape.backward(sum, seed, gradients)
  const result = {
    loss: (await sum.item()) / P,
    metrics: Array.from(await metrics.read(), (value) => value / P),
    gradient: (await gradients.get(x)!.read()) as Float32Array,
  }
  for (const tensor of [x, s, r, seed, sum, metrics]) tensor.dispose()
  return result
}

describe.each(fromSums)('%s', (group, options) => {
  it('has the loss, the rewards and the gradient of the reference', async () => {
    const counts = values('sequence_logps.n_tokens')
    const sums = values('sequence_logps.policy_sum')
    const references = values('sequence_logps.ref_sum')
    const spans: number[] = []
    const logp: number[] = []
    const reference: number[] = []
    for (let pair = 0; pair < B; pair++) {
      for (const side of [0, 1]) {
        const row = goldenRow(pair, side)
        const n = counts[row]!
        spans.push(logp.length, logp.length + n, n)
        for (let i = 0; i < n; i++) logp.push(sums[row]! / n)
        reference.push(needsReference(options) ? references[row]! : 0)
      }
    }
    const got = await evaluated(Float32Array.from(logp), { spans, reference, options })
    expect(got.loss).toBeCloseTo(facts[group]!.values!.loss, 4)
    const mean = (name: string) => Array.from(values(`${group}.${name}`)).reduce((sum, x) => sum + x, 0) / B
    expect(got.metrics[0]!).toBeCloseTo(mean('chosen_rewards'), 4)
    expect(got.metrics[1]!).toBeCloseTo(mean('rejected_rewards'), 4)
    // The reference's gradient is that of the mean, on what the loss sees: sums, or means per token.
    const wanted = values(`${group}.grad_policy_logps`)
    const average = options.loss === 'dpo_norm' || options.loss === 'simpo'
    for (let i = 0; i < 2 * B; i++) {
      const row = goldenRow(i >> 1, i & 1)
      const n = counts[row]!
      const own = (got.gradient[spans[3 * i]!]! / B) * (average ? n : 1)
      expect(Math.abs(own - wanted[row]!)).toBeLessThan(1e-5 * largest(wanted))
    }
  })
})

describe.each(cases)('%s from logits', (group, options) => {
  it('has the loss and the gradient of TRL', async () => {
    const logits = golden.get('preference_inputs.policy_logits')!.data as Float32Array
    const ids = values('preference_inputs.input_ids')
    const mask = values('preference_inputs.completion_mask')
    const labels = Int32Array.from({ length: 2 * B * T }, (_, at) =>
      at % T === T - 1 || mask[at + 1] === 0 ? -100 : ids[at + 1]!,
    )
    const spans: number[] = []
    const reference: number[] = []
    for (let i = 0; i < 2 * B; i++) {
      const row = goldenRow(i >> 1, i & 1)
      spans.push(row * T, (row + 1) * T, values('sequence_logps.n_tokens')[row]!)
      reference.push(values('sequence_logps.ref_sum')[row]!)
    }
    const head = Float32Array.from({ length: V * V }, (_, i) => (i % (V + 1) === 0 ? 1 : 0))
    const hidden = Tensor.from(device, logits, [2 * B * T, V])
    const w = Tensor.from(device, head, [V, V])
    const target = Tensor.from(device, labels, [labels.length])
    const s = Tensor.from(device, Int32Array.from(spans), [B, 2, 3])
    const r = Tensor.from(device, Float64Array.from(reference), [B, 2])
    const seed = fill(device, [1], { value: 1, dtype: 'f32' })
    hidden.tracked = true
    using gradients = new Gradients()
    const tape = new Tape()
    const { sum, metrics } = tape.record(() =>
      preferenceLoss(linearLogprob(hidden, w, target).logp, { spans: s, reference: r }, options),
    )
    tape.backward(sum, seed, gradients)
    expect((await sum.item()) / B).toBeCloseTo(facts[group]!.values!.loss, 4)
    const { metrics: wanted } = facts[group]!
    const [chosen, rejected, accuracy, margin, logpChosen, logpRejected] = Array.from(
      await metrics.read(),
      (x) => x / B,
    )
    // TRL logs beta times the difference of sums whatever the loss averages; the engine logs what the loss sees.
    if (options.loss === 'dpo' || options.loss === 'hinge' || options.loss === 'robust') {
      expect(chosen).toBeCloseTo(wanted!['rewards/chosen']!, 5)
      expect(rejected).toBeCloseTo(wanted!['rewards/rejected']!, 5)
      expect(margin).toBeCloseTo(wanted!['rewards/margins']!, 5)
    }
    expect(accuracy).toBeCloseTo(wanted!['rewards/accuracies']!, 6)
    expect(logpChosen).toBeCloseTo(wanted!['logps/chosen']!, 4)
    expect(logpRejected).toBeCloseTo(wanted!['logps/rejected']!, 4)
    const gradient = (await gradients.get(hidden)!.read()).map((x) => x / B)
    const wantedGradient = values(`${group}.grad_policy_logits`)
    expect(largestDifference(gradient, wantedGradient)).toBeLessThan(1e-5 * largest(wantedGradient))
    for (const tensor of [hidden, w, target, s, r, seed, sum, metrics]) tensor.dispose()
  })
})

/** One pair of answers of two tokens each. */
const twoTokens = (chosen: number, rejected: number) =>
  [Float32Array.of(chosen / 2, chosen / 2, rejected / 2, rejected / 2), [0, 2, 2, 2, 4, 2]] as const

describe('values by hand', () => {
  it.each<[string, PreferenceLossOptions, [chosen: number, rejected: number], number]>([
    ['dpo, z = 0', { ...base, loss: 'dpo', beta: 0.1 }, [-1, -1], Math.LN2],
    ['dpo, z = 5', { ...base, loss: 'dpo', beta: 0.1 }, [0, -5], 0.474077],
    ['dpo, z = -5', { ...base, loss: 'dpo', beta: 0.1 }, [-5, 0], 0.974077],
    ['dpo smoothed, beta z = .5', { ...base, loss: 'dpo', beta: 0.1, labelSmoothing: 0.1 }, [0, -5], 0.524077],
    ['simpo, difference 1', { ...base, loss: 'simpo', beta: 0.1, gammaBetaRatio: 0.3 }, [0, -2], 0.65876],
  ])('%s', async (_, options, sides, wanted) => {
    const [logp, spans] = twoTokens(...sides)
    const { loss } = await evaluated(logp, { spans: [...spans], reference: [0, 0], options })
    expect(loss).toBeCloseTo(wanted, 5)
  })

  it('wpo weights a pair by its likelihood per token, which has no gradient', async () => {
    const [logp, spans] = twoTokens(-1, -2)
    const options: PreferenceLossOptions = { ...base, loss: 'dpo', beta: 0.1 }
    const plain = await evaluated(logp, { spans: [...spans], reference: [-1, -1], options })
    const weighted = await evaluated(logp, {
      spans: [...spans],
      reference: [-1, -1],
      options: { ...options, loss: 'wpo' },
    })
    const weight = Math.exp(-0.5 - 1)
    expect(weighted.loss).toBeCloseTo(weight * plain.loss, 6)
    for (let i = 0; i < 4; i++) expect(weighted.gradient[i]).toBeCloseTo(weight * plain.gradient[i]!, 6)
  })

  it('stays finite far from 0', async () => {
    for (const z of [1e5, -1e5]) {
      const [logp, spans] = twoTokens(Math.min(z, 0), Math.min(-z, 0))
      const options: PreferenceLossOptions = { ...base, loss: 'dpo', beta: 1 }
      const { loss, gradient } = await evaluated(logp, { spans: [...spans], reference: [0, 0], options })
      expect(loss).toBeCloseTo(z < 0 ? 1e5 : 0, 3)
      expect(gradient[0]).toBeCloseTo(z < 0 ? -1 : 0, 6)
    }
  })
})

it.each([
  [{ beta: 0 }, /beta must be above 0; got 0/],
  [{ beta: Number.NaN }, /beta/],
  [{ labelSmoothing: 0.5 }, /labelSmoothing must be in \[0, 0.5\)/],
  [{ gammaBetaRatio: -1 }, /gammaBetaRatio/],
  [{ loss: 'hinge', labelSmoothing: 0.1 }, /no smoothed form/],
] as [Partial<PreferenceLossOptions>, RegExp][])('%o is refused', (part, message) => {
  expect(() => checkPreferenceOptions({ ...base, loss: 'dpo', beta: 0.1, ...part })).toThrow(message)
})
