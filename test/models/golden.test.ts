import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type CausalLm, loadModel } from '../../lib/models/index.js'
import { crossEntropy, fill, linear, linearLogprob, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { type Checkpointing, Gradients, leaks, scope, Tape, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest, hasBf16Products } from '../device_under_test.js'
import {
  type CaseName,
  cases,
  deviation,
  differing,
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
  device = openDevice(deviceUnderTest)
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
  options: { facts: GoldenFacts; tensors: ReturnType<typeof goldenTensors>; checkpoint?: Checkpointing },
): Promise<{ values: Map<string, Float32Array> }> {
  const packed = packCase(options.tensors, name)
  const { device } = model
  const rows = rowsOnDevice(device, packed)
  const target = Tensor.from(device, packed.targets, [packed.targets.length])
  const share = -1 / options.facts.cases[name].target_tokens
  const seed = fill(device, [packed.targets.length], { value: share, dtype: 'f32' })
  const table = new Gradients()
  const tape = new Tape()
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
  return { values }
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
    // torch gives the embedding row of the padding token no gradient even where the token stands in a text, as it does
    // in one case here; there is no such exception in this engine, and so no sum over that table to compare with.
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

  it('has the same gradients through the fused loss, added up over two micro-batches', async () => {
    const stored = goldenTensors(`${name}.grads`)
    const packed = packCase(tensors, 'packed')
    using table = new Gradients()
    const rows = rowsOnDevice(device, packed)
    const target = Tensor.from(device, packed.targets, [packed.targets.length])
    const seed = fill(device, [1], { value: 1, dtype: 'f32' })
    seed.unit = true
    for (let micro = 0; micro < 2; micro++) {
      const tape = new Tape({ into: table, unitSeed: true })
      const loss = tape.record(() => crossEntropy(model.hidden(rows), model.head, { target }).loss)
      tape.backward(loss, seed, table)
      loss.dispose()
    }
    for (const tensor of [rows.ids, rows.positions, rows.segments, target, seed]) tensor.dispose()
    const count = 2 * facts.cases.packed.target_tokens
    for (const [parameter, tensor] of model.parameters()) {
      const reference = stored.get(`packed:${parameter}`)!.data
      const sums = (await table.get(tensor)!.read()) as Float32Array
      const means = sums.subarray(0, reference.length).map((value) => value / count)
      const limit = facts.grads.packed.params[parameter]!.suggested_atol
      expect(deviation(means, reference).max, parameter).toBeLessThanOrEqual(limit)
    }
  })

  it.each(['f32', 'bf16'] as const)('has bit-equal gradients in every mode of checkpointing: %s', async (dtype) => {
    using own = await loadModel(device, modelFolder(name), { dtype, trainable: true })
    const plain = await gradients(own, 'right_pad', { facts, tensors })
    for (const checkpoint of ['selective', 'full'] as const) {
      const thrifty = await gradients(own, 'right_pad', { facts, tensors, checkpoint })
      expect(differing(thrifty.values, plain.values), checkpoint).toEqual([])
    }
  })
})

describe('bf16', () => {
  const name = 'llama_bf16'
  const facts = goldenFacts(name)
  const tensors = goldenTensors(name)
  let model: CausalLm
  beforeAll(async () => {
    model = await loadModel(device, modelFolder(name), { trainable: true })
  })
  afterAll(() => model.dispose())

  it.each(cases)('is as near to the truth as the reference library in bf16: %s', async (caseName) => {
    const { packed, logits, logp } = await outputs(model, caseName, tensors)
    const { shape, logits: wanted, ce_sum, target_tokens } = facts.cases[caseName]
    const V = shape[2]!
    const reference = tensors.get(`${caseName}.logits`)!.data
    const { max, rms } = deviation(
      logits,
      packed.source.flatMap((i) => [...reference.subarray(i * V, (i + 1) * V)]),
    )
    expect(rms).toBeLessThanOrEqual(1.5 * wanted.bf16_deviation!.rms)
    expect(max).toBeLessThanOrEqual(2 * wanted.bf16_deviation!.max_abs)
    const sum = -logp.reduce((a, b) => a + b, 0)
    expect(Math.abs(sum - ce_sum) / target_tokens).toBeLessThan(wanted.bf16_deviation!.rms)
  })

  it('has the gradients of the reference within a few roundings', async () => {
    const stored = goldenTensors(`${name}.grads`)
    const { values } = await gradients(model, 'packed', { facts, tensors })
    for (const [parameter, wanted] of Object.entries(facts.grads.packed.params)) {
      const reference = stored.get(`packed:${parameter}`)!.data
      const { rms } = deviation(values.get(parameter)!.subarray(0, reference.length), reference)
      // bf16 keeps 8 bits: 2^-9 a rounding, some ten of them on the way, and two more where the gradient of the logits
      // is a bf16 operand.
      const roundings = hasBf16Products(device.isa) ? 12 : 10
      const scale = wanted.l2 / Math.sqrt(wanted.shape.reduce((a, b) => a * b, 1))
      expect(rms, parameter).toBeLessThan(
        roundings *
          2 ** -9 *
          Math.max(
            scale,
            deviation(
              reference,
              reference.map(() => 0),
            ).rms,
          ),
      )
    }
  })
})

describe('bits', () => {
  const name = 'llama_gqa_rope3'
  const facts = goldenFacts(name)
  const tensors = goldenTensors(name)

  it('do not depend on the number of threads', async () => {
    const results: Map<string, Float32Array>[] = []
    for (const threads of [1, 3]) {
      using other = openDevice({ threads })
      using model = await loadModel(other, modelFolder(name), { trainable: true })
      results.push((await gradients(model, 'packed', { facts, tensors })).values)
    }
    expect(differing(results[0]!, results[1]!)).toEqual([])
  })

  it('of a sequence do not depend on its neighbours', async () => {
    using model = await loadModel(device, modelFolder(name))
    const together = await outputs(model, 'packed', tensors)
    const { ids, positions, cuSeqlens } = together.packed
    const V = model.config.V
    for (const [s, end] of cuSeqlens.slice(1).entries()) {
      const begin = cuSeqlens[s]!
      const alone = scope(() => {
        const [own, places] = [ids.slice(begin, end), positions.slice(begin, end)]
        const rows = rowsOnDevice(device, { ids: own, positions: places, cuSeqlens: [0, end - begin] })
        return linear(model.hidden(rows), model.head)
      })
      const logits = (await alone.read()) as Float32Array
      alone.dispose()
      const name = `sequence ${s}`
      const part = together.logits.slice(begin * V, end * V)
      expect(differing(new Map([[name, logits]]), new Map([[name, part]]))).toEqual([])
    }
  })
})

it('frees everything', async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
})
