// Policy and value losses with their gradients, advantages and divergences against TRL and torch in float64.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { gae, groupAdvantages, klEstimate, whiten } from '../../lib/losses/advantage.js'
import { checkPolicyOptions, type PolicyLossOptions, policyLoss, valueLoss } from '../../lib/losses/policy.js'
import { fill, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Gradients, Tape, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenJson, goldenTensors, largest, largestDifference } from '../train/golden_tensors.js'

interface Group {
  values: { [name: string]: number }
  config: {
    trl_loss_type: 'grpo' | 'dr_grpo' | 'dapo' | 'bnpo' | 'cispo'
    importance_sampling_level: 'token' | 'sequence'
    beta: number
    delta: number | null
    epsilon_low: number
    epsilon_high: number
    max_completion_length: number
  }
  metrics?: { [name: string]: number }
}
const facts = goldenJson<{ [group: string]: Group }>('losses/losses.json')
const golden = goldenTensors('losses/losses.safetensors')
const values = (name: string) => Array.from(golden.get(name)!.data)

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

/** Loss, metrics and gradient with respect to `x`, in f64. */
async function evaluated(
  x: number[],
  loss: (x: Tensor, of: (data: number[]) => Tensor) => { sum: Tensor; metrics: Tensor },
) {
  const made: Tensor[] = []
  const of = (data: number[]) => {
    const tensor = Tensor.from(device, Float64Array.from(data), [data.length])
    made.push(tensor)
    return tensor
  }
  const variable = of(x)
  variable.tracked = true
  const seed = fill(device, [1], { value: 1, dtype: 'f64' })
  using gradients = new Gradients()
  const tape = new Tape()
  const { sum, metrics } = tape.record(() => loss(variable, of))
  tape.backward(sum, seed, gradients)
  const result = {
    loss: await sum.item(),
    metrics: Array.from(await metrics.read()),
    gradient: Array.from(await gradients.get(variable)!.read()),
  }
  for (const tensor of [...made, seed, sum, metrics]) tensor.dispose()
  return result
}

/** Answers of B rows of T tokens, of which those in `mask` count. */
function answersOf(mask: number[], T: number) {
  const lengths = Array.from({ length: mask.length / T }, (_, b) =>
    mask.slice(b * T, (b + 1) * T).reduce((sum, one) => sum + one, 0),
  )
  // The losses take an answer's tokens to be its first ones.
  for (const [b, length] of lengths.entries()) {
    expect(mask.slice(b * T, (b + 1) * T)).toEqual(Array.from({ length: T }, (_, t) => (t < length ? 1 : 0)))
  }
  return { lengths, spans: Int32Array.from(lengths.flatMap((length, b) => [b * T, (b + 1) * T, length])) }
}

describe('policy loss', () => {
  const T = 11
  const mask = values('grpo_inputs.completion_mask')
  const { lengths, spans } = answersOf(mask, T)
  const B = lengths.length
  const tokens = lengths.reduce((sum, length) => sum + length, 0)

  /** What a token counts under each of TRL's ways of averaging. */
  function weightOf({ trl_loss_type: type, max_completion_length: most }: Group['config'], b: number): number {
    if (type === 'grpo') return 1 / (B * lengths[b]!)
    if (type === 'dr_grpo') return 1 / (B * most)
    return 1 / tokens
  }

  it.each(['grpo', 'grpo_nokl', 'dr_grpo', 'dapo', 'bnpo', 'gspo', 'cispo', 'grpo_two_sided'])(
    '%s has the loss, the gradient and the clipping of TRL',
    async (name) => {
      const { config, values: wanted, metrics: logged } = facts[`grpo_loss.${name}`]!
      const cispo = config.trl_loss_type === 'cispo'
      const options: PolicyLossOptions = {
        surrogate: cispo ? 'cispo' : config.importance_sampling_level === 'sequence' ? 'sequence' : 'clip',
        clipLow: config.epsilon_low,
        // TRL's cispo bounds the ratio by epsilon_high itself.
        clipHigh: cispo ? config.epsilon_high - 1 : config.epsilon_high,
        ratioCap: config.delta ?? 0,
        lossKl: config.beta > 0 ? 'k3' : 'none',
        lossKlCoefficient: config.beta,
      }
      const spansTensor = Tensor.from(device, spans, [B, 3])
      const rowsOf = (x: number[]) => x.map((value, i) => (mask[i] === 1 ? value : 0))
      const advantage = mask.map((_, i) => values('grpo_inputs.advantages')[Math.floor(i / T)]!)
      const weight = mask.map((one, i) => one * weightOf(config, Math.floor(i / T)))
      const { loss, gradient, metrics } = await evaluated(rowsOf(values('grpo_inputs.logps')), (logp, of) =>
        policyLoss(
          logp,
          {
            spans: spansTensor,
            old: of(rowsOf(values('grpo_inputs.old_logps'))),
            reference: of(rowsOf(values('grpo_inputs.ref_logps'))),
            advantage: of(advantage),
            weight: of(weight),
          },
          options,
        ),
      )
      spansTensor.dispose()
      expect(loss).toBeCloseTo(wanted.loss!, 10)
      const grad = values(`grpo_loss.${name}.grad_logps`)
      expect(largestDifference(gradient, grad)).toBeLessThan(1e-10 * Math.max(1, largest(grad)))
      if (config.trl_loss_type === 'bnpo') expect(metrics[1]).toBeCloseTo(logged!.kl!, 6)
      if (['dapo', 'bnpo'].includes(config.trl_loss_type)) {
        expect(metrics[3]).toBeCloseTo(logged!['clip_ratio/low_mean']!, 6)
        expect(metrics[4]).toBeCloseTo(logged!['clip_ratio/high_mean']!, 6)
      }
      if (cispo) expect(metrics[4]).toBeCloseTo(logged!.cispo_clip_ratio!, 6)
    },
  )

  it.each([
    [{ clipLow: 0 }, 'clipLow must be above 0 and at most 1; got 0'],
    [{ clipHigh: 0 }, 'clipHigh must be above 0; got 0'],
    [{ ratioCap: 1.1 }, 'ratioCap must be 0 or above 1 + clipHigh; got 1.1'],
    [{ lossKlCoefficient: -1 }, 'lossKlCoefficient must be at least 0; got -1'],
  ])('refuses %j', (wrong, message) => {
    const base = { surrogate: 'clip', clipLow: 0.2, clipHigh: 0.2, ratioCap: 0, lossKl: 'none' } as const
    const options = { ...base, lossKlCoefficient: 0, ...wrong }
    expect(() => checkPolicyOptions(options)).toThrowError(expect.objectContaining({ code: 'ERR_CONFIG', message }))
  })
})

describe('PPO', () => {
  const T = 11
  const mask = values('gae.mask')
  const { lengths, spans } = answersOf(mask, T)
  const tokens = lengths.reduce((sum, length) => sum + length, 0)
  const weight = mask.map((one) => one / tokens)
  const { config, values: wanted } = facts.ppo as unknown as {
    config: { cliprange: number; cliprange_value: number; vf_coef: number }
    values: { [name: string]: number }
  }
  const plain = { surrogate: 'clip', ratioCap: 0, lossKl: 'none', lossKlCoefficient: 0 } as const

  it('has the policy loss of the formula, its gradient and its statistics', async () => {
    const spansTensor = Tensor.from(device, spans, [lengths.length, 3])
    const { loss, gradient, metrics } = await evaluated(values('ppo.logps'), (logp, of) =>
      policyLoss(
        logp,
        {
          spans: spansTensor,
          old: of(values('gae.logp')),
          reference: of(values('gae.ref')),
          advantage: of(values('gae.whitened_unbiased')),
          weight: of(weight),
        },
        { ...plain, clipLow: config.cliprange, clipHigh: config.cliprange },
      ),
    )
    spansTensor.dispose()
    expect(loss).toBeCloseTo(wanted.policy_loss!, 12)
    expect(largestDifference(gradient, values('ppo.grad_logps'))).toBeLessThan(1e-12)
    expect(metrics[2]).toBeCloseTo(wanted.approx_kl!, 12)
    expect(metrics[3]! + metrics[4]!).toBeCloseTo(wanted.clipfrac!, 12)
  })

  it('has the clipped value loss of the formula, its gradient and its share of clipped values', async () => {
    const { loss, gradient, metrics } = await evaluated(values('ppo.new_values'), (x, of) =>
      valueLoss(
        x,
        { old: of(values('gae.values')), returns: of(values('gae.returns')), weight: of(weight) },
        { clip: config.cliprange_value, coefficient: config.vf_coef },
      ),
    )
    expect(metrics[0]).toBeCloseTo(wanted.value_loss!, 10)
    expect(loss).toBeCloseTo(config.vf_coef * wanted.value_loss!, 10)
    expect(metrics[1]).toBeCloseTo(wanted.value_clipfrac!, 12)
    // The reference's gradient is that of the value loss alone.
    const scaled = values('ppo.grad_values').map((value) => config.vf_coef * value)
    expect(largestDifference(gradient, scaled)).toBeLessThan(1e-10)
  })
})

describe('advantages', () => {
  it('GAE, returns and whitening are those of torch', () => {
    const { gamma, lam, kl_coef } = facts.gae!.config as unknown as { gamma: number; lam: number; kl_coef: number }
    const T = 11
    const { lengths } = answersOf(values('gae.mask'), T)
    const row = (name: string, b: number) => values(name).slice(b * T, b * T + lengths[b]!)
    const all = lengths.map((length, b) => {
      const [logp, ref] = [row('gae.logp', b), row('gae.ref', b)]
      const rewards = logp.map((p, t) => -kl_coef * klEstimate(p, ref[t]!, 'k1'))
      rewards[length - 1]! += values('gae.score')[b]!
      expect(largestDifference(rewards, row('gae.rewards', b))).toBeLessThan(1e-12)
      const made = gae({ rewards, values: row('gae.values', b) }, { gamma, lambda: lam })
      expect(largestDifference(made.advantages, row('gae.advantages', b))).toBeLessThan(1e-12)
      expect(largestDifference(made.returns, row('gae.returns', b))).toBeLessThan(1e-12)
      return made.advantages
    })
    for (const [b, whitened] of whiten(all).entries()) {
      expect(largestDifference(whitened, row('gae.whitened_unbiased', b))).toBeLessThan(1e-12)
    }
  })

  // Values computed with the code of open-instruct.
  it('GAE of open-instruct, with gamma 1 and lambda 0.95', () => {
    const options = { gamma: 1, lambda: 0.95 }
    const first = gae({ rewards: [0, 0, 0, 0, 0, 10], values: [0.1, 0.2, 0.3, 0.4, 0.5, 0] }, options)
    expect(largestDifference(first.advantages, [7.70154375, 8.001625, 8.3175, 8.65, 9, 10])).toBeLessThan(1e-12)
    const second = gae({ rewards: [-0.01, 0.02, -0.03, 10, 0, 0], values: [0.5, 0.4, 0.3, 0, 0, 0] }, options)
    expect(largestDifference(second.advantages, [8.089925, 8.6315, 9.17, 10, 0, 0])).toBeLessThan(1e-12)
    expect(
      largestDifference(whiten([Float64Array.of(1, 2, 3, 4)])[0]!, [-1.161895, -0.387298, 0.387298, 1.161895]),
    ).toBeLessThan(1e-6)
  })

  it.each([
    ['standard', 'adv_group'],
    ['batch', 'adv_batch'],
    ['mean', 'adv_none'],
  ] as const)('by group: %s is %s of TRL', (kind, name) => {
    const { groups, num_generations: G } = facts.grpo_advantages!.config as unknown as {
      groups: number
      num_generations: number
    }
    const rewards = values('grpo_advantages.rewards')
    const byGroup = Array.from({ length: groups }, (_, g) => rewards.slice(g * G, (g + 1) * G))
    expect(largestDifference(groupAdvantages(byGroup, kind).flat(), values(`grpo_advantages.${name}`))).toBeLessThan(
      1e-9,
    )
  })

  it('rloo is the reward less the mean of the others', () => {
    expect(groupAdvantages([[10, 0, 0, 10], [1]], 'rloo')).toEqual([
      [10 - 10 / 3, -20 / 3, -20 / 3, 10 - 10 / 3].map((x) => expect.closeTo(x, 12)),
      [0],
    ])
  })

  it('divergences are those of torch, and those of open-instruct', () => {
    const [logp, ref] = [values('kl_estimators.logp'), values('kl_estimators.ref')]
    const mask = values('kl_estimators.mask')
    for (const kind of ['k1', 'k2', 'k3'] as const) {
      const got = logp.map((p, i) => (mask[i] === 1 ? klEstimate(p, ref[i]!, kind) : 0))
      const wanted = values(`kl_estimators.${kind}`).map((value, i) => (mask[i] === 1 ? value : 0))
      expect(largestDifference(got, wanted)).toBeLessThan(1e-12)
    }
    expect(['k1', 'k2', 'k3'].map((kind) => klEstimate(-1, -1.5, kind as 'k1').toFixed(7))).toEqual([
      '0.5000000',
      '0.1250000',
      '0.1065307',
    ])
    expect(['k1', 'k2', 'k3'].map((kind) => klEstimate(-2, -1, kind as 'k1').toFixed(7))).toEqual([
      '-1.0000000',
      '0.5000000',
      '0.7182818',
    ])
  })

  it('refuses values of another length', () => {
    expect(() => gae({ rewards: [1, 2], values: [1] }, { gamma: 1, lambda: 1 })).toThrowError(
      /length of rewards, 2; got 1/,
    )
  })
})
