// Prompts that both answers of a pair follow, computed once: every answer keeps its bits, in every model family, with
// prompts shorter and longer than a block of keys.
import { afterAll, beforeAll, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { EncodedBuilder } from '../../lib/data/encoded.js'
import { EncodedPairs } from '../../lib/data/pairs.js'
import { answerLogprobs } from '../../lib/methods/answer_logprobs.js'
import { loadModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenNames, modelFolder } from '../models/golden_model.js'

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

/** Pairs with prompts of 3 to 156 tokens, and answers of 1 to 64. */
function randomPairs(V: number, sharePrompt: boolean): EncodedPairs {
  const random = new Random(3)
  const draw = (length: number) => Array.from({ length }, () => Math.floor(random.uniform() * V))
  const builder = new EncodedBuilder()
  for (let i = 0; i < 10; i++) {
    const prompt = draw(3 + 17 * i)
    for (const length of [1 + 7 * i, 60 - 4 * i]) {
      const ids = Int32Array.from([...prompt, ...draw(length)])
      builder.append({ ids, mask: Uint8Array.from(ids, (_, t) => Number(t >= prompt.length)) })
    }
  }
  return new EncodedPairs(builder.finish(), sharePrompt)
}

it.each(goldenNames)('%s', async (name) => {
  using model = await loadModel(device, modelFolder(name))
  const { V } = model.config
  const [apart, shared] = [randomPairs(V, false), randomPairs(V, true)]
  expect(shared.sharedOf(9)).toBe(155)
  const wanted = await answerLogprobs(model, apart, { tokens: 300 })
  expect(wanted.every((sum) => sum < 0)).toBe(true)
  for (const tokens of [1, 300]) expect(await answerLogprobs(model, shared, { tokens }), `${tokens}`).toEqual(wanted)
})
