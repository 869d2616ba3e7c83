// Adapters written by peft: logits, loss, gradients and merged weights of the reference.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  adapterParameters,
  type CausalLm,
  loadAdapter,
  loadModel,
  mergeAdapter,
  withAdapter,
} from '../../lib/models/index.js'
import { crossEntropy, fill, linear, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { type Checkpointing, Gradients, leaks, scope, Tape, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenPath, readGolden, readGoldenJson } from '../golden_tensors.js'
import {
  deviation,
  differing,
  goldenTensors,
  modelFolder,
  packCase,
  parameterValues,
  rowsOnDevice,
} from './golden_model.js'

interface Compared {
  suggested_atol: number
}

interface Variant {
  loss: number
  logits: Compared
  trainable_parameters: number
  grads: { [name: string]: Compared & { shape: number[] } }
  merged: { [name: string]: Compared }
}

const base = 'llama_gqa_rope3'
const { variants } = readGoldenJson<{ variants: { [name: string]: Variant } }>('lora/lora.json')
const packed = packCase(goldenTensors(base), 'right_pad')
const targets = packed.targets.filter((target) => target >= 0).length
const adapterFolder = (name: string) => goldenPath(`lora/${name}/adapter`)

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

/** Logits [N,V] of the rows of the case. */
async function logitsOf(model: CausalLm, enabled = true): Promise<Float32Array> {
  const logits = withAdapter(model, enabled, () =>
    scope(() => linear(model.hidden(rowsOnDevice(device, packed)), model.head)),
  )
  try {
    return (await logits.read()) as Float32Array
  } finally {
    logits.dispose()
  }
}

/** Loss and gradients of the mean loss of the case, by name; no other gradient exists. */
async function gradientsOf(model: CausalLm, { checkpoint = 'none' as Checkpointing } = {}) {
  const rows = rowsOnDevice(device, packed)
  const target = Tensor.from(device, packed.targets, [packed.targets.length])
  const seed = fill(device, [1], { value: 1 / targets, dtype: 'f32' })
  using table = new Gradients()
  const tape = new Tape()
  const loss = tape.record(() => crossEntropy(model.hidden(rows, { checkpoint }), model.head, { target }).loss)
  tape.backward(loss, seed, table)
  const values = new Map<string, Float32Array>()
  const parameters = adapterParameters(model)
  for (const [name, tensor] of parameters) values.set(name, (await table.get(tensor)!.read()) as Float32Array)
  const others = [...table.entries()].filter(([tensor]) => ![...parameters.values()].includes(tensor))
  const mean = (await loss.item()) / targets
  for (const tensor of [rows.ids, rows.positions, rows.segments, target, seed, loss]) tensor.dispose()
  return { loss: mean, values, others: others.length }
}

describe.each(['lora_all_linear', 'lora_rs_qv', 'lora_dora'])('%s', (name) => {
  const facts = variants[name]!
  const io = readGolden(`lora/${name}/io.safetensors`)
  const V = io.get('logits')!.shape[2]!
  const wantedLogits = packed.source.flatMap((i) => [...io.get('logits')!.values.subarray(i * V, (i + 1) * V)])

  it('has the logits of the reference, and without the adapter those of the base, bit for bit', async () => {
    using model = await loadModel(device, modelFolder(base))
    const plain = await logitsOf(model)
    await loadAdapter(model, adapterFolder(name))
    expect(deviation(await logitsOf(model), wantedLogits).max).toBeLessThanOrEqual(facts.logits.suggested_atol)
    expect(deviation(plain, wantedLogits).max).toBeGreaterThan(0.1)
    const off = await logitsOf(model, false)
    expect(differing(new Map([['off', off]]), new Map([['off', plain]]))).toEqual([])
  })

  it('has the loss and the gradients of the reference, and none of the base', async () => {
    using model = await loadModel(device, modelFolder(base))
    await loadAdapter(model, adapterFolder(name), { trainable: true })
    const { loss, values, others } = await gradientsOf(model)
    expect(others).toBe(0)
    expect(Math.abs(loss - facts.loss)).toBeLessThan(1e-5)
    // In the file of an adapter these end before the last part.
    const inFile = (name: string) => name.replace(/(?<=lora_magnitude_vector)\.weight$/, '')
    expect([...values.keys()].sort()).toEqual(Object.keys(facts.grads).map(inFile).sort())
    for (const [parameter, { suggested_atol }] of Object.entries(facts.grads)) {
      const wanted = io.get(`grad:${parameter}`)!.values
      expect(deviation(values.get(inFile(parameter))!, wanted).max, parameter).toBeLessThanOrEqual(suggested_atol)
    }
    for (const checkpoint of ['selective', 'full'] as const) {
      const thrifty = await gradientsOf(model, { checkpoint })
      expect(differing(thrifty.values, values), checkpoint).toEqual([])
      expect(thrifty.others).toBe(0)
    }
  })

  it('merges into the weights of the reference', async () => {
    using model = await loadModel(device, modelFolder(base))
    const before = await parameterValues(model)
    await loadAdapter(model, adapterFolder(name))
    await mergeAdapter(model)
    expect(model.decoder.lora).toBeUndefined()
    expect(adapterParameters(model).size).toBe(0)
    const after = await parameterValues(model)
    for (const [parameter, { suggested_atol }] of Object.entries(facts.merged)) {
      const wanted = io.get(`merged:${parameter}`)!.values
      expect(deviation(after.get(parameter)!, wanted).max, parameter).toBeLessThanOrEqual(suggested_atol)
    }
    expect(differing(after, before).sort()).toEqual(Object.keys(facts.merged).sort())
    expect(deviation(await logitsOf(model), wantedLogits).max).toBeLessThanOrEqual(facts.logits.suggested_atol)
  })
})

it.each(['lora_all_linear', 'lora_dora'])(
  '%s is as near to the truth with a bf16 base as that base is',
  async (name) => {
    const io = readGolden(`lora/${name}/io.safetensors`)
    const V = io.get('logits')!.shape[2]!
    const wanted = packed.source.flatMap((i) => [...io.get('logits')!.values.subarray(i * V, (i + 1) * V)])
    const plain = goldenTensors(base).get('right_pad.logits')!.data
    const wantedPlain = packed.source.flatMap((i) => [...plain.subarray(i * V, (i + 1) * V)])
    using model = await loadModel(device, modelFolder(base), { dtype: 'bf16' })
    const error = (got: Float32Array, truth: number[]) =>
      deviation(got, truth).rms / Math.sqrt(truth.reduce((sum, x) => sum + x * x, 0) / truth.length)
    const ofBase = error(await logitsOf(model), wantedPlain)
    await loadAdapter(model, adapterFolder(name))
    for (const { matrices } of model.decoder.lora!.layers.values()) expect(matrices.a.dtype).toBe('f32')
    const ofAdapter = error(await logitsOf(model), wanted)
    expect(ofAdapter).toBeLessThan(3 * ofBase)
    await mergeAdapter(model)
    expect(model.dtype).toBe('bf16')
    expect(error(await logitsOf(model), wanted)).toBeLessThan(3 * ofBase)
  },
)
