// `caravan bench check`: that it accepts what is right, and that it sees numbers that are off, bits that do not repeat,
// and calls that fail. The CPU is the device under check; test/cuda runs it on the emulated GPU.
import { afterAll, describe, expect, it } from 'vitest'
import { adamwLoop, joinedHalves } from '../../lib/cli/adamw_loop.js'
import { checkOp, isWrong } from '../../lib/cli/bench_check.js'
import { closeness } from '../../lib/cli/tolerance.js'
import { openDevice } from '../../lib/ops/index.js'
import { declaredOps, type Op, type Tensor } from '../../lib/tensor/index.js'
import { caravan, jsonLines } from './command_line.js'

const cpu = openDevice({ threads: 2 })
afterAll(async () => {
  await cpu.idle()
  expect(cpu.stats().liveTensors).toBe(0)
  cpu.close()
})

type Call = { [name: string]: Tensor }

/** The op `name` with another body. */
function withBody(name: string, body: (op: Op, call: Call) => unknown): Op {
  const op = declaredOps().get(name)!
  return Object.assign((call: Call) => body(op, call), {
    definition: op.definition,
    parsed: op.parsed,
  }) as unknown as Op
}

const checked = (op: Op, dtype: 'fp32' | 'bf16' = 'fp32') =>
  checkOp(op, dtype, { under: cpu, cpu, extent: 'few', seed: 3 })

describe('checkOp', () => {
  it.each(['swiglu', 'attention_backward', 'adamw_split', 'scatter_rows', 'sample', 'random_normal'])(
    'accepts %s',
    async (name) => {
      for (const dtype of ['fp32', 'bf16'] as const) {
        const result = await checked(declaredOps().get(name)!, dtype)
        expect(result.faults).toEqual([])
        expect(isWrong(result)).toBe(false)
        expect(result.samples).toBeGreaterThan(0)
        expect(result.worst).toBeLessThanOrEqual(1)
      }
    },
  )

  it('sees a result that is another one', async () => {
    // silu is not symmetric: the gate and what it lets through are changed over.
    const op = withBody('swiglu', (swiglu, { gate, up }) => swiglu({ gate: up, up: gate } as never))
    const result = await checked(op)
    expect(isWrong(result)).toBe(true)
    expect(result.worst).toBeGreaterThan(1000)
    expect(result.worstAt).toMatch(/^y, N=/)
    expect(result.faults[0]).toMatch(/^N=3 F=64: y is off by [\d.]+, allowed are [\d.e-]+$/)
  })

  it('sees an error of a few roundings', async () => {
    const affine = declaredOps().get('affine')!
    const slightly = (factor: number) =>
      withBody('swiglu', (swiglu, call) => {
        const { y } = swiglu(call as never) as unknown as { y: Tensor }
        return affine({ x: y, scale: factor, shift: 0 } as never)
      })
    expect((await checked(slightly(1 + 2 ** -20))).faults.length).toBeGreaterThan(0)
    expect((await checked(slightly(1))).faults).toEqual([])
  })

  it('sees bits that do not repeat, though each is near enough', async () => {
    const affine = declaredOps().get('affine')!
    let calls = 0
    const op = withBody('swiglu', (swiglu, call) => {
      const { y } = swiglu(call as never) as unknown as { y: Tensor }
      calls++
      return affine({ x: y, scale: calls % 2 === 0 ? 1 : 1 + 2 ** -23, shift: 0 } as never)
    })
    const result = await checked(op)
    expect(result.repeats).toBe(false)
    expect(result.worst).toBeLessThanOrEqual(1)
    expect(result.faults[0]).toBe('N=3 F=64: two runs differ in their bits')
  })

  it('takes an error of the device for a fault of the op', async () => {
    const op = withBody('swiglu', () => {
      throw new Error('no such kernel')
    })
    expect((await checked(op)).faults[0]).toBe('N=3 F=64: no such kernel')
  })
})

describe('the rule', () => {
  it('allows twice the naive error and a few roundings, and none for whole numbers', () => {
    const sides = { got: [1.5, 2], truth: [1, 2], naive: [1.25, 2] }
    const { mine, allowed } = closeness({ ...sides, dtype: 'f32' })
    expect(mine.most).toBe(0.5)
    // 2 * 0.25 + 4 roundings of the largest value, 2.
    expect(allowed.most).toBe(0.5 + 4 * 2 ** -24 * 2)
    expect(closeness({ ...sides, dtype: 'bf16', terms: 8 }).allowed.most).toBe(0.5 + 2 ** -8 * 8)
    expect(closeness({ ...sides, dtype: 'i32' }).allowed).toEqual({ most: 0, rms: 0 })
    expect(closeness({ got: [Number.NaN], truth: [1], naive: [1], dtype: 'f32' }).mine.most).toBe(Infinity)
  })

  it('reads halves of weights as the numbers that they make', () => {
    // 1.5 = 0x3fc00000: no rest. 0x3f808000 rounds half up to 0x3f81, and 0x8000, which is -0x8000, is left.
    const got = joinedHalves([0x3fc0, 0x3f81, 0xbf80], [0, 0x8000, 1])
    expect(Array.from(got)).toEqual([1.5, 1 + 2 ** -8, -(1 + 2 ** -23)])
  })

  it('has the formula of torch.optim.AdamW', () => {
    const inputs = { p: 1, g: 0.5, m: 0, v: 0, control: [0.1, 1, 1, 0.1, 0.05, 0, 1, 0] }
    const call = {
      attributes: { beta1: 0.9, beta2: 0.95, eps: 0, weight_decay: 0.5 },
      inputs: Object.entries(inputs).map(([name, values]) => ({ name, values: Float64Array.from([values].flat()) })),
    }
    const { p, m, v } = adamwLoop(call as never, (x) => x)
    // The first step of Adam is lr * sign(g), after a decay of lr * 0.5.
    expect(p[0]).toBeCloseTo(1 - 0.05 - 0.1, 12)
    expect([m[0], v[0]]).toEqual([expect.closeTo(0.05, 12), expect.closeTo(0.0125, 12)])
  })
})

describe('bench check', () => {
  it('prints a line an op and dtype, in this process and in one for each', async () => {
    for (const more of [[], ['--isolated']]) {
      const words = ['bench', 'check', 'rope', '--extent', 'few', '--threads', '1', '--json', ...more]
      const { stdout, stderr, exitCode } = await caravan(words)
      expect(exitCode, stderr).toBe(0)
      const rows = jsonLines(stdout).filter(({ type }) => type === 'check')
      expect(rows.map(({ dtype }) => dtype).sort()).toEqual(['bf16', 'fp32'])
      for (const row of rows) expect(row).toMatchObject({ op: 'rope', kernel: true, repeats: true, faults: [] })
    }
  })

  it('takes several ops', async () => {
    const words = ['bench', 'check', 'rope', 'swiglu', '--dtype', 'bf16', '--extent', 'few', '--threads', '1', '--json']
    const { stdout, exitCode } = await caravan(words)
    expect(exitCode).toBe(0)
    expect(jsonLines(stdout).flatMap(({ type, op }) => (type === 'check' ? [op] : []))).toEqual(['rope', 'swiglu'])
  })

  it('names the op that was meant', async () => {
    const { stderr, exitCode } = await caravan(['bench', 'check', 'rope', 'swiglo'])
    expect(exitCode).toBe(2)
    expect(stderr).toContain("there is no op 'swiglo'")
    expect(stderr).toContain('did you mean swiglu?')
  })
})
