// A reward model against transformers: scores at the last token and at every token, the Bradley-Terry loss with all
// gradients, and folders in and out.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { rewardLoss } from '../../lib/losses/reward.js'
import { loadModel, loadRewardModel, type PackedRows, type RewardModel, saveModel } from '../../lib/models/index.js'
import { fill, openDevice, selfSegments } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Gradients, reshape, scope, Tape, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { type GradientFacts, goldenTensors, modelFolder } from './golden_model.js'

interface RewardFacts {
  loss_bradley_terry: number
  rewards: { suggested_atol: number }
  token_scores: { suggested_atol: number }
  grads: { params: { [name: string]: GradientFacts } }
}

const folder = modelFolder('llama_reward')
const golden = goldenTensors('llama_reward')
const facts: RewardFacts = JSON.parse(
  await readFile(new URL('../golden/model_io/llama_reward.json', import.meta.url), 'utf8'),
)
const [B, T] = golden.get('input_ids')!.shape as [number, number]
const lengths = Array.from({ length: B }, (_, b) =>
  Array.from(golden.get('attention_mask')!.data.slice(b * T, (b + 1) * T)).reduce((sum, bit) => sum + bit, 0),
)

let device: Device
let directory: string
beforeAll(async () => {
  device = openDevice(deviceUnderTest)
  directory = await mkdtemp(join(tmpdir(), 'reward-'))
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
  await rm(directory, { recursive: true })
})

/** The given rows of the reference end to end, without padding. */
function packed(rows: readonly number[]): { rows: PackedRows; ends: number[] } {
  const ids: number[] = []
  const positions: number[] = []
  const ends: number[] = []
  for (const row of rows) {
    for (let t = 0; t < lengths[row]!; t++) {
      ids.push(golden.get('input_ids')!.data[row * T + t]!)
      positions.push(t)
    }
    ends.push(ids.length)
  }
  const { data, shape } = selfSegments([0, ...ends])
  return {
    ends,
    rows: {
      ids: Tensor.from(device, Int32Array.from(ids), [ids.length]),
      positions: Tensor.from(device, Int32Array.from(positions), [ids.length]),
      segments: Tensor.from(device, data, shape),
    },
  }
}

async function scoresAt(model: RewardModel, rows: readonly number[], pick: (ends: number[]) => number[]) {
  using scores = scope(() => {
    const { rows: all, ends } = packed(rows)
    const at = pick(ends)
    return model.scores(all, Tensor.from(device, Int32Array.from(at), [at.length]))
  })
  return await scores.read()
}

describe('a reward model of transformers', () => {
  let model: RewardModel
  beforeAll(async () => {
    model = await loadRewardModel(device, folder, { trainable: true })
  })
  afterAll(() => model.dispose())

  it('scores an answer at its last token, whichever answers share a pass', async () => {
    const last = (ends: number[]) => ends.map((end) => end - 1)
    const scores = await scoresAt(model, [0, 1, 2, 3], last)
    const wanted = golden.get('rewards')!.data
    for (let b = 0; b < B; b++) {
      expect(Math.abs(scores[b]! - wanted[b]!)).toBeLessThanOrEqual(facts.rewards.suggested_atol)
      expect((await scoresAt(model, [b], last))[0]).toBe(scores[b])
    }
  })

  it('scores every token, as a value function does', async () => {
    for (let b = 0; b < B; b++) {
      const scores = await scoresAt(model, [b], ([end]) => Array.from({ length: end! }, (_, t) => t))
      for (let t = 0; t < lengths[b]!; t++) {
        const wanted = golden.get('token_scores')!.data[b * T + t]!
        expect(Math.abs(scores[t]! - wanted)).toBeLessThanOrEqual(facts.token_scores.suggested_atol)
      }
    }
  })

  it('has the loss and all gradients of the Bradley-Terry loss', async () => {
    using gradients = new Gradients()
    // Rows 0 and 1 of the reference are chosen, 2 and 3 rejected.
    const { rows, ends } = packed([0, 2, 1, 3])
    const at = Tensor.from(
      device,
      Int32Array.from(ends, (end) => end - 1),
      [4],
    )
    const seed = fill(device, [1], { value: 0.5, dtype: 'f32' })
    const tape = new Tape()
    const { sum, metrics } = tape.record(() => rewardLoss(reshape(model.scores(rows, at), [2, 2]), { centering: 0 }))
    tape.backward(sum, seed, gradients)
    expect((await sum.item()) / 2).toBeCloseTo(facts.loss_bradley_terry, 5)
    const reference = goldenTensors('llama_reward.grads')
    expect([...model.parameters().keys()].sort()).toEqual(Object.keys(facts.grads.params).sort())
    for (const [name, parameter] of model.parameters()) {
      const stored = [...reference.keys()].find((key) => key.endsWith(name))!
      const wanted = reference.get(stored)!.data
      const got = (await gradients.get(parameter)!.read()).subarray(0, wanted.length)
      const worst = Array.from(got).reduce((most, value, i) => Math.max(most, Math.abs(value - wanted[i]!)), 0)
      expect(worst, name).toBeLessThanOrEqual(facts.grads.params[name]!.suggested_atol)
    }
    for (const tensor of [rows.ids, rows.positions, rows.segments, at, seed, sum, metrics]) tensor.dispose()
  })

  it('is saved as it was, with one label', async () => {
    const saved = join(directory, 'saved')
    await saveModel(model, saved)
    const config = JSON.parse(await readFile(join(saved, 'config.json'), 'utf8'))
    expect(config).toMatchObject({
      architectures: ['LlamaForSequenceClassification'],
      id2label: { 0: 'LABEL_0' },
      label2id: { LABEL_0: 0 },
      pad_token_id: 362,
    })
    using again = await loadRewardModel(device, saved)
    expect([...again.parameters().keys()]).toEqual([...model.parameters().keys()])
    for (const [name, parameter] of again.parameters()) {
      expect(await parameter.read(), name).toEqual(await model.parameters().get(name)!.read())
    }
  })
})

describe('a new head', () => {
  const base = modelFolder('llama_gqa_rope3')

  it('has the deviation asked for, the same for every precision, and the body of the language model', async () => {
    const head = (D: number) => ({ seed: 3, deviation: 1 / Math.sqrt(D + 1) })
    using model = await loadRewardModel(device, base, { head })
    using other = await loadRewardModel(device, base, { head })
    using language = await loadModel(device, base)
    const weight = await model.score.weight.read()
    expect(await other.score.weight.read()).toEqual(weight)
    const D = model.config.D
    const deviation = Math.sqrt(Array.from(weight).reduce((sum, x) => sum + x * x, 0) / D)
    expect(Math.abs(deviation * Math.sqrt(D + 1) - 1)).toBeLessThan(0.4)
    expect(await model.decoder.embedding.weight.read()).toEqual(await language.decoder.embedding.weight.read())
    using zeros = await loadRewardModel(device, base, { head: () => ({ seed: 3, deviation: 0 }) })
    expect((await zeros.score.weight.read()).every((x) => x === 0)).toBe(true)
  })

  it('is not made up: a language model without one is refused', async () => {
    await expect(loadRewardModel(device, base)).rejects.toMatchObject({ code: 'ERR_MODEL' })
    await expect(loadModel(device, folder)).rejects.toMatchObject({ code: 'ERR_MODEL' })
  })

  it('must have one label', async () => {
    const two = join(directory, 'two')
    using model = await loadRewardModel(device, folder)
    await saveModel(model, two)
    const path = join(two, 'config.json')
    const config = JSON.parse(await readFile(path, 'utf8'))
    await writeFile(path, JSON.stringify({ ...config, id2label: { 0: 'a', 1: 'b' } }))
    await expect(loadRewardModel(device, two)).rejects.toThrow(/one label; config.json has 2/)
  })
})
