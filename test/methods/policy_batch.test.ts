// Answers in rows: whatever else is in a row, however often a prompt is repeated, an answer has the same bits as alone.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import {
  type PolicyGroup,
  policyRows,
  rowTokensOf,
  sampleLogprobs,
  sampleValues,
} from '../../lib/methods/policy_batch.js'
import { loadModel, loadRewardModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenNames, modelFolder } from '../models/golden_model.js'
import { goldenModel, goldenTensors, largestDifference } from '../train/golden_tensors.js'

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

interface Sample {
  tokens: Int32Array
}

/** Prompts of 1 to 70 tokens with 1 to 5 answers of 1 to 40. */
function randomGroups(V: number): PolicyGroup<Sample>[] {
  const random = new Random(8)
  const draw = (length: number) => Int32Array.from({ length }, () => random.integer(0, V))
  return Array.from({ length: 6 }, (_, i) => ({
    prompt: draw(1 + 14 * i),
    samples: Array.from({ length: 1 + (i % 5) }, (_, s) => ({ tokens: draw(1 + ((13 * s + 7 * i) % 40)) })),
  }))
}

describe.each(goldenNames)('%s', (name) => {
  it('gives every answer the log-probabilities that it has alone', async () => {
    using model = await loadModel(device, modelFolder(name))
    const groups = randomGroups(model.config.V)
    const options = { temperature: 1 }
    const alone = new Map<Sample, Float32Array>()
    for (const { prompt, samples } of groups) {
      for (const sample of samples) {
        const found = await sampleLogprobs(model, [{ prompt, samples: [sample] }], { ...options, tokens: 4096 })
        alone.set(sample, found.get(sample)!)
      }
    }
    for (const tokens of [1, 60, 300]) {
      expect(await sampleLogprobs(model, groups, { ...options, tokens }), `${tokens}`).toEqual(alone)
    }
  })
})

it('divides a group that does not fit, and loses no answer', () => {
  const groups = randomGroups(50)
  const micros = [...policyRows(groups, 80)]
  expect(micros.flatMap(({ samples }) => samples).length).toBe(groups.flatMap(({ samples }) => samples).length)
  expect(new Set(micros.flatMap(({ samples }) => samples)).size).toBe(groups.flatMap(({ samples }) => samples).length)
  const longest = Math.max(...groups.map(({ prompt, samples }) => rowTokensOf({ prompt, samples: [samples[0]!] })), 80)
  for (const { rows, samples } of micros) {
    expect(rows.inputIds.length).toBeLessThanOrEqual(longest + 40)
    for (const [s, { tokens }] of samples.entries()) {
      const begin = rows.spans[3 * s]!
      expect(rows.labels.subarray(begin, begin + tokens.length)).toEqual(tokens)
      expect(rows.spans[3 * s + 1]).toBe(begin + tokens.length + 1)
    }
  }
})

it('values are the scores of transformers at every token', async () => {
  const golden = goldenTensors('model_io/llama_reward.safetensors')
  const { data: ids, shape } = golden.get('input_ids')!
  const mask = golden.get('attention_mask')!.data
  const wanted = golden.get('token_scores')!.data
  const [rows, T] = shape as [number, number]
  using model = await loadRewardModel(device, goldenModel('llama_reward'), { dtype: 'f32' })
  const groups = Array.from({ length: rows }, (_, r) => {
    const length = Array.from(mask.subarray(r * T, (r + 1) * T)).reduce((sum, one) => sum + one, 0)
    const row = Int32Array.from(ids.subarray(r * T, r * T + length))
    return { prompt: row.subarray(0, 3), samples: [{ tokens: row.subarray(3) }] }
  })
  const found = await sampleValues(model, groups, { tokens: 64, after: () => true })
  for (const [r, { samples }] of groups.entries()) {
    const length = samples[0]!.tokens.length
    // The state before token t is that of the token before it.
    const scores = wanted.subarray(r * T + 2, r * T + 3 + length)
    expect(largestDifference(found.get(samples[0]!)!, scores)).toBeLessThan(1e-5)
  }
})
