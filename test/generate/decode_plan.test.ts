import { describe, expect, it } from 'vitest'
import { planRows } from '../../lib/generate/decode_plan.js'
import { generateAll } from '../../lib/generate/index.js'
import { loadModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { modelFolder } from '../models/golden_model.js'

describe('rows of a plan on a GPU', () => {
  it('are enough, few too many, and of few sizes', () => {
    const counts = Array.from({ length: 512 }, (_, i) => i + 1)
    for (const count of counts) {
      const rows = planRows(count)
      expect(rows).toBeGreaterThanOrEqual(count)
      expect(rows).toBeLessThan(count <= 16 ? 2 * count : 1.25 * count)
    }
    expect(new Set(counts.map(planRows)).size).toBeLessThan(32)
    expect([1, 2, 3, 9, 16, 17, 33, 100, 256].map(planRows)).toEqual([1, 2, 4, 16, 16, 20, 40, 112, 256])
  })

  it('that are too many change nothing, also when sequences end one by one', async () => {
    using device = openDevice(deviceUnderTest)
    using model = await loadModel(device, modelFolder('llama_gqa_rope3'))
    const requests = [9, 3, 6, 4, 7].map((maxTokens, i) => ({
      prompt: Int32Array.from({ length: 3 + 2 * i }, (_, j) => (5 * i + 7 * j + 3) % 50),
      maxTokens,
      stopIds: [],
      seed: i,
    }))
    const together = await generateAll(model, requests, { slots: 5 })
    const alone = []
    for (const request of requests) alone.push(...(await generateAll(model, [request], { slots: 1 })))
    const texts = (results: typeof together) => results.map(([one]) => [[...one!.tokens], [...one!.logprobs]])
    expect(texts(together)).toEqual(texts(alone))
    expect(together.map(([one]) => one!.tokens.length)).toEqual([9, 3, 6, 4, 7])
  })
})
