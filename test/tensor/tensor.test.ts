// Ownership: who frees a tensor and when, what happens to one that is used too late, and that nothing is left over.
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest'
import { add, fill, openDevice, scatterRows } from '../../lib/ops/index.js'
import { keep, leaks, reshape, rowsOf, scope, Tensor } from '../../lib/tensor/index.js'

const device = openDevice({ threads: 1 })
afterAll(() => device.close())

const numbers = (...values: number[]) => Tensor.from(device, Float32Array.from(values), [values.length])

/** What lives once everything queued has run. */
async function live(): Promise<{ tensors: number; bytes: number }> {
  await device.idle()
  const { liveTensors, liveBytes } = device.stats()
  return { tensors: liveTensors, bytes: liveBytes }
}

beforeEach(async () => {
  expect(await live()).toEqual({ tensors: 0, bytes: 0 })
})

afterEach(async () => {
  expect(await live()).toEqual({ tensors: 0, bytes: 0 })
  expect(leaks.caught).toBe(0)
})

describe('tensors', () => {
  it('hold what they are given, in every dtype', async () => {
    using f = numbers(1, 2.5, -0)
    using d = Tensor.from(device, Float64Array.of(Math.PI), [])
    using i = Tensor.from(device, Int32Array.of(-1, 2 ** 31 - 1), [2, 1])
    using u = Tensor.from(device, Uint8Array.of(0, 255), [2])
    using b = Tensor.from(device, Uint16Array.of(0x3f80, 0xc040), [2])
    expect(await f.read()).toEqual(Float32Array.of(1, 2.5, -0))
    expect(await d.item()).toBe(Math.PI)
    expect(await i.read()).toEqual(Int32Array.of(-1, 2 ** 31 - 1))
    expect(await u.read()).toEqual(Uint8Array.of(0, 255))
    expect(await b.read()).toEqual(Float32Array.of(1, -3))
    expect(await b.readRaw()).toEqual(Uint16Array.of(0x3f80, 0xc040))
    expect([f, d, i, u, b].map(String)).toEqual(['f32[3]', 'f64[]', 'i32[2,1]', 'u8[2]', 'bf16[2]'])
    expect(b.bytes).toBe(4)
  })

  it('keep their data when the source array changes afterwards', async () => {
    const source = Float32Array.of(1, 2)
    using t = Tensor.from(device, source, [2])
    source.fill(9)
    expect(await t.read()).toEqual(Float32Array.of(1, 2))
  })

  it('refuse data that do not fill the shape', () => {
    expect(() => Tensor.from(device, new Float32Array(5), [2, 3])).toThrow('5 values do not fill shape [2,3]')
  })

  it('item() wants one element', async () => {
    using t = numbers(1, 2)
    await expect(t.item()).rejects.toMatchObject({ code: 'ERR_SHAPE' })
  })

  it('count their owners', () => {
    const t = numbers(1)
    expect(t.references).toBe(1)
    t.retain()
    t.dispose()
    expect(t.disposed).toBe(false)
    t.dispose()
    expect(t.disposed).toBe(true)
    t.dispose()
    expect(t.references).toBe(0)
  })

  it('throw ERR_DISPOSED once they are freed', async () => {
    const t = numbers(1)
    t.dispose()
    const uses: (() => unknown)[] = [() => t.retain(), () => add(t, t), () => reshape(t, [1, 1]), () => rowsOf(t, 0, 1)]
    for (const use of uses)
      expect(use).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED', hint: expect.anything() }))
    await expect(t.read()).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
  })

  it('stay readable for a read that was asked for before they were freed', async () => {
    const t = numbers(1, 2, 3)
    const reading = t.read()
    t.dispose()
    using other = numbers(7, 8, 9)
    expect(await reading).toEqual(Float32Array.of(1, 2, 3))
    expect(await other.read()).toEqual(Float32Array.of(7, 8, 9))
  })
})

describe('scope', () => {
  it('frees all but its result', async () => {
    const [a, b] = scope(() => {
      const x = numbers(1)
      const y = add(x, x)
      add(y, y)
      return [y, add(x, y)] as const
    })
    expect((await live()).tensors).toBe(2)
    a.dispose()
    b.dispose()
  })

  it('hands its result to the scope around it', async () => {
    const outer = scope(() => {
      const inner = scope(() => ({ kept: numbers(3), nested: [numbers(4)] }))
      return add(inner.kept, inner.nested[0]!)
    })
    expect((await live()).tensors).toBe(1)
    expect(await outer.item()).toBe(7)
    outer.dispose()
  })

  it('frees everything when its body throws', async () => {
    expect(() =>
      scope(() => {
        add(numbers(1), numbers(2))
        throw new Error('stop')
      }),
    ).toThrow('stop')
    expect((await live()).tensors).toBe(0)
  })

  it('leaves a kept tensor to its new owner', async () => {
    let kept: Tensor | undefined
    scope(() => {
      kept = keep(numbers(1))
      numbers(2)
    })
    expect((await live()).tensors).toBe(1)
    kept!.dispose()
  })

  it('does not free what somebody else retains', () => {
    let shared: Tensor | undefined
    scope(() => {
      shared = numbers(1).retain()
    })
    expect(shared!.references).toBe(1)
    shared!.dispose()
  })

  it('refuses an async body, and frees what that made so far', async () => {
    let late: Promise<void> | undefined
    expect(() =>
      scope(() => {
        numbers(1)
        late = Promise.resolve()
        return late
      }),
    ).toThrow(/must not be async/)
    await late
    expect((await live()).tensors).toBe(0)
  })
})

describe('views', () => {
  it('share memory, which lives as long as the last of them', async () => {
    const x = numbers(1, 2, 3, 4, 5, 6)
    const y = reshape(x, [2, -1])
    const row = rowsOf(y, 1, 2)
    expect(y.shape).toEqual([2, 3])
    expect(await live()).toEqual({ tensors: 3, bytes: expect.any(Number) })
    x.dispose()
    y.dispose()
    expect(await row.read()).toEqual(Float32Array.of(4, 5, 6))
    row.dispose()
  })

  it('write through to the memory they share', async () => {
    using buffer = fill(device, [4, 2], { value: 0, dtype: 'f32' })
    using view = rowsOf(buffer, 2, 4)
    using rows = Tensor.from(device, Float32Array.of(5, 6), [1, 2])
    using index = Tensor.from(device, Int32Array.of(1), [1])
    scatterRows(view, rows, index)
    expect(Array.from(await buffer.read())).toEqual([0, 0, 0, 0, 0, 0, 5, 6])
  })

  it('refuse shapes that do not fit', () => {
    using x = numbers(1, 2, 3, 4, 5, 6)
    for (const shape of [[4], [7], [4, -1], [-1, 4], [0, -1], [2, 2]]) {
      expect(() => reshape(x, shape)).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }))
    }
    for (const [begin, end] of [
      [-1, 2],
      [2, 1],
      [0, 7],
    ] as const) {
      expect(() => rowsOf(x, begin, end)).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }))
    }
  })
})
