import { afterAll, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { Linear } from '../../lib/nn/linear.js'
import { DropoutMasks, Lora, newLoraMatrices } from '../../lib/nn/lora.js'
import { ParameterScope } from '../../lib/nn/module.js'
import { fill, openDevice } from '../../lib/ops/index.js'
import { checkGradient, Gradients, keep, leaks, scope, Tape, Tensor } from '../../lib/tensor/index.js'

const device = openDevice({ threads: 2 })
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
})

const [N, D, F, R] = [5, 7, 4, 3]
const numbers = (count: number, seed: number) => {
  const random = new Random(seed)
  return Float64Array.from({ length: count }, () => random.normal())
}
const f64 = (shape: number[], seed: number) =>
  Tensor.from(
    device,
    numbers(
      shape.reduce((a, b) => a * b, 1),
      seed,
    ),
    shape,
  )

/** A layer with a bias in f64, and its adapter. */
function adaptedLinear(masks?: DropoutMasks, { alpha = 6, rankStabilised = false } = {}) {
  const source = new ParameterScope(({ shape }) => keep(f64([...shape], shape.length)))
  const layer = new Linear(source, { inputs: D, outputs: F, bias: true })
  const lora = new Lora(masks)
  layer.adapter = lora.add('layer', { a: f64([R, D], 11), b: f64([F, R], 12) }, { alpha, rankStabilised })
  return { layer, lora }
}

describe('an adapted layer', () => {
  it.each([
    ['alpha / rank', false, 2],
    ['alpha / sqrt(rank)', true, 6 / Math.sqrt(3)],
  ])('adds the product scaled by %s', async (_, rankStabilised, scale) => {
    const { layer, lora } = adaptedLinear(undefined, { rankStabilised })
    using x = f64([N, D], 1)
    using residual = f64([N, F], 2)
    const [got, off] = [true, false].map((enabled) => {
      lora.enabled = enabled
      return scope(() => layer.forward(x, residual))
    }) as [Tensor, Tensor]
    const [X, res, W, bias, A, B] = [
      numbers(N * D, 1),
      numbers(N * F, 2),
      numbers(F * D, 2),
      numbers(F, 1),
      numbers(R * D, 11),
      numbers(F * R, 12),
    ]
    const [y, plain] = [await got.read(), await off.read()]
    for (let n = 0; n < N; n++) {
      for (let f = 0; f < F; f++) {
        let sum = bias[f]! + res[n * F + f]!
        for (let d = 0; d < D; d++) sum += X[n * D + d]! * W[f * D + d]!
        expect(plain[n * F + f]).toBeCloseTo(sum, 12)
        for (let r = 0; r < R; r++) {
          let low = 0
          for (let d = 0; d < D; d++) low += X[n * D + d]! * A[r * D + d]!
          sum += scale * low * B[f * R + r]!
        }
        expect(y[n * F + f]).toBeCloseTo(sum, 12)
      }
    }
    for (const tensor of [got, off]) tensor.dispose()
    layer.dispose()
  })

  it('has the gradients of central differences in x, A and B, through dropout', async () => {
    const masks = new DropoutMasks(0.4, 3)
    // One pass for all evaluations, so that they see the same mask.
    const inPass = new Tape().record(() => masks.begin())
    const { layer, lora } = adaptedLinear(masks)
    layer.adapter!.dispose()
    const body = ({ x, a, b }: { x: Tensor; a: Tensor; b: Tensor }) => {
      lora.layers.clear()
      layer.adapter = lora.add('layer', { a, b }, { alpha: 6, rankStabilised: false })
      return inPass(() => layer.forward(x))
    }
    const inputs = { x: f64([N, D], 1), a: f64([R, D], 11), b: f64([F, R], 12) }
    const report = await checkGradient(body, inputs)
    expect(report).toEqual({ checked: N * D + R * D + F * R, faults: [] })
    expect(masks.passes).toBe(1)
    layer.dispose()
    for (const tensor of Object.values(inputs)) tensor.dispose()
  })

  it('has no gradient for its own weight and bias, which are frozen', () => {
    const { layer } = adaptedLinear()
    const { a, b } = layer.adapter!.matrices
    a.tracked = true
    b.tracked = true
    using x = f64([N, D], 1)
    using seed = fill(device, [N, F], { value: 1, dtype: 'f64' })
    using gradients = new Gradients()
    const tape = new Tape()
    const y = tape.record(() => layer.forward(x))
    tape.backward(y, seed, gradients)
    y.dispose()
    expect(new Set([...gradients.entries()].map(([tensor]) => tensor))).toEqual(new Set([a, b]))
    layer.dispose()
  })

  it('is not among the parameters of its layer, and is freed with it', () => {
    const { layer } = adaptedLinear()
    expect([...layer.parameters().keys()]).toEqual(['weight', 'bias'])
    expect([...layer.modules().keys()]).toEqual([])
    const { a, b } = layer.adapter!.matrices
    layer.dispose()
    expect([a.disposed, b.disposed]).toEqual([true, true])
  })
})

describe('new matrices', () => {
  it('are uniform within 1 / sqrt(inputs), and zero', async () => {
    const sizes = { inputs: 400, outputs: 6, rank: 50 }
    const { a, b } = newLoraMatrices(device, sizes, { seed: 1, place: 0 })
    expect([a.shape, b.shape, a.dtype, b.dtype]).toEqual([[50, 400], [6, 50], 'f32', 'f32'])
    const values = (await a.read()) as Float32Array
    expect(Math.max(...values.map(Math.abs))).toBeLessThanOrEqual(Math.fround(1 / 20))
    // Of a uniform variable: mean 0, standard deviation bound / sqrt(3).
    const mean = values.reduce((sum, x) => sum + x, 0) / values.length
    const deviation = Math.sqrt(values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / values.length)
    expect(Math.abs(mean)).toBeLessThan(1e-3)
    expect(deviation * 20 * Math.sqrt(3)).toBeCloseTo(1, 1)
    expect((await b.read()).every((value) => value === 0)).toBe(true)
    for (const tensor of [a, b]) tensor.dispose()
  })

  it('depend on seed and place alone', async () => {
    const sizes = { inputs: 5, outputs: 2, rank: 2 }
    const first = async (seed: number, place: number) => {
      const { a, b } = newLoraMatrices(device, sizes, { seed, place })
      const values = [...(await a.read())].join()
      for (const tensor of [a, b]) tensor.dispose()
      return values
    }
    expect(await first(1, 0)).toBe(await first(1, 0))
    expect(new Set([await first(1, 0), await first(1, 1), await first(2, 0)]).size).toBe(3)
  })
})

describe('dropout masks', () => {
  const count = 4000

  /** Elements that are kept, as text, in one pass. */
  async function kept(x: Tensor, masks: DropoutMasks, place = 0, inPass = new Tape().record(() => masks.begin())) {
    using y = inPass(() => scope(() => masks.apply(x, place)))
    const values = await y.read()
    expect([...new Set(values)].sort()).toEqual([0, Math.fround(1 / 0.75)])
    return values.map((value) => (value === 0 ? 0 : 1)).join('')
  }

  it('drop the share they are told to, afresh in each pass and layer, and again in the same one', async () => {
    using x = fill(device, [count], { value: 1, dtype: 'f32' })
    const masks = new DropoutMasks(0.25, 9)
    const inPass = new Tape().record(() => masks.begin())
    const one = await kept(x, masks, 0, inPass)
    const share = one.replaceAll('0', '').length / count
    expect(Math.abs(share - 0.75)).toBeLessThan(0.03)
    const otherPass = await kept(x, masks, 0)
    const otherLayer = await kept(x, masks, 1, inPass)
    expect(new Set([one, otherPass, otherLayer]).size).toBe(3)
    expect(await kept(x, masks, 0, inPass)).toBe(one)
    expect(masks.passes).toBe(2)
    // What a checkpoint holds is enough to go on.
    const resumed = new DropoutMasks(0.25, 9)
    resumed.passes = 1
    expect(await kept(x, resumed, 0)).toBe(otherPass)
  })

  it('drop nothing outside a tape', () => {
    using x = fill(device, [count], { value: 1, dtype: 'f32' })
    const masks = new DropoutMasks(0.25, 9)
    expect(masks.begin()(() => masks.apply(x, 0))).toBe(x)
    expect(masks.passes).toBe(0)
  })
})
