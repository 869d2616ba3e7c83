import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type CausalLm, loadModel } from '../../lib/models/index.js'
import { fill, linear, linearLogprob, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Gradients, leaks, scope, Tape, Tensor } from '../../lib/tensor/index.js'
import {
  type CaseName,
  cases,
  deviation,
  type GoldenFacts,
  goldenFacts,
  goldenNames,
  goldenTensors,
  modelFolder,
  packCase,
  rowsOnDevice,
} from './golden_model.js'

let device: Device
beforeAll(() => {
  device = openDevice({ threads: 2 })
})
afterAll(() => device.close())

/** Logits [N,V] and log-probabilities [N] of the rows of a case. */
async function outputs(model: CausalLm, name: CaseName, tensors: ReturnType<typeof goldenTensors>) {
  const packed = packCase(tensors, name)
  const made = scope(() => {
    const hidden = model.hidden(rowsOnDevice(device, packed))
    const target = Tensor.from(device, packed.targets, [packed.targets.length])
    return { logits: linear(hidden, model.head), logp: linearLogprob(hidden, model.head, target).logp }
  })
  const logits = (await made.logits.read()) as Float32Array
  const logp = (await made.logp.read()) as Float32Array
  made.logits.dispose()
  made.logp.dispose()
  return { packed, logits, logp }
}

/** Gradients of the mean loss of a case, by parameter name. */
async function gradients(
  model: CausalLm,
  name: CaseName,
  options: { facts: GoldenFacts; tensors: ReturnType<typeof goldenTensors>; checkpoint?: boolean },
): Promise<{ values: Map<string, Float32Array>; peakBytes: number }> {
  const packed = packCase(options.tensors, name)
  const rows = rowsOnDevice(device, packed)
  const target = Tensor.from(device, packed.targets, [packed.targets.length])
  const share = -1 / options.facts.cases[name].target_tokens
  const seed = fill(device, [packed.targets.length], { value: share, dtype: 'f32' })
  const table = new Gradients()
  const tape = new Tape()
  device.resetPeak()
  const logp = tape.record(() => {
    const hidden = model.hidden(rows, { checkpoint: options.checkpoint })
    return linearLogprob(hidden, model.head, target).logp
  })
  tape.backward(logp, seed, table)
  const values = new Map<string, Float32Array>()
  for (const [parameter, tensor] of model.parameters()) {
    values.set(parameter, (await table.get(tensor)!.read()) as Float32Array)
  }
  for (const tensor of [rows.ids, rows.positions, rows.segments, target, seed, logp]) tensor.dispose()
  table.dispose()
  return { values, peakBytes: device.stats().peakBytes }
}

describe.each(goldenNames)('%s', (name) => {
  const facts = goldenFacts(name)
  const tensors = goldenTensors(name)
  let model: CausalLm
  beforeAll(async () => {
    model = await loadModel(device, modelFolder(name), { dtype: 'f32', trainable: true })
  })
  afterAll(() => model.dispose())

  it.each(cases)('has the logits and log-probabilities of the reference: %s', async (caseName) => {
    const { packed, logits, logp } = await outputs(model, caseName, tensors)
    const wanted = facts.cases[caseName]
    const [, T, V] = wanted.shape as [number, number, number]
    const reference = tensors.get(`${caseName}.logits`)!.data
    const rows = packed.source.flatMap((i) => [...reference.subarray(i * V, (i + 1) * V)])
    expect(deviation(logits, rows).max).toBeLessThanOrEqual(wanted.logits.suggested_atol)
    const logprobs = tensors.get(`${caseName}.logprobs`)!.data
    const wantedLogp = packed.source.map((i) => (i % T === T - 1 ? 0 : logprobs[i - Math.floor(i / T)]!))
    expect(deviation(logp, wantedLogp).max).toBeLessThanOrEqual(wanted.logprobs.suggested_atol)
    const sum = -logp.reduce((a, b) => a + b, 0)
    expect(Math.abs(sum - wanted.ce_sum)).toBeLessThanOrEqual(wanted.logprobs.suggested_atol * wanted.target_tokens)
  })

  it.each(['right_pad', 'packed'] as const)('has the gradients of the reference: %s', async (caseName) => {
    const stored = goldenTensors(`${name}.grads`)
    const { values } = await gradients(model, caseName, { facts, tensors })
    const wanted = facts.grads[caseName]
    // torch gives the embedding row of the padding token no gradient even where the token stands in a text, as it does in
    // one case here; there is no such exception in this engine, and so no sum over that table to compare with.
    const holdsPadding = packCase(tensors, caseName).ids.includes(model.config.padId ?? -1)
    expect([...values.keys()].sort()).toEqual(Object.keys(wanted.params).sort())
    let squares = 0
    for (const [parameter, facts] of Object.entries(wanted.params)) {
      const got = values.get(parameter)!
      const reference = stored.get(`${caseName}:${parameter}`)!.data
      const difference = deviation(got.subarray(0, reference.length), reference).max
      expect(difference, `${parameter} (${facts.stored})`).toBeLessThanOrEqual(facts.suggested_atol)
      const l2 = Math.sqrt(got.reduce((a, b) => a + b * b, 0))
      const exempt = holdsPadding && parameter === 'model.embed_tokens.weight'
      if (!exempt) {
        expect(Math.abs(l2 - facts.l2), parameter).toBeLessThanOrEqual(facts.suggested_atol * Math.sqrt(got.length))
      }
      squares += (exempt ? facts.l2 : l2) ** 2
    }
    expect(Math.sqrt(squares)).toBeCloseTo(wanted.global_norm, 4)
  })

  it('has bit-equal gradients with checkpointing, in less memory', async () => {
    const plain = await gradients(model, 'right_pad', { facts, tensors })
    const thrifty = await gradients(model, 'right_pad', { facts, tensors, checkpoint: true })
    expect(thrifty.values).toEqual(plain.values)
    expect(thrifty.peakBytes).toBeLessThan(plain.peakBytes)
  })
})

it('frees everything', async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
})
