// Sequences that share what they begin with: every sum has the bits that it has alone, in every model family.
import { afterAll, beforeAll, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { type ScoredSequence, sequenceLogprobs } from '../../lib/evals/sequence_logprobs.js'
import { type CausalLm, loadModel } from '../../lib/models/index.js'
import { linearLogprob, openDevice, selfSegments } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { leaks, scope, Tensor, withoutTape } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenNames, modelFolder } from '../models/golden_model.js'

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
})

/** Examples that all have in common, questions that some have, choices; a twin, and one that is a beginning. */
function sequences(V: number): ScoredSequence[] {
  const random = new Random(5)
  const draw = (length: number) => Array.from({ length }, () => Math.floor(random.uniform() * V))
  const examples = draw(70)
  const made: ScoredSequence[] = []
  for (let q = 0; q < 4; q++) {
    const question = [...examples, ...draw(3 + 9 * q)]
    for (const length of [1, 4, 7]) {
      made.push({ ids: Int32Array.from([...question, ...draw(length)]), from: question.length })
    }
  }
  const last = made.at(-1)!
  made.push(last, { ids: last.ids.slice(0, -2), from: last.from - 3 }, { ids: Int32Array.from(draw(2)), from: 1 })
  return made
}

/** One sequence in a pass of its own, by the ops themselves. */
async function alone(model: CausalLm, { ids, from }: ScoredSequence): Promise<number> {
  const N = ids.length
  const { data, shape } = selfSegments([0, N])
  using logp = withoutTape(() =>
    scope(() => {
      const hidden = model.hidden({
        ids: Tensor.from(device, ids, [N]),
        positions: Tensor.from(device, Int32Array.from(ids.keys()), [N]),
        segments: Tensor.from(device, data, shape),
      })
      const next = Tensor.from(device, Int32Array.from([...ids.subarray(1), -100]), [N])
      return linearLogprob(hidden, model.head, next).logp
    }),
  )
  const values = (await logp.read()) as Float32Array
  return values.slice(from - 1, N - 1).reduce((sum, value) => sum + value, 0)
}

it.each(goldenNames)('%s', async (name) => {
  using model = await loadModel(device, modelFolder(name))
  const given = sequences(model.config.V)
  const wanted: number[] = []
  for (const one of given) wanted.push(await alone(model, one))
  expect(wanted.every((sum) => sum < 0)).toBe(true)
  for (const tokens of [1, 200, 4096]) {
    expect(Array.from(await sequenceLogprobs(model, given, { tokens })), `${tokens}`).toEqual(wanted)
  }
})

it('ends when it is told to', async () => {
  using model = await loadModel(device, modelFolder('llama_mha_tied'))
  const options = { tokens: 64, signal: AbortSignal.abort() }
  await expect(sequenceLogprobs(model, sequences(100), options)).rejects.toMatchObject({ code: 'ERR_ABORTED' })
})
