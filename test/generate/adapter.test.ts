// Generation from a model with an adapter: decoding is recorded and replayed, the adapter's layers with it.
import { expect, it } from 'vitest'
import { type Generated, generateAll } from '../../lib/generate/index.js'
import { addAdapter, loadModel } from '../../lib/models/index.js'
import { linearLogprob, openDevice } from '../../lib/ops/index.js'
import { scope, Tensor } from '../../lib/tensor/index.js'
import { base, fillB, options } from '../models/adapted_model.js'
import { modelFolder, rowsOnDevice } from '../models/golden_model.js'

const request = { prompt: Int32Array.of(5, 17, 80, 41), maxTokens: 24, seed: 3 }

it.each([
  ['LoRA', { ...options, dropout: 0.3 }],
  ['DoRA', { ...options, decomposed: true }],
])('gives every token the bits of a pass over the whole sequence: %s', async (_, spec) => {
  using device = openDevice({ threads: 2 })
  {
    using model = await loadModel(device, modelFolder(base))
    const [[plain]] = (await generateAll(model, [request])) as [[Generated]]
    addAdapter(model, spec)
    fillB(model)
    const [[adapted]] = (await generateAll(model, [request])) as [[Generated]]
    expect([...adapted.logprobs]).not.toEqual([...plain.logprobs])
    const ids = Int32Array.of(...request.prompt, ...adapted.tokens)
    const positions = Int32Array.from(ids, (_, i) => i)
    using logp = scope(() => {
      const hidden = model.hidden(rowsOnDevice(device, { ids, positions, cuSeqlens: [0, ids.length] }))
      const next = Tensor.from(device, Int32Array.of(...ids.subarray(1), -100), [ids.length])
      return linearLogprob(hidden, model.head, next).logp
    })
    expect(await logp.read().then((values) => [...values.slice(3, -1)])).toEqual([...adapted.logprobs])
  }
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
})
