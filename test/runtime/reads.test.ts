// Reads that are under way while the stream goes on: what they see, whose failure they report, how many there may be.
import { afterEach, describe, expect, it } from 'vitest'
import { add, addInto, fill, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { readTogether, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'

const opened: Device[] = []

function open(options: Parameters<typeof openDevice>[0] = {}): Device {
  const device = openDevice({ ...deviceUnderTest, ...options })
  opened.push(device)
  return device
}

afterEach(() => {
  for (const device of opened.splice(0)) device.close()
})

const numbers = (device: Device, ...values: number[]) => Tensor.from(device, Float32Array.from(values), [values.length])

describe('a read', () => {
  it('gives what was there when it was asked for, whatever is written behind it', async () => {
    const device = open()
    using x = numbers(device, 1, 2)
    using one = numbers(device, 1, 1)
    const reads: Promise<unknown>[] = []
    for (let i = 0; i < 200; i++) {
      reads.push(x.read())
      if (i % 2) addInto(x, one)
      else device.upload(x.id, Float32Array.of(i, 100 - i))
    }
    const seen = (await Promise.all(reads)).map((values) => [...(values as Float32Array)])
    const expected = Array.from({ length: 200 }, (_, i) => {
      if (i === 0) return [1, 2]
      return i % 2 ? [i - 1, 101 - i] : [i - 1, 103 - i]
    })
    expect(seen).toEqual(expected)
  })

  it('gives several tensors at once, small ones, empty ones and many bytes, in any order of sizes', async () => {
    const device = open()
    using small = numbers(device, 1, 2, 3)
    using ids = Tensor.from(device, Int32Array.of(-7, 2 ** 31 - 1), [2])
    using none = Tensor.empty(device, 'f32', [0])
    using byte = Tensor.from(device, Uint8Array.of(255), [1])
    using large = fill(device, [3, 40_000], { value: 7, dtype: 'f32' })
    const together = readTogether([small, ids, none, byte])
    const withLarge = readTogether([ids, large, small])
    const after = byte.read()
    expect(await together).toEqual([
      Float32Array.of(1, 2, 3),
      Int32Array.of(-7, 2 ** 31 - 1),
      new Float32Array(0),
      Uint8Array.of(255),
    ])
    expect(await withLarge).toEqual([
      Int32Array.of(-7, 2 ** 31 - 1),
      new Float32Array(120_000).fill(7),
      Float32Array.of(1, 2, 3),
    ])
    expect(await after).toEqual(Uint8Array.of(255))
  })

  it('ends in its turn, beside waits for the device', async () => {
    const device = open()
    using x = numbers(device, 3)
    using large = fill(device, [40_000], { value: 1, dtype: 'f32' })
    const ended: number[] = []
    const ways = [() => x.read(), () => device.idle(), () => large.read()]
    await Promise.all(Array.from({ length: 60 }, (_, i) => ways[(i * 7) % 3]!().then(() => ended.push(i))))
    expect(ended).toEqual(Array.from({ length: 60 }, (_, i) => i))
  })

  it('reports what failed before it, and not what failed behind it', async () => {
    const device = open({ memoryBudgetBytes: 2 ** 20 })
    using x = numbers(device, 5)
    const before = x.read()
    const tooLarge = fill(device, [2 ** 20], { value: 0, dtype: 'f32' })
    const failing = x.read().then(
      () => 'no failure',
      (error) => error.code,
    )
    using y = add(x, x)
    const behind = y.read()
    expect(await before).toEqual(Float32Array.of(5))
    expect(await failing).toBe('ERR_OOM')
    expect(await behind).toEqual(Float32Array.of(10))
    tooLarge.dispose()
  })

  it('that is under way when the device is closed is told so', async () => {
    const device = open()
    const x = numbers(device, 1)
    const reads = Array.from({ length: 20 }, () =>
      x.read().then(
        () => 'read',
        (error) => error.code,
      ),
    )
    device.close()
    expect(new Set(await Promise.all(reads))).toEqual(new Set(['ERR_ABORTED']))
  })
})
