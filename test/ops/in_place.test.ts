// Ops that update an argument in place: against their twin that makes a new tensor, or loops over the definition.
import { afterAll, describe, expect, it } from 'vitest'
import { adamwLoop } from '../../lib/cli/adamw_loop.js'
import { allSamples, plausibleCall } from '../../lib/cli/check_samples.js'
import { oddSamples } from '../../lib/cli/odd_samples.js'
import { openDevice } from '../../lib/ops/index.js'
import { declaredOps, leaks, type Op, type Sample, type Tensor } from '../../lib/tensor/index.js'
import {
  type AnyCall,
  argumentsOn,
  bitsOf,
  callOp,
  disposeAll,
  type FloatDType,
  type HostArgument,
  readAll,
  rounded,
  roundedCall,
  type SampleCall,
  sampleCall,
  sampleText,
  testSamples,
  upload,
} from '../../lib/tensor/sample_call.js'
import { deviceUnderTest } from '../device_under_test.js'
import { expectRounded, expectWithinNaive } from './tolerance.js'

const device = openDevice(deviceUnderTest)
const opOf = (name: string): Op => declaredOps().get(name)!

afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
})

/** The arguments after the op has run, and its results, as numbers. */
async function afterRunning(call: SampleCall, dtype: FloatDType): Promise<Map<string, Float64Array>> {
  const given = argumentsOn(device, call, dtype)
  const made = callOp(call.op, given)
  const values = new Map([...(await readAll(given)), ...(await readAll(made))])
  disposeAll(given, made)
  return values
}

const valuesOf = (call: SampleCall, name: string) => call.inputs.find((input) => input.name === name)!.values

// ---- accumulating twins
// ------------------------------------------------------------------------------------------------

const twins: { op: string; twin: string; sum: string }[] = [
  { op: 'linear_backward_weight_add', twin: 'linear_backward_weight', sum: 'dw' },
  { op: 'embedding_backward_add', twin: 'embedding_backward', sum: 'dw' },
  { op: 'linear_logprob_backward_add', twin: 'linear_logprob_backward', sum: 'dhead' },
  { op: 'cross_entropy_add', twin: 'cross_entropy', sum: 'dhead' },
]

describe.each(twins)('$op adds what $twin makes', ({ op: name, twin: twinName, sum }) => {
  const [op, twin] = [opOf(name), opOf(twinName)]

  /** The twin's call: the same arguments but for the sum, whose size it may need as an attribute. */
  function twinCall(call: SampleCall): SampleCall {
    const inputs = call.inputs.filter((input) => input.name !== sum)
    const attributes = Object.fromEntries(twin.parsed.attributes.map((key) => [key, Number(call.sample[key])]))
    return { ...call, op: twin, inputs, attributes }
  }

  async function check(sample: Sample, dtype: 'f32' | 'bf16'): Promise<void> {
    const call = roundedCall(plausibleCall(op, sample), dtype)
    const before = valuesOf(call, sum)
    const got = await afterRunning(call, dtype)
    const fresh = await afterRunning(twinCall(call), dtype)
    const added = fresh.get(sum)!
    // The sum may start from what was there, so it need not be the rounded sum of two numbers: but nearly.
    const truth = before.map((value, i) => value + added[i]!)
    const scale = before.map((value, i) => Math.abs(value) + Math.abs(added[i]!) + 1)
    const what = `${name} ${dtype} ${sampleText(sample)}`
    expectRounded(`${what}: ${sum}`, { got: got.get(sum)!, truth, scale }, { dtype: 'f32', roundings: 16 })
    for (const output of op.parsed.outputs)
      expect(got.get(output.name), `${what}: ${output.name}`).toEqual(fresh.get(output.name))
  }

  it.each(['f32', 'bf16'] as const)('in %s', async (dtype) => {
    const samples = [...allSamples(op), ...oddSamples(op)]
    expect(samples.length).toBeGreaterThan(2)
    for (const sample of samples) await check(sample, dtype)
  })
})

// ---- add_into, scatter_rows
// ----------------------------------------------------------------------------------------------

describe('add_into', () => {
  const op = opOf('add_into')
  const pairs: [FloatDType, FloatDType][] = [
    ['f32', 'f32'],
    ['f32', 'bf16'],
    ['bf16', 'bf16'],
    ['f64', 'f64'],
  ]

  it.each(pairs)('y in %s, x in %s', async (into, term) => {
    for (const sample of [...testSamples(op), ...oddSamples(op)]) {
      const { inputs } = sampleCall(op, sample)
      const [y, x] = [inputs[0]!.values.map((v) => rounded(v, into)), inputs[1]!.values.map((v) => rounded(v, term))]
      const given = { y: upload(device, into, y, inputs[0]!.shape), x: upload(device, term, x, inputs[1]!.shape) }
      callOp(op, given)
      expect(Array.from(await given.y.read())).toEqual(Array.from(y, (value, i) => rounded(value + x[i]!, into)))
      expect(Array.from(await given.x.read())).toEqual(Array.from(x))
      disposeAll(given)
    }
  })

  it('refuses to lose digits: f32 into bf16', () => {
    const given = { y: upload(device, 'bf16', [1], [1]), x: upload(device, 'f32', [1], [1]) }
    expect(() => callOp(op, given)).toThrow('add_into: x must be bf16 to match y (or bf16 where y is f32); got f32')
    disposeAll(given)
  })
})

it.each(['f32', 'bf16'] as const)('scatter_rows writes the rows it is told, in %s', async (dtype) => {
  const op = opOf('scatter_rows')
  const repeated = { name: 'index', shape: [4], values: Float64Array.from([2, 0, 2, 3]), dtype: 'i32' as const }
  const plain = sampleCall(op, { M: 5, N: 4, W: 9 })
  const twice = { ...plain, inputs: plain.inputs.map((input) => (input.name === 'index' ? repeated : input)) }
  for (const call of [...allSamples(op).map((sample) => sampleCall(op, sample)), twice].map((c) =>
    roundedCall(c, dtype),
  )) {
    const width = call.inputs[0]!.shape[1]!
    const expected = valuesOf(call, 'into').slice()
    for (const [n, row] of valuesOf(call, 'index').entries()) {
      expected.set(valuesOf(call, 'rows').subarray(n * width, (n + 1) * width), row * width)
    }
    expect((await afterRunning(call, dtype)).get('into')).toEqual(expected)
  }
})

// ---- the optimizer
// -----------------------------------------------------------------------------------------------------

const wordOf = (x: number) => new Uint32Array(Float32Array.of(x).buffer)[0]!
const f32Of = (word: number) => new Float32Array(Uint32Array.of(word >>> 0).buffer)[0]!
const bf16Of = (half: number) => f32Of(half << 16)
/** The bf16 that an f32 rounds to, half up, and the bits that this leaves, read as a bf16. */
const upperHalf = (x: number) => bf16Of(((wordOf(x) + 0x8000) >>> 16) & 0xffff)
const lowerHalf = (x: number) => bf16Of(wordOf(x) & 0xffff)

/** The argument `low` of an argument `master`. */
function halves(master: HostArgument): HostArgument {
  return { ...master, name: 'low', values: Float64Array.from(master.values, lowerHalf), dtype: 'bf16' }
}

describe('adamw', () => {
  const op = opOf('adamw')
  const attributes = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
  const lengths = [0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 1000]

  it.each(lengths)('f32, %i elements', async (length) => {
    const call = roundedCall(plausibleCall(op, { lead: [length], ...attributes }), 'f32')
    const got = await afterRunning(call, 'f32')
    const [truth, naive] = [adamwLoop(call, (x) => x), adamwLoop(call, Math.fround)]
    for (const name of ['p', 'm', 'v'] as const) {
      expectWithinNaive({ what: name, got: got.get(name)!, truth: truth[name], naive: naive[name], dtype: 'f32' })
    }
    for (const name of ['g', 'control']) expect(got.get(name)).toEqual(valuesOf(call, name))
  })

  it.each(lengths)('bf16 with its f32 master, %i elements', async (length) => {
    const call = roundedCall(plausibleCall(op, { lead: [length], with_master: 1, ...attributes }), 'bf16')
    const got = await afterRunning(call, 'bf16')
    const [truth, naive] = [adamwLoop(call, (x) => x), adamwLoop(call, Math.fround)]
    const master = got.get('master')!
    expectWithinNaive({ what: 'master', got: master, truth: truth.p, naive: naive.p, dtype: 'f32' })
    expect(got.get('p')).toEqual(master.map((value) => rounded(value, 'bf16')))
  })

  it.each(lengths)('split in halves: the numbers of an f32 master, %i elements', async (length) => {
    const sample = { lead: [length], with_master: 1, ...attributes }
    const whole = roundedCall(plausibleCall(op, sample), 'bf16')
    // Lower halves that would be a NaN as a bf16 do not survive the way through numbers.
    const masters = valuesOf(whole, 'master')
    for (const [i, x] of masters.entries()) masters[i] = f32Of(wordOf(x) & ~0x4000)
    const split = { ...whole, op: opOf('adamw_split') }
    split.inputs = whole.inputs.map((input) => (input.name === 'master' ? halves(input) : input))
    // p must be the upper half of the master to begin with.
    const upper = Float64Array.from(valuesOf(whole, 'master'), upperHalf)
    split.inputs[0] = { ...split.inputs[0]!, values: upper, dtype: 'bf16' }
    const [full, got] = [await afterRunning(whole, 'bf16'), await afterRunning(split, 'bf16')]
    const updated = Array.from(full.get('master')!)
    expect(Array.from(got.get('p')!)).toEqual(updated.map(upperHalf))
    expect(Array.from(got.get('low')!)).toEqual(updated.map(lowerHalf))
    for (const name of ['m', 'v']) expect(got.get(name)).toEqual(full.get(name))
  })

  it.each(['adamw_bf16_moments', 'adamw_split_bf16_moments'])('%s rounds moments to a neighbour', async (name) => {
    const call = roundedCall(plausibleCall(opOf(name), { lead: [1000], ...attributes }), 'bf16')
    const got = await afterRunning(call, 'bf16')
    const exact = adamwLoop({ ...call, inputs: call.inputs.filter((input) => input.name !== 'low') }, (x) => x)
    for (const moment of ['m', 'v'] as const) {
      let ups = 0
      for (const [i, value] of got.get(moment)!.entries()) {
        const wanted = exact[moment][i]!
        expect(Math.abs(value - wanted)).toBeLessThan(2 ** -7 * Math.abs(wanted))
        ups += Number(Math.abs(value) > Math.abs(wanted))
      }
      // As often up as down: 500 +- 16.
      expect(Math.abs(ups - 500)).toBeLessThan(80)
    }
  })

  it('changes nothing when the gradients are not finite', async () => {
    const call = roundedCall(plausibleCall(op, { lead: [33], with_master: 1, ...attributes }), 'bf16')
    valuesOf(call, 'control')[2] = 0
    valuesOf(call, 'g')[5] = Number.NaN
    const given = argumentsOn(device, call, 'bf16')
    const before = await bitsOf(given)
    callOp(op, given)
    expect(await bitsOf(given)).toEqual(before)
    disposeAll(given)
  })
})

/** Compensated (Neumaier) sum: right to the last place, whatever the length. */
function exactSum(terms: readonly number[]): number {
  let [sum, lost] = [0, 0]
  for (const term of terms) {
    const next = sum + term
    lost += Math.abs(sum) >= Math.abs(term) ? sum - next + term : term - next + sum
    sum = next
  }
  return sum + lost
}

describe('squared_sum_add', () => {
  const op = opOf('squared_sum_add')

  it.each(['f32', 'bf16', 'f64'] as const)('in %s', async (dtype) => {
    for (const length of [0, 1, 7, 8, 9, 17, 33, 255, 257, 16_384, 16_385, 40_001]) {
      const call = roundedCall(plausibleCall(op, { lead: [length] }), dtype)
      const truth = exactSum([valuesOf(call, 'sum')[0]!, ...valuesOf(call, 'g').map((x) => x * x)])
      const got = (await afterRunning(call, dtype)).get('sum')!
      // Eight chains of at most 32 squares, then 64 blocks of a run: so many roundings, if all went the same way.
      expectRounded(`${length}`, { got, truth: [truth], scale: [truth] }, { dtype: 'f64', roundings: 100 })
    }
  })

  it('does not overflow where an f32 square would', async () => {
    const given = { g: upload(device, 'f32', [1e30, 2e30], [2]), sum: upload(device, 'f64', [0], [1]) }
    callOp(op, given)
    expect((await given.sum.read())[0]! / 5e60).toBeCloseTo(1, 6)
    disposeAll(given)
  })
})

describe('clip_control', () => {
  const op = opOf('clip_control')
  const before = [0.01, 9, 9, 0.1, 0.05, 9, 0, 0]

  async function controlAfter(sum: number, attributes: { scale: number; max_norm: number }): Promise<number[]> {
    const given: AnyCall = {
      sum: upload(device, 'f64', [sum], [1]),
      control: upload(device, 'f32', before, [8]),
      ...attributes,
    }
    callOp(op, given)
    const control = Array.from(await (given.control as Tensor).read())
    disposeAll(given)
    return control
  }

  // [sum of squares, scale, max_norm] -> [gradient scale, finite, norm], by the formula of clip_grad_norm_.
  it.each([
    [25, 1, 1, 1 / (5 + 1e-6), 1, 5],
    [25, 0.5, 1, 0.5 / (2.5 + 1e-6), 1, 2.5],
    [25, 1, 10, 1, 1, 5],
    [25, 0.25, 0, 0.25, 1, 1.25],
    [0, 1, 1, 1, 1, 0],
  ])('sum %d scale %d max_norm %d', async (...row) => {
    const [sum, scale, max_norm, gradientScale, finite, norm] = row
    const expected = [before[0]!, gradientScale, finite, before[3]!, before[4]!, norm, 0, 0].map(Math.fround)
    expect(await controlAfter(sum, { scale, max_norm })).toEqual(expected)
  })

  it.each([Infinity, Number.NaN])('sum %d marks the step as not finite', async (sum) => {
    const control = await controlAfter(sum, { scale: 1, max_norm: 1 })
    expect(control[2]).toBe(0)
    expect(Number.isFinite(control[5])).toBe(false)
  })
})
