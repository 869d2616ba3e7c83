// The tape on graphs whose gradients can be worked out by hand: branches that meet, weights used twice, residuals that
// alias; and that a backward pass leaves nothing behind.
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import {
  add,
  argmax,
  crossEntropy,
  embedding,
  exp,
  linear,
  mul,
  openDevice,
  rmsNormOp,
  sum,
} from '../../lib/ops/index.js'
import {
  checkGradient,
  Gradients,
  leaks,
  recordingTape,
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

const numbers = (...values: number[]) => Tensor.from(device, Float32Array.from(values), [values.length])

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

/** Gradients of `body` (seeded with ones) with respect to `inputs`. */
async function gradientsOf(inputs: Tensor[], body: () => Tensor): Promise<number[][]> {
  for (const input of inputs) input.tracked = true
  using gradients = new Gradients()
  scope(() => {
    const tape = new Tape()
    const y = tape.record(body)
    tape.backward(y, Tensor.from(device, new Float32Array(y.count).fill(1), y.shape), gradients)
  })
  return Promise.all(inputs.map(async (input) => Array.from((await gradients.get(input)?.read()) ?? [])))
}

describe('graphs', () => {
  it('diamond: both ways add up', async () => {
    using x = numbers(2, 3)
    // y = x x + x, dy = 2 x + 1
    expect(await gradientsOf([x], () => add(mul(x, x), x))).toEqual([[5, 7]])
  })

  it('a tensor with several consumers', async () => {
    using x = numbers(2)
    using w = numbers(5)
    // h = x w; y = h h + h + h x = w^2 x^2 + w x + w x^2
    const y = () => {
      const h = mul(x, w)
      return add(add(mul(h, h), h), mul(h, x))
    }
    expect(await gradientsOf([x, w], y)).toEqual([[2 * 25 * 2 + 5 + 2 * 5 * 2], [2 * 5 * 4 + 2 + 4]])
  })

  it('the same tensor as both arguments', async () => {
    using x = numbers(3)
    expect(await gradientsOf([x], () => add(x, x))).toEqual([[2]])
  })

  it('a residual stream whose gradient is handed on unchanged', async () => {
    using x = numbers(1, 2)
    using w = Tensor.from(device, Float32Array.of(1, 2, 3, 4), [2, 2])
    // y = x + W x twice: dy/dx = (I + W)^T (I + W)^T 1
    const block = (h: Tensor) => linear(h, w, { residual: h })
    const [dx] = await gradientsOf([x, w], () => reshape(block(block(reshape(x, [1, 2]))), [2]))
    // (I + W)^T = [2 3; 2 5]: applied to [1,1] twice
    expect(dx).toEqual([2 * 5 + 3 * 7, 2 * 5 + 5 * 7])
  })

  it('shared weights add up in place', async () => {
    using table = parameter([3, 2], 1)
    using ids = Tensor.from(device, Int32Array.of(0, 2, 0), [3])
    using other = Tensor.from(device, Int32Array.of(2, 2, 1), [3])
    const [dw] = await gradientsOf([table], () => add(embedding(ids, table), embedding(other, table)))
    expect(dw).toEqual([2, 2, 1, 1, 3, 3])
  })

  it('a gradient that somebody else holds is never overwritten', async () => {
    using x = numbers(1)
    using y = numbers(1)
    x.tracked = true
    y.tracked = true
    using gradients = new Gradients()
    using seed = numbers(1)
    scope(() => {
      const tape = new Tape()
      // add hands its gradient to both arguments: the same tensor. x then gets more.
      const z = tape.record(() => add(add(x, y), x))
      tape.backward(z, seed, gradients)
    })
    expect(await gradients.get(x)!.item()).toBe(2)
    expect(await gradients.get(y)!.item()).toBe(1)
    expect(await seed.item()).toBe(1)
  })

  it('gradients accumulate over backward passes', async () => {
    using x = numbers(3)
    x.tracked = true
    using gradients = new Gradients()
    for (let i = 1; i <= 3; i++) {
      scope(() => {
        const tape = new Tape()
        const y = tape.record(() => mul(x, x))
        tape.backward(y, numbers(1), gradients)
      })
      expect(await gradients.get(x)!.item()).toBe(6 * i)
    }
  })

  it('nothing flows to what is not tracked', async () => {
    using x = numbers(3)
    using c = numbers(4)
    x.tracked = true
    using gradients = new Gradients()
    scope(() => {
      const tape = new Tape()
      const y = tape.record(() => mul(x, c))
      tape.backward(y, numbers(1), gradients)
    })
    expect(await gradients.get(x)!.item()).toBe(4)
    expect(gradients.get(c)).toBeUndefined()
    expect([...gradients.entries()].length).toBe(1)
  })
})

describe('the tape', () => {
  it('records only while asked to', () => {
    using x = numbers(1)
    x.tracked = true
    const tape = new Tape()
    expect(recordingTape()).toBeUndefined()
    scope(() => {
      tape.record(() => {
        expect(recordingTape()).toBe(tape)
        withoutTape(() => expect(recordingTape()).toBeUndefined())
        return mul(x, x)
      })
    })
    expect(recordingTape()).toBeUndefined()
    tape.dispose()
  })

  it('stops recording when the body throws', () => {
    const tape = new Tape()
    expect(() => tape.record(() => expect.fail('stop'))).toThrow('stop')
    expect(recordingTape()).toBeUndefined()
  })

  it('frees what it kept when it is disposed without a backward pass', () => {
    using x = numbers(1)
    x.tracked = true
    scope(() => {
      const tape = new Tape()
      tape.record(() => exp(exp(x)))
      tape.dispose()
    })
  })

  it('frees what it kept when an op of the backward pass throws', () => {
    using x = numbers(1, 2)
    x.tracked = true
    using gradients = new Gradients()
    expect(() =>
      scope(() => {
        const tape = new Tape()
        const y = tape.record(() => exp(exp(x)))
        tape.backward(y, numbers(1, 2, 3), gradients)
      }),
    ).toThrow(/gradient of shape \[3\] was given for a tensor of shape \[2\]/)
  })

  it('refuses a gradient that an op would drop', () => {
    using x = parameter([3, 4], 1)
    using w = parameter([4], 2)
    using gradients = new Gradients()
    const backward = () =>
      scope(() => {
        const tape = new Tape()
        const { rstd } = tape.record(() => ({ rstd: rmsNormOp({ x, w, eps: 1e-5 }).rstd }))
        tape.backward(rstd, numbers(1, 1, 1), gradients)
      })
    expect(backward).toThrow("rms_norm: no gradient flows through its result 'rstd'")
  })

  it('says which op has no gradient', () => {
    using x = parameter([2, 3], 1)
    const tape = new Tape()
    expect(() => scope(() => tape.record(() => argmax(x)))).toThrow('argmax has no gradient; run it outside the tape')
  })
})

describe('cross entropy', () => {
  /** Gradients of scale * sum of nll, through the seed. */
  async function gradients(seed: number | 'unit', steps: number) {
    const hidden = parameter([5, 4], 1)
    const head = parameter([7, 4], 2)
    const target = Tensor.from(device, Int32Array.of(1, -100, 3, 0, 6), [5])
    const into = new Gradients()
    for (let i = 0; i < steps; i++) {
      scope(() => {
        const tape = new Tape(seed === 'unit' ? { into, unitSeed: true } : {})
        const { loss } = tape.record(() => crossEntropy(hidden, head, { target, zLoss: 0.01 }))
        const dloss = numbers(seed === 'unit' ? 1 : seed)
        dloss.unit = seed === 'unit'
        tape.backward(loss, dloss, into)
      })
    }
    const values = await Promise.all([hidden, head].map(async (t) => Array.from(await into.get(t)!.read())))
    into.dispose()
    for (const tensor of [hidden, head, target]) tensor.dispose()
    return values
  }

  it('the seed scales the gradient that the forward pass made', async () => {
    const [once, twice, unit] = [await gradients(1, 1), await gradients(2, 1), await gradients('unit', 1)]
    expect(unit).toEqual(once)
    expect(twice).toEqual(once.map((values) => values.map((value) => 2 * value)))
  })

  it('adds into the gradient that is there', async () => {
    const [once, three] = [await gradients('unit', 1), await gradients('unit', 3)]
    for (const [i, values] of three.entries()) {
      for (const [j, value] of values.entries()) expect(value).toBeCloseTo(3 * once[i]![j]!, 5)
    }
  })

  it('counts the rows with a target when nothing is recorded, too', async () => {
    using hidden = parameter([5, 4], 1)
    using head = parameter([7, 4], 2)
    using target = Tensor.from(device, Int32Array.of(1, -100, 3, 0, 6), [5])
    const values: number[] = []
    for (const recorded of [false, true]) {
      scope(() => {
        using tape = new Tape()
        const body = () => crossEntropy(hidden, head, { target, zLoss: 0.01 }).loss
        const loss = recorded ? tape.record(body) : body()
        void loss.item().then((value) => values.push(value))
      })
    }
    await device.idle()
    expect(values[0]).toBeCloseTo(values[1]!, 5)
  })
})

describe('checkGradient', () => {
  const f64 = (...values: number[]) => Tensor.from(device, Float64Array.from(values), [values.length])

  it('passes a right gradient', async () => {
    using x = f64(0.3, -1.2, 2)
    using w = f64(1, 2, 3)
    const report = await checkGradient(({ x, w }) => mul(exp(x), w), { x, w })
    expect(report).toEqual({ checked: 6, faults: [] })
    expect(x.tracked).toBe(false)
  })

  it('finds a wrong one, element by element', async () => {
    using x = f64(0.3, -1.2)
    // The tape sees only one of the two factors.
    const wrong = ({ x }: { x: Tensor }) =>
      mul(
        x,
        withoutTape(() => exp(x)),
      )
    const { faults } = await checkGradient(wrong, { x })
    expect(faults.map(({ input, index }) => [input, index])).toEqual([
      ['x', 0],
      ['x', 1],
    ])
    expect(faults[0]!.tape).not.toBeCloseTo(faults[0]!.numeric, 3)
  })

  it('refuses inputs in which differences would drown', async () => {
    using x = numbers(1)
    await expect(checkGradient(({ x }) => mul(x, x), { x })).rejects.toMatchObject({ code: 'ERR_DTYPE' })
  })

  it('does not look at constants', async () => {
    using x = f64(1, 2)
    using c = f64(3, 4)
    const report = await checkGradient(({ x, c }) => sum(mul(x, c), 0), { x, c }, { constant: ['c'] })
    expect(report).toEqual({ checked: 2, faults: [] })
  })
})
