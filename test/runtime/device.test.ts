// The device and its stream: options, order, failures that arrive late but once, memory budget, close at any time.
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { afterEach, describe, expect, it } from 'vitest'
import type { CaravanError } from '../../lib/base/errors.js'
import { Random } from '../../lib/base/random.js'
import { add, embedding, fill, linear, mul, openDevice, sum } from '../../lib/ops/index.js'
import { type Device, loadAddon } from '../../lib/runtime/index.js'
import { leaks, scope, Tensor } from '../../lib/tensor/index.js'
import { runChild } from './child_process.js'

const opened: Device[] = []

function open(options: Parameters<typeof openDevice>[0] = {}): Device {
  const device = openDevice({ threads: 2, ...options })
  opened.push(device)
  return device
}

afterEach(() => {
  for (const device of opened.splice(0)) device.close()
  expect(leaks.caught).toBe(0)
})

const numbers = (device: Device, ...values: number[]) => Tensor.from(device, Float32Array.from(values), [values.length])

async function rejection(promise: Promise<unknown>): Promise<CaravanError> {
  return promise.then(
    () => expect.fail('nothing was thrown'),
    (error: CaravanError) => error,
  )
}

describe('options', () => {
  it('say what was chosen', () => {
    const device = open({ threads: 3, memoryBudgetBytes: 1e6 })
    expect(device.threads).toBe(3)
    expect(device.kind).toBe('cpu')
    expect(
      loadAddon()
        .isaLevels()
        .map(([name]) => name),
    ).toContain(device.isa)
    expect(device.stats()).toMatchObject({ budgetBytes: 1e6, liveTensors: 0, liveBytes: 0 })
  })

  it.each([0, -1, 1.5, Number.NaN, 1025, 2 ** 40])('threads %d is refused', (threads) => {
    expect(() => openDevice({ threads })).toThrow(expect.objectContaining({ code: 'ERR_CONFIG' }))
  })

  it.each([0, -5, Number.NaN])('a budget of %d bytes is refused', (memoryBudgetBytes) => {
    expect(() => openDevice({ memoryBudgetBytes })).toThrow(expect.objectContaining({ code: 'ERR_CONFIG' }))
  })

  it('an unknown instruction set is refused and the nearest named', () => {
    const open = () => openDevice({ isa: 'avx22' })
    expect(open).toThrow(
      expect.objectContaining({
        code: 'ERR_CONFIG',
        message: expect.stringContaining("'avx22'"),
        hint: "did you mean 'avx2'?",
      }),
    )
  })

  it('CARAVAN_ISA is obeyed', () => {
    const before = process.env.CARAVAN_ISA
    try {
      process.env.CARAVAN_ISA = 'mmx'
      expect(() => openDevice()).toThrow(/unknown instruction set 'mmx'/)
      const built = new Set(
        loadAddon()
          .kernels()
          .map(([isa]) => isa),
      )
      const usable = loadAddon()
        .isaLevels()
        .filter(([name, supported]) => supported && built.has(name))
      process.env.CARAVAN_ISA = usable[0]![0]
      expect(open().isa).toBe(usable[0]![0])
    } finally {
      if (before === undefined) delete process.env.CARAVAN_ISA
      else process.env.CARAVAN_ISA = before
    }
  })

  it('a CUDA device is refused by name where there is none', () => {
    process.env.CARAVAN_CUDA_MODULE = '/no/such/module.so'
    expect(() => openDevice({ kind: 'cuda' })).toThrow(
      expect.objectContaining({ code: 'ERR_DEVICE', message: expect.stringContaining('/no/such/module.so') }),
    )
  })
})

describe('the stream', () => {
  it('runs commands in order, however many', async () => {
    const device = open()
    let x = numbers(device, 0)
    const one = numbers(device, 1)
    for (let i = 0; i < 20_000; i++) {
      const next = add(x, one)
      x.dispose()
      x = next
    }
    expect(await x.item()).toBe(20_000)
    x.dispose()
    one.dispose()
    await device.idle()
    expect(device.stats()).toMatchObject({ liveTensors: 0, liveBytes: 0 })
  })

  it('answers many waits at once', async () => {
    const device = open()
    using x = numbers(device, 3)
    const values = await Promise.all(Array.from({ length: 500 }, (_, i) => (i % 2 ? x.item() : device.idle())))
    expect(values.filter((value) => value === 3).length).toBe(250)
  })

  it('two devices do not see each other', async () => {
    const [a, b] = [open(), open({ threads: 1 })]
    using x = numbers(a, 1, 2)
    using y = numbers(b, 3, 4)
    expect(await Promise.all([x.read(), y.read()])).toEqual([Float32Array.of(1, 2), Float32Array.of(3, 4)])
    expect([a.stats().liveTensors, b.stats().liveTensors]).toEqual([1, 1])
    expect(() => add(x, y)).toThrow(expect.objectContaining({ code: 'ERR_DEVICE' }))
    a.close()
    expect(await y.read()).toEqual(Float32Array.of(3, 4))
  })

  it('keeps the process alive only while somebody waits', async () => {
    const { code, stdout } = await runChild('runtime/children/exit_alone.mjs')
    expect({ code, stdout: stdout.trim() }).toEqual({ code: 0, stdout: '6' })
  })
})

describe('a failure inside a kernel', () => {
  function fail(device: Device): void {
    scope(() => {
      const ids = Tensor.from(device, Int32Array.of(0, 7), [2])
      embedding(ids, fill(device, [3, 2], { value: 1, dtype: 'f32' }))
    })
  }

  it('arrives at the next wait, with op, shapes and place, and only once', async () => {
    const device = open()
    fail(device)
    const error = await rejection(device.idle())
    expect(error.code).toBe('ERR_KERNEL')
    expect(error.message).toMatch(/embedding \(inputs \[2\] \[3,2\]\).*index 7 at position 1.*\[0,V\) = \[0,3\)/)
    expect(error.details).toMatchObject({ op: 'embedding', sequence: expect.any(Number) })
    await device.idle()
    using x = numbers(device, 1)
    expect(await x.item()).toBe(1)
  })

  it('is the first of several', async () => {
    const device = open()
    fail(device)
    scope(() => {
      const [q, ids] = [numbers(device, 1), Tensor.from(device, Int32Array.of(9), [1])]
      embedding(ids, Tensor.from(device, new Float32Array(4), [4, 1]))
      add(q, q)
    })
    expect((await rejection(device.idle())).message).toContain('index 7')
    await device.idle()
  })

  it('reaches a read that depends on it, as the reason', async () => {
    const device = open()
    using ids = Tensor.from(device, Int32Array.of(-3), [1])
    using w = fill(device, [3, 2], { value: 1, dtype: 'f32' })
    using y = embedding(ids, w)
    expect((await rejection(y.read())).code).toBe('ERR_KERNEL')
  })

  it('is thrown by the call itself under CARAVAN_SYNC=1', async () => {
    const { code, stdout, stderr } = await runChild('runtime/children/sync.mjs', [], { env: { CARAVAN_SYNC: '1' } })
    expect(code, stderr).toBe(0)
    const { thrown, later } = JSON.parse(stdout)
    expect(thrown).toMatchObject({ code: 'ERR_KERNEL', message: expect.stringContaining('index 7 at position 1') })
    expect(later).toBeUndefined()
  })
})

describe('the memory budget', () => {
  const MiB = 2 ** 20

  it('ERR_OOM says what was wanted, in use, the limit and the largest; work goes on', async () => {
    const device = open({ memoryBudgetBytes: 64 * MiB })
    using large = fill(device, [10, MiB], { value: 1, dtype: 'f32' })
    using other = fill(device, [1, MiB], { value: 1, dtype: 'f32' })
    const wanted = fill(device, [8, MiB], { value: 1, dtype: 'f32' })
    const error = await rejection(device.idle())
    expect(error.code).toBe('ERR_OOM')
    expect(error.message).toBe(
      `fill wants ${32 * MiB} bytes; ${44 * MiB} bytes are in use, the limit is ${64 * MiB}. ` +
        `Largest tensors: fill[10,${MiB}] ${40 * MiB} bytes, fill[1,${MiB}] ${4 * MiB} bytes`,
    )
    expect(error.hint).toMatch(/smaller micro-batch/)
    wanted.dispose()
    using small = fill(device, [4, MiB], { value: 2, dtype: 'f32' })
    using total = sum(small, 1)
    expect(Array.from(await total.read())).toEqual([2 * MiB, 2 * MiB, 2 * MiB, 2 * MiB])
    expect((await large.read())[5]).toBe(1)
    expect((await other.read())[5]).toBe(1)
  })

  it('what small tensors leave behind serves large ones', async () => {
    const device = open()
    const made = (count: number, mebibytes: number) =>
      Array.from({ length: count }, () => fill(device, [mebibytes, MiB / 4], { value: 1, dtype: 'f32' }))
    const small = made(20, 17)
    await device.idle()
    for (const tensor of small) tensor.dispose()
    await device.idle()
    const { reservedBytes } = device.stats()
    const large = made(9, 34)
    await device.idle()
    expect(device.stats().reservedBytes).toBe(reservedBytes)
    for (const tensor of large) tensor.dispose()
  })

  it('what was freed can be had again, and one failure is reported once', async () => {
    const device = open({ memoryBudgetBytes: 16 * MiB })
    for (let i = 0; i < 20; i++) {
      const x = fill(device, [3, MiB], { value: i, dtype: 'f32' })
      const y = fill(device, [3, MiB], { value: i, dtype: 'f32' })
      const z = add(x, y)
      expect((await rejection(device.idle())).code).toBe('ERR_OOM')
      for (const tensor of [x, y, z]) tensor.dispose()
      await device.idle()
      expect(device.stats()).toMatchObject({ liveTensors: 0, liveBytes: 0 })
    }
  })

  it('scratch memory of a kernel counts, too', async () => {
    const device = open({ memoryBudgetBytes: 3 * MiB })
    using a = fill(device, [500, 500], { value: 1, dtype: 'f32' })
    using b = fill(device, [500, 500], { value: 1, dtype: 'f32' })
    using y = linear(a, b)
    const error = await rejection(y.read())
    expect(error.code).toBe('ERR_OOM')
    expect(error.message).toMatch(/linear/)
  })

  it('live bytes are exact through random sizes and lifetimes', async () => {
    const device = open({ memoryBudgetBytes: 256 * MiB })
    const random = new Random(3)
    const alive: Tensor[] = []
    // The unit of the allocator, which an empty tensor occupies, too: found by allocating one byte.
    const byte = Tensor.empty(device, 'u8', [1])
    await device.idle()
    const unit = device.stats().liveBytes
    byte.dispose()
    const roundedUp = (bytes: number) => Math.ceil(Math.max(1, bytes) / unit) * unit
    for (let i = 0; i < 3000; i++) {
      if (alive.length > 40 || (alive.length > 0 && random.chance(0.45))) {
        alive.splice(random.integer(0, alive.length), 1)[0]!.dispose()
      } else {
        const rows = random.integer(0, 8) * random.integer(0, 300)
        const x = fill(device, [rows, 7], { value: 1, dtype: 'f32' })
        alive.push(random.chance(0.5) ? x : mul(x, x))
        if (alive.at(-1) !== x) x.dispose()
      }
      if (i % 100 === 0) {
        await device.idle()
        const expected = alive.reduce((total, tensor) => total + roundedUp(tensor.bytes), 0)
        expect(device.stats()).toMatchObject({ liveTensors: alive.length, liveBytes: expected })
      }
    }
    for (const tensor of alive) tensor.dispose()
    await device.idle()
    expect(device.stats()).toMatchObject({ liveTensors: 0, liveBytes: 0 })
  })

  it('the peak starts again at what is live', async () => {
    const device = open()
    using kept = fill(device, [MiB], { value: 1, dtype: 'f32' })
    fill(device, [4, MiB], { value: 1, dtype: 'f32' }).dispose()
    await device.idle()
    expect(device.stats().peakBytes).toBe(20 * MiB)
    device.resetPeak()
    expect(device.stats().peakBytes).toBe(kept.bytes)
  })
})

describe('close', () => {
  it('with work pending rejects those who wait, and frees all', async () => {
    const device = open()
    const x = fill(device, [1500, 1500], { value: 1, dtype: 'f32' })
    const y = linear(x, x)
    for (let i = 0; i < 20; i++) linear(y, x).dispose()
    const waits = [device.idle(), y.read(), device.idle()]
    device.close()
    for (const wait of await Promise.allSettled(waits)) {
      expect(wait).toMatchObject({ status: 'rejected', reason: { code: 'ERR_ABORTED' } })
    }
    x.dispose()
    y.dispose()
  })

  it('twice is once, and a closed device says so', async () => {
    const device = open()
    using x = numbers(device, 1)
    device.close()
    device.close()
    for (const use of [
      () => add(x, x),
      () => device.stats(),
      () => fill(device, [1], { value: 1, dtype: 'f32' }),
      () => device.flush(),
    ]) {
      expect(use).toThrow(expect.objectContaining({ code: 'ERR_DEVICE', message: 'this device has been closed' }))
    }
    await expect(x.read()).rejects.toMatchObject({ code: 'ERR_DEVICE' })
  })

  it('a call that it refuses leaves no tensor for the garbage collector', async () => {
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    const device = open()
    using x = numbers(device, 1)
    device.close()
    for (const refused of [() => add(x, x), () => Tensor.empty(device, 'f32', [1]), () => Tensor.viewOf(x, [1])]) {
      expect(refused).toThrow(expect.objectContaining({ code: 'ERR_DEVICE' }))
    }
    for (let i = 0; i < 3; i++) {
      await new Promise((resolve) => setTimeout(resolve, 5))
      collect()
    }
    await new Promise((resolve) => setTimeout(resolve, 20))
    expect(leaks.caught).toBe(0)
  })
})

describe('the addon', () => {
  it.each([1, 2, 3, 4, 5, 6])('survives arguments of any kind (seed %i)', async (seed) => {
    const { code, signal, stdout, stderr } = await runChild('runtime/children/fuzz_addon.mjs', [String(seed)])
    expect({ code, signal }, stderr).toEqual({ code: 0, signal: null })
    const { threw, returned } = JSON.parse(stdout)
    expect(threw).toBeGreaterThan(2000)
    expect(returned).toBeGreaterThan(100)
  })

  it('ERR_NATIVE_LOAD says what was tried and what to do', async () => {
    const env = { CARAVAN_ADDON: './no/such.node' }
    const { stdout } = await runChild('runtime/children/load.mjs', [], { env })
    const error = JSON.parse(stdout)
    expect(error.code).toBe('ERR_NATIVE_LOAD')
    expect(error.message).toMatch(/no\/such\.node: no such file/)
    expect(error.hint).toMatch(/npm run build/)
  })
})
