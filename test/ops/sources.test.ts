// Ops that make tensors out of numbers.
import { afterAll, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { fill, iota, openDevice, randomNormal, randomUniform } from '../../lib/ops/index.js'
import { rounded } from '../../lib/tensor/sample_call.js'
import { deviceUnderTest } from '../device_under_test.js'
import { expectRounded } from './tolerance.js'

const device = openDevice(deviceUnderTest)
afterAll(() => device.close())

const sizes = [0, 1, 7, 8, 9, 16, 17, 33, 20_001]

describe('fill', () => {
  it.each(['f32', 'bf16', 'f64', 'i32'] as const)('in %s', async (dtype) => {
    for (const size of sizes) {
      using y = fill(device, [size], { value: -1.3, dtype })
      expect(y.dtype).toBe(dtype)
      const values = await y.read()
      expect(values.length).toBe(size)
      expect(values.every((value) => value === rounded(-1.3, dtype))).toBe(true)
    }
  })

  it('takes any shape, and infinities', async () => {
    using y = fill(device, [2, 0, 3], { value: 1, dtype: 'f32' })
    using z = fill(device, [], { value: -Infinity, dtype: 'bf16' })
    expect(y.count).toBe(0)
    expect(await z.item()).toBe(-Infinity)
  })
})

describe('iota', () => {
  it.each(['f32', 'bf16', 'f64', 'i32'] as const)('in %s', async (dtype) => {
    for (const size of sizes) {
      using y = iota(device, size, { start: -5, step: 3, dtype })
      const values = Array.from(await y.read())
      expect(values).toEqual(Array.from({ length: size }, (_, i) => rounded(-5 + 3 * i, dtype)))
    }
  })

  it('does not add up rounding errors along the way', async () => {
    using y = iota(device, 50_000, { start: 0.1, step: 0.1, dtype: 'f64' })
    expect((await y.read())[49_999]).toBe(0.1 + 49_999 * 0.1)
  })
})

describe('random_normal', () => {
  const [seed, stream] = [2 ** 40 + 3, 2 ** 35 + 17]

  it('draws the numbers of lib/base/random', async () => {
    const random = new Random(seed, stream)
    const expected = Array.from({ length: 20_001 }, () => random.normal())
    for (const dtype of ['f64', 'f32', 'bf16'] as const) {
      using y = randomNormal(device, [20_001], { mean: 0, deviation: 1, seed, stream, dtype })
      // Logarithm and cosine of the two languages may differ in the last place.
      const roundings = dtype === 'f64' ? 16 : 1.01
      expectRounded(
        dtype,
        { got: await y.read(), truth: expected, scale: expected.map(Math.abs) },
        { dtype, roundings },
      )
    }
  })

  it('scales and shifts', async () => {
    const random = new Random(seed, stream)
    const expected = Array.from({ length: 35 }, () => 2 + 0.5 * random.normal())
    using y = randomNormal(device, [5, 7], { mean: 2, deviation: 0.5, seed, stream, dtype: 'f64' })
    expectRounded(
      'y',
      { got: await y.read(), truth: expected, scale: expected.map(() => 4) },
      { dtype: 'f64', roundings: 16 },
    )
  })

  it('gives the first numbers of a longer tensor to a shorter one', async () => {
    using long = randomNormal(device, [1001], { deviation: 1, seed: 1, stream: 2, dtype: 'f32' })
    const longValues = await long.read()
    for (const size of sizes.filter((n) => n <= 1001)) {
      using short = randomNormal(device, [size], { deviation: 1, seed: 1, stream: 2, dtype: 'f32' })
      expect(Array.from(await short.read())).toEqual(Array.from(longValues.subarray(0, size)))
    }
  })
})

describe('random_uniform', () => {
  const [seed, stream] = [2 ** 40 + 3, 2 ** 52 + 17]

  it('draws the numbers of lib/base/random', async () => {
    const random = new Random(seed, stream)
    const expected = Array.from({ length: 20_001 }, () => -0.5 + 2 * random.uniform())
    for (const dtype of ['f64', 'f32', 'bf16'] as const) {
      using y = randomUniform(device, [20_001], { low: -0.5, high: 1.5, seed, stream, dtype })
      expect(Array.from(await y.read())).toEqual(expected.map((value) => rounded(value, dtype)))
    }
  })

  it('gives the first numbers of a longer tensor to a shorter one', async () => {
    const options = { low: 0, high: 1, seed: 1, stream: 2, dtype: 'f32' } as const
    using long = randomUniform(device, [1001], options)
    const longValues = await long.read()
    for (const size of sizes.filter((n) => n <= 1001)) {
      using short = randomUniform(device, [size], options)
      expect(Array.from(await short.read())).toEqual(Array.from(longValues.subarray(0, size)))
    }
  })
})
