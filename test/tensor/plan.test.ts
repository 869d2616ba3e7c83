import { afterAll, describe, expect, it } from 'vitest'
import {
  add,
  affine,
  fill,
  keyRow,
  linear,
  linearLogprobOp,
  mul,
  openDevice,
  sampleOp,
  settingsRow,
  sum,
} from '../../lib/ops/index.js'
import { leaks, Plan, reshape, scope, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'

const device = openDevice(deviceUnderTest)
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(device.stats().liveBytes).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
})

describe('a plan', () => {
  it('runs again on what its inputs hold then, beside everything else', async () => {
    using x = Tensor.from(device, Float32Array.of(1, 2, 3, 4), [2, 2])
    using w = Tensor.from(device, Float32Array.of(1, 0, 1, 1), [2, 2])
    const plan = new Plan(device, () => {
      const y = linear(x, w)
      return { y, squared: mul(reshape(y, [4]), reshape(y, [4])) }
    })
    const seen = async () => [await plan.outputs.y.read(), await plan.outputs.squared.read()].map((a) => [...a])
    expect(await seen()).toEqual([
      [1, 3, 3, 7],
      [1, 9, 9, 49],
    ])
    // Other tensors come and go; none of them may get an id of the plan.
    const others = Array.from({ length: 20 }, (_, i) => fill(device, [4], { value: i, dtype: 'f32' }))
    device.upload(x.id, Float32Array.of(5, 5, 0, 1))
    plan.run()
    const more = scope(() => others.map((other) => add(other, affine(other, 0, 100))))
    expect(await seen()).toEqual([
      [5, 10, 0, 1],
      [25, 100, 0, 1],
    ])
    device.upload(w.id, Float32Array.of(0, 1, 0, 0))
    plan.run()
    plan.run()
    expect(await seen()).toEqual([
      [5, 0, 1, 0],
      [25, 0, 1, 0],
    ])
    for (const [i, tensor] of more.entries()) expect(await tensor.read()).toEqual(new Float32Array(4).fill(i + 100))
    for (const tensor of [...others, ...more]) tensor.dispose()
    plan.dispose()
  })

  it('is right however its tensors move from run to run', async () => {
    using x = Tensor.from(device, Float32Array.of(1, 2, 3, 4), [2, 2])
    const plan = new Plan(device, () => {
      const twice = add(x, x)
      const columns = sum(mul(twice, twice), 0)
      return { y: add(columns, twice) }
    })
    const held: Tensor[] = []
    for (let i = 1; i <= 12; i++) {
      // Memory that is free differs before every third run, so the plan's tensors cannot all stay where they were.
      if (i % 3 === 0) held.push(fill(device, [i * 10], { value: i, dtype: 'f32' }))
      if (i % 4 === 0) held.shift()?.dispose()
      device.upload(x.id, Float32Array.of(i, 0, 1, 2))
      plan.run()
      const top = 4 * i * i + 4
      expect([...(await plan.outputs.y.read())]).toEqual([top + 2 * i, 16, top + 2, 20])
    }
    for (const tensor of held) tensor.dispose()
    plan.dispose()
  })

  it('shares the working memory of its kernels with other plans, whatever order they run in', async () => {
    // Sums of more elements than one run of the reduction takes, which need working memory.
    const sizes = [20_000, 50_000, 100_000]
    using x = fill(device, [100_000], { value: 1, dtype: 'f32' })
    const plans = sizes.map(
      (n) => new Plan(device, () => ({ y: add(sum(Tensor.viewOf(x, [n], 0), 0), sum(Tensor.viewOf(x, [n], 0), 0)) })),
    )
    for (const i of [0, 1, 2, 2, 1, 0, 0, 2, 1]) {
      plans[i]!.run()
      expect((await plans[i]!.outputs.y.read())[0]).toBe(2 * sizes[i]!)
    }
    for (const plan of plans) plan.dispose()
  })

  it('keeps apart what one kernel works with', async () => {
    const [N, V] = [4, 2100]
    const row = settingsRow({ temperature: 0.7, topK: 0, topP: 0.9, minP: 0, repetitionPenalty: 1 })
    const rows = Array.from({ length: N }, (_, n) => keyRow({ seed: 5, sample: n, position: 2 }))
    using hidden = Tensor.from(device, Float32Array.of(1, 0, 0, 1, 1, 1, -1, 2), [N, 2])
    using head = Tensor.from(
      device,
      Float32Array.from({ length: V * 2 }, (_, i) => Math.sin(i) * 3),
      [V, 2],
    )
    using settings = Tensor.from(device, Float64Array.from(Array(N).fill(row).flat()), [N, 5])
    using keys = Tensor.from(device, Int32Array.from(rows.flat()), [N, 4])
    const call = { hidden, head, settings, keys, with_probs: 0 }
    using once = scope(() => sampleOp(call).logp)
    const expected = [...(await once.read())]
    const plan = new Plan(device, () => ({ logp: sampleOp(call).logp }))
    for (let i = 0; i < 4; i++) {
      plan.run()
      expect([...(await plan.outputs.logp.read())]).toEqual(expected)
    }
    plan.dispose()
  })

  it('may hold an op that waits for the device', async () => {
    using hidden = Tensor.from(device, Float32Array.of(0, 0, 1, 0), [2, 2])
    using head = Tensor.from(device, Float32Array.of(0, 0, 0, 0, 0, 0, 0, 0), [4, 2])
    using target = Tensor.from(device, Int32Array.of(2, -1), [2])
    const call = { hidden, head, target, with_entropy: 0, chunk_bytes: 1 << 20, targets: 0 }
    const plan = new Plan(device, () => ({ twice: affine(linearLogprobOp(call).logp, 2, 0) }))
    for (let i = 0; i < 4; i++) {
      plan.run()
      const [first, second] = await plan.outputs.twice.read()
      expect(first).toBeCloseTo(-2 * Math.log(4), 5)
      expect(second).toBe(0)
    }
    plan.dispose()
  })

  it.each([1, 2, 3, 4])('that fails at its allocation %d leaves nothing, and runs again', async (n) => {
    using x = fill(device, [20_000], { value: 1, dtype: 'f32' })
    const plan = new Plan(device, () => {
      const twice = add(x, x)
      return { y: affine(sum(twice, 0), 3, 1) }
    })
    for (let i = 0; i < 3; i++) {
      plan.run()
      expect((await plan.outputs.y.read())[0]).toBe(120_001)
    }
    await device.idle()
    const before = device.stats()
    for (let i = 0; i < 3; i++) {
      device.failAllocation(n)
      plan.run()
      await device.idle().catch(({ code }) => expect(code).toBe('ERR_OOM'))
      device.failAllocation(0)
      plan.run()
      expect((await plan.outputs.y.read())[0]).toBe(120_001)
    }
    await device.idle()
    expect(device.stats()).toMatchObject({ liveTensors: before.liveTensors, liveBytes: before.liveBytes })
    plan.dispose()
  })

  it('gives ids and memory back', async () => {
    using x = fill(device, [1000], { value: 1, dtype: 'f32' })
    await device.idle()
    const before = device.stats()
    const first = device.newId()
    device.free(first)
    for (let i = 0; i < 50; i++) {
      const plan = new Plan(device, () => ({ y: affine(add(x, x), 2, i) }))
      plan.run()
      expect((await plan.outputs.y.read())[7]).toBe(4 + i)
      plan.dispose()
    }
    await device.idle()
    expect(device.stats()).toMatchObject({ liveTensors: before.liveTensors, liveBytes: before.liveBytes })
    // Ids are used again, not counted up.
    const id = device.newId()
    expect(id).toBeLessThan(first + 10)
    device.free(id)
  })

  it('may neither upload nor wait nor hold another, and a body that fails leaves nothing', async () => {
    using x = fill(device, [2], { value: 1, dtype: 'f32' })
    const upload = () => new Plan(device, () => ({ y: add(x, Tensor.from(device, Float32Array.of(1, 2), [2])) }))
    expect(upload).toThrow('upload: not possible while commands are recorded')
    expect(() => new Plan(device, () => ({ y: new Plan(device, () => ({ z: add(x, x) })).outputs.z }))).toThrow(
      'commands are being recorded already',
    )
    await device.idle()
    expect(device.stats().liveTensors).toBe(1)
    using y = add(x, x)
    expect([...(await y.read())]).toEqual([2, 2])
  })
})
