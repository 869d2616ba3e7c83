// Checkpointed bodies: the same bits in less memory, which calls the second run makes, and that nothing is left behind
// whatever goes wrong.
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { add, addInto, linear, mul, openDevice, rmsNorm, swiglu } from '../../lib/ops/index.js'
import {
  type Checkpointing,
  checkpoint,
  checkpointings,
  Gradients,
  leaks,
  reshape,
  scope,
  Tape,
  Tensor,
  withoutTape,
} from '../../lib/tensor/index.js'

const device = openDevice({ threads: 2 })
afterAll(() => device.close())

afterEach(async () => {
  await device.idle()
  const { liveTensors, liveBytes } = device.stats()
  expect({ liveTensors, liveBytes }).toEqual({ liveTensors: 0, liveBytes: 0 })
  expect(leaks.caught).toBe(0)
})

const [N, D, F, LAYERS] = [256, 32, 96, 6] as const

function parameter(shape: number[], seed: number): Tensor {
  const random = new Random(seed)
  const count = shape.reduce((a, b) => a * b, 1)
  const tensor = Tensor.from(
    device,
    Float32Array.from({ length: count }, () => random.normal()),
    shape,
  )
  tensor.tracked = true
  return tensor
}

type Weights = { norm: Tensor; gate: Tensor; up: Tensor; down: Tensor; low: Tensor; high: Tensor }

function newWeights(i: number, F = 96): Weights {
  return {
    norm: parameter([D], 10 * i + 1),
    gate: parameter([F, D], 10 * i + 2),
    up: parameter([F, D], 10 * i + 3),
    down: parameter([D, F], 10 * i + 4),
    low: parameter([2, D], 10 * i + 5),
    high: parameter([F, 2], 10 * i + 6),
  }
}

/** A gated layer, x [N,D] -> [N,D]: three products. */
function gated({ norm, gate, up, down }: Weights, x: Tensor): Tensor {
  const h = rmsNorm(x, norm, { eps: 1e-5 })
  return linear(swiglu(linear(h, gate), linear(h, up)), down, { residual: x })
}

/** The same with an adapter beside the gate, which is added to it: five products. */
function adapted({ norm, gate, up, down, low, high }: Weights, x: Tensor): Tensor {
  const h = rmsNorm(x, norm, { eps: 1e-5 })
  const g = scope(() => linear(linear(h, low), high, { residual: linear(h, gate) }))
  return linear(swiglu(g, linear(h, up)), down, { residual: x })
}

type Layer = (weights: Weights, x: Tensor) => Tensor

/** Values and gradients of `LAYERS` layers, the highest memory, that of the tape, and the products of a layer. */
async function measured(layer: Layer, mode: Checkpointing) {
  const weights = Array.from({ length: LAYERS }, (_, i) => newWeights(i))
  const x = parameter([N, D], 99)
  const gradients = new Gradients()
  await device.idle()
  const before = device.stats().liveBytes
  device.resetPeak()
  let [tapeBytes, y] = [0, x]
  const calls = await device.profile(async () => {
    const tape = new Tape()
    y = tape.record(() => weights.reduce((h, w) => checkpoint(mode, (t) => layer(w, t!), h), x))
    await device.idle()
    tapeBytes = device.stats().liveBytes - before
    const seed = Tensor.from(device, new Float32Array(N * D).fill(0.01), [N, D])
    tape.backward(y, seed, gradients)
    seed.dispose()
  })
  const { peakBytes } = device.stats()
  const parameters = [x, ...weights.flatMap((w) => Object.values(w))]
  const tensors = [y, ...parameters.flatMap((p) => gradients.get(p) ?? [])]
  const values = await Promise.all(tensors.map((t) => t.read()))
  gradients.dispose()
  for (const tensor of [y, ...parameters]) tensor.dispose()
  const products = calls.find(({ op }) => op === 'linear')!.calls
  return { values, peakBytes, tapeBytes, products: products / LAYERS }
}

describe.each([
  ['gated', gated, 3],
  ['adapted', adapted, 5],
] as [string, Layer, number][])('a %s layer', (_, layer, own) => {
  it('gives the same bits with less memory, and selective computes no product again', async () => {
    const [none, selective, full] = [
      await measured(layer, 'none'),
      await measured(layer, 'selective'),
      await measured(layer, 'full'),
    ]
    expect(none.values.length).toBe(2 + LAYERS * (own + 1))
    expect(selective.values).toEqual(none.values)
    expect(full.values).toEqual(none.values)
    expect([none.products, selective.products]).toEqual([own, own])
    // The last product of a layer is read by nobody in the second run.
    expect(full.products).toBe(2 * own - 1)
    expect(selective.peakBytes).toBeLessThan(0.9 * none.peakBytes)
    expect(full.peakBytes).toBeLessThan(0.9 * selective.peakBytes)
  })
})

it('keeps of an adapted layer what a backward pass reads, not what was added to it', async () => {
  const [plain, more] = [await measured(gated, 'selective'), await measured(adapted, 'selective')]
  // Input, gate and up, in f32; of the adapter the two numbers between its matrices, and no second gate.
  const rows = N * LAYERS * 4
  expect(plain.tapeBytes - N * D * 4).toBe(rows * (D + 2 * F) - N * D * 4)
  expect(more.tapeBytes - plain.tapeBytes).toBe(rows * 2)
})

it.each(['selective', 'full'] as const)('frees what a body kept as it is played, not at its end: %s', async (mode) => {
  const [wide, narrow] = [newWeights(1, 3 * F), newWeights(2, F)]
  const x = parameter([N, D], 99)
  const peakOf = async (body: () => Tensor) => {
    using gradients = new Gradients()
    await device.idle()
    device.resetPeak()
    scope(() => {
      const tape = new Tape()
      const y = tape.record(body)
      tape.backward(y, Tensor.from(device, new Float32Array(N * D).fill(0.01), [N, D]), gradients)
    })
    await device.idle()
    return device.stats().peakBytes
  }
  // The highest point is inside the wide layer, when the narrow one behind it has been played.
  const one = await peakOf(() => checkpoint(mode, (t) => gated(narrow, gated(wide, t!)), x))
  const two = await peakOf(() =>
    checkpoint(
      mode,
      (t) => gated(narrow, t!),
      checkpoint(mode, (t) => gated(wide, t!), x),
    ),
  )
  expect(one).toBeLessThan(1.05 * two)
  for (const tensor of [x, ...Object.values(wide), ...Object.values(narrow)]) tensor.dispose()
})

/** Gradient of the sum of `body(x)` with respect to x = [[1, 2]], under a checkpoint of each mode. */
async function gradientsOf(body: (x: Tensor, w: Tensor) => Tensor): Promise<number[][]> {
  const found: number[][] = []
  for (const mode of checkpointings) {
    using x = Tensor.from(device, Float32Array.of(1, 2), [1, 2])
    using w = Tensor.from(device, Float32Array.of(1, 2, 3, 4), [2, 2])
    x.tracked = true
    using gradients = new Gradients()
    scope(() => {
      const tape = new Tape()
      const y = tape.record(() => checkpoint(mode, (t) => body(t!, w), x))
      tape.backward(y, Tensor.from(device, new Float32Array(y.count).fill(1), y.shape), gradients)
    })
    found.push([...(await gradients.get(x)!.read())])
  }
  return found
}

const thrice = (values: number[]) => [values, values, values]

describe('bodies', () => {
  it('that look at a product through a view', async () => {
    // y = Wx, z = sum of y^2: dz = 2 W^T y with y = [5, 11].
    const body = (x: Tensor, w: Tensor) => {
      const y = reshape(linear(x, w), [2])
      return mul(y, y)
    }
    expect(await gradientsOf(body)).toEqual(thrice([2 * (5 + 33), 2 * (10 + 44)]))
  })

  it('that end with a view of a product, or with a product', async () => {
    expect(await gradientsOf((x, w) => reshape(linear(x, w), [2]))).toEqual(thrice([4, 6]))
    expect(await gradientsOf((x, w) => linear(x, w))).toEqual(thrice([4, 6]))
  })

  it('that use a product as a number outside the tape', async () => {
    // y * stop(y) with y = [5, 11]: W^T y.
    const body = (x: Tensor, w: Tensor) => {
      const y = linear(x, w)
      return mul(
        y,
        withoutTape(() => add(y, mul(linear(x, w), linear(x, w)))),
      )
    }
    expect(await gradientsOf(body)).toEqual(thrice([5 + 25 + 3 * (11 + 121), 2 * (5 + 25) + 4 * (11 + 121)]))
  })

  it('with a checkpoint inside', async () => {
    const body = (x: Tensor, w: Tensor) => {
      const y = checkpoint('full', (t) => linear(t!, w), x)
      return mul(
        y,
        checkpoint('selective', (t) => linear(t!, w), x),
      )
    }
    expect(await gradientsOf(body)).toEqual(thrice([2 * (5 + 33), 2 * (10 + 44)]))
  })

  it.each(checkpointings)('with nothing to train leave nothing on the tape: %s', async (mode) => {
    using x = parameter([N, D], 1)
    x.tracked = false
    const weights = newWeights(2)
    for (const tensor of Object.values(weights)) tensor.tracked = false
    using tape = new Tape()
    await device.idle()
    const before = device.stats().liveBytes
    const y = tape.record(() => checkpoint(mode, (t) => gated(weights, t!), x))
    await device.idle()
    expect(y.tracked).toBe(false)
    expect(device.stats().liveBytes - before).toBe(y.bytes)
    for (const tensor of [y, ...Object.values(weights)]) tensor.dispose()
  })

  it('outside a tape just run', async () => {
    using x = Tensor.from(device, Float32Array.of(2), [1])
    for (const mode of checkpointings) {
      using y = checkpoint(mode, (t) => mul(t!, t!), x)
      expect(await y.item()).toBe(4)
    }
  })
})

describe('a body that fails', () => {
  function failing(mode: Checkpointing, body: (x: Tensor, w: Tensor) => Tensor): unknown {
    using x = Tensor.from(device, Float32Array.of(1, 2), [1, 2])
    using w = Tensor.from(device, Float32Array.of(1, 2, 3, 4), [2, 2])
    x.tracked = true
    using gradients = new Gradients()
    using tape = new Tape()
    try {
      scope(() => {
        const y = tape.record(() => checkpoint(mode, (t) => body(t!, w), x))
        tape.backward(y, Tensor.from(device, new Float32Array(y.count).fill(1), y.shape), gradients)
      })
      return undefined
    } catch (error) {
      return error
    }
  }

  it.each(['selective', 'full'] as const)('the first or the second time leaves nothing behind: %s', (mode) => {
    for (const bad of [1, 2]) {
      let runs = 0
      const error = failing(mode, (x, w) => {
        const y = mul(linear(x, w), linear(x, w))
        if (++runs === bad) throw new Error('of the body')
        return y
      })
      expect(error).toMatchObject({ message: 'of the body' })
    }
  })

  it.each(['selective', 'full'] as const)('to make the same calls again is refused: %s', (mode) => {
    let runs = 0
    const error = failing(mode, (x, w) => {
      const y = linear(x, w)
      return ++runs === 2 ? mul(y, linear(x, w)) : mul(y, y)
    })
    const message = 'a checkpointed body called no more costly op the first time, but linear the second'
    expect(error).toMatchObject({ code: 'ERR_INTERNAL', message })
    runs = 0
    const fewer = failing(mode, (x, w) => {
      const y = linear(x, w)
      return ++runs === 1 ? mul(y, linear(x, w)) : mul(y, y)
    })
    expect(fewer).toMatchObject({ message: expect.stringContaining('but no more costly op the second') })
  })

  it('to leave alone what selective keeps is refused', () => {
    const body = (x: Tensor, w: Tensor) => {
      const y = linear(x, w)
      withoutTape(() => addInto(y, x))
      return mul(y, y)
    }
    const error = failing('selective', body)
    expect(error).toMatchObject({
      code: 'ERR_INTERNAL',
      message: 'add_into changes what a checkpoint keeps: a result of linear',
    })
    expect(failing('full', body)).toBeUndefined()
  })

  it.each(checkpointings)('is freed with a tape that is not played: %s', (mode) => {
    using x = parameter([N, D], 1)
    const weights = newWeights(2)
    using tape = new Tape()
    tape.record(() => checkpoint(mode, (t) => gated(weights, t!), x)).dispose()
    for (const tensor of Object.values(weights)) tensor.dispose()
  })
})
