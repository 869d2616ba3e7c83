// The op table against its definitions: every row, from the table alone. Primitives are compared with loops written in
// JavaScript, ops with a reference with that reference in f64 on the very same (rounded) numbers.
import { afterAll, describe, expect, it } from 'vitest'
import { type DType, dtypeOf } from '../lib/base/dtype.js'
import { oddSamples } from '../lib/cli/odd_samples.js'
import { compareTables, openDevice } from '../lib/ops/index.js'
import { declaredOps, leaks, type Op, runReference, type Sample, scope } from '../lib/tensor/index.js'
import {
  argumentsOn,
  callOp,
  disposeAll,
  dtypeIn,
  type FloatDType,
  readAll,
  rounded,
  roundedCall,
  type SampleCall,
  sampleCall,
  sampleText,
  testSamples,
  uniformArguments,
} from '../lib/tensor/sample_call.js'
import { deviceUnderTest, hasBf16Products } from './device_under_test.js'
import { type Oracle, oracles } from './ops/oracles.js'
import { expectRounded, expectWithinNaive } from './ops/tolerance.js'

const device = openDevice(deviceUnderTest)
const ops = [...declaredOps().values()]
const nameOf = (op: Op) => op.definition.name

/** Ops that this file cannot check by itself, and where they are checked. */
const checkedElsewhere: { [op: string]: string } = {
  cast: 'below, over all pairs of dtypes',
  fill: 'test/ops/sources.test.ts: no inputs',
  iota: 'test/ops/sources.test.ts: no inputs',
  random_normal: 'test/ops/sources.test.ts: no inputs',
  random_uniform: 'test/ops/sources.test.ts: no inputs',
  attention_backward: 'test/ops/gradients.test.ts: against autodiff of the reference',
  linear_logprob_backward: 'test/ops/gradients.test.ts: against autodiff of the reference',
  linear_logprob_backward_frozen: 'test/ops/frozen_head.test.ts: against the form for a trained head',
  cross_entropy_frozen: 'test/ops/frozen_head.test.ts: against the form for a trained head',
  add_into: 'test/ops/in_place.test.ts',
  scatter_rows: 'test/ops/in_place.test.ts',
  linear_backward_weight_add: 'test/ops/in_place.test.ts',
  embedding_backward_add: 'test/ops/in_place.test.ts',
  linear_logprob_backward_add: 'test/ops/in_place.test.ts',
  cross_entropy_add: 'test/ops/in_place.test.ts',
  adamw: 'test/ops/in_place.test.ts',
  adamw_split: 'test/ops/in_place.test.ts',
  adamw_bf16_moments: 'test/ops/in_place.test.ts',
  adamw_split_bf16_moments: 'test/ops/in_place.test.ts',
  sample: 'test/ops/sampling.test.ts: random, with goldens for its distribution',
  squared_sum_add: 'test/ops/in_place.test.ts',
  clip_control: 'test/ops/in_place.test.ts',
}

/** Kernels for bf16 compute in f32 and round once, at the end, so the composition to compare with is that in f32 on the
 *  same inputs. Not so for these, which are compared with the composition in bf16. */
const roundsInside: { [op: string]: string } = {
  add_rms_norm: 'the norm is taken of the sum as stored, which is what the backward pass reads',
  // With native bf16 products the gradient of the logits is rounded to bf16 before it is multiplied.
  ...(hasBf16Products(device.isa) && { cross_entropy: 'the gradient of the logits is a bf16 operand' }),
}

afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(device.stats().liveBytes).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
})

/** Runs the op once in `dtype` and returns its results as numbers. */
async function results(call: SampleCall, dtype: FloatDType): Promise<Map<string, Float64Array>> {
  const given = argumentsOn(device, call, dtype)
  const made = callOp(call.op, given)
  const values = await readAll(made)
  disposeAll(given, made)
  return values
}

/** Runs the reference with every floating argument in `dtype`. */
async function referenceResults(call: SampleCall, dtype: FloatDType): Promise<Map<string, Float64Array>> {
  const given = uniformArguments(device, call, dtype)
  const made = scope(() => runReference(call.op, given))
  const values = await readAll(made)
  disposeAll(given, made)
  return values
}

async function checkPrimitive(oracle: Oracle, plain: SampleCall, dtype: FloatDType): Promise<void> {
  const call = roundedCall(plain, dtype)
  const truth = oracle.run(call)
  const scale = oracle.scale?.(call) ?? Object.fromEntries(Object.entries(truth).map(([k, v]) => [k, v.map(Math.abs)]))
  // bf16 arithmetic is f32 arithmetic, rounded once when it is stored.
  const roundings = dtype === 'bf16' ? Math.min(1, oracle.roundings) : oracle.roundings
  const got = await results(call, dtype)
  for (const [output, expected] of Object.entries(truth)) {
    const what = `${nameOf(call.op)} ${dtype} ${sampleText(call.sample)}: ${output}`
    const exact = expected.map((value) => (roundings === 0 ? rounded(value, dtype) : value))
    // Sums of bf16 are also off by what their f32 terms are.
    const unit = dtype === 'bf16' && oracle.scale ? 1.5 * roundings : roundings
    expectRounded(what, { got: got.get(output) ?? [], truth: exact, scale: scale[output]! }, { dtype, roundings: unit })
  }
}

async function checkAgainstReference(plain: SampleCall, dtype: 'f32' | 'bf16'): Promise<void> {
  const call = roundedCall(plain, dtype)
  const truth = await referenceResults(call, 'f64')
  const naive = await referenceResults(call, nameOf(call.op) in roundsInside ? dtype : 'f32')
  const got = await results(call, dtype)
  for (const output of call.op.parsed.outputs) {
    if (!got.has(output.name)) continue
    expectWithinNaive({
      what: `${nameOf(call.op)} ${dtype} ${sampleText(call.sample)}: ${output.name}`,
      got: got.get(output.name)!,
      truth: truth.get(output.name)!,
      naive: naive.get(output.name)!,
      dtype: nameOf(call.op) in roundsInside ? dtype : dtypeIn(output as { dtype: DType | undefined }, dtype),
    })
  }
}

async function checkSample(op: Op, sample: Sample): Promise<void> {
  const oracle = oracles[nameOf(op)]
  const call = sampleCall(op, sample)
  if (oracle) {
    const dtypes = (op.definition.dtypes ?? ['f32', 'bf16']).filter((dtype) => dtype !== 'i32') as FloatDType[]
    for (const dtype of dtypes) await checkPrimitive(oracle, call, dtype)
  } else {
    for (const dtype of ['f32', 'bf16'] as const) await checkAgainstReference(call, dtype)
  }
}

const checkedHere = ops.filter((op) => !(nameOf(op) in checkedElsewhere))

describe('the op table', () => {
  it('agrees with the kernels', () => {
    expect(compareTables()).toEqual([])
  })

  it('leaves no op unchecked', () => {
    for (const op of checkedHere) {
      expect(
        nameOf(op) in oracles || op.definition.reference,
        `${nameOf(op)} has no oracle and no reference`,
      ).toBeTruthy()
      expect(testSamples(op).length, `${nameOf(op)} has no samples`).toBeGreaterThan(0)
    }
    for (const name of Object.keys(checkedElsewhere)) expect(declaredOps().has(name), name).toBe(true)
    for (const name of Object.keys(oracles)) expect(declaredOps().has(name), name).toBe(true)
  })
})

describe.each(checkedHere.map((op) => [nameOf(op), op] as const))('%s', (_, op) => {
  it.each(testSamples(op).map((sample) => [sampleText(sample), sample] as const))(
    'sample %s',
    async (_text, sample) => {
      await checkSample(op, sample)
    },
  )

  it('sizes 0, 1 and around the vector widths', async () => {
    const samples = oddSamples(op)
    expect(samples.length).toBeGreaterThan(8)
    const faults: string[] = []
    for (const sample of samples) await checkSample(op, sample).catch((error: Error) => faults.push(error.message))
    expect(faults).toEqual([])
  })
})

describe('cast', () => {
  const cast = declaredOps().get('cast')!
  const values = [0, -0, 1, -1, 1 / 3, 2 ** -130, 1e-3, 65504, 3.4e38, -7.5, 255, 1e-40, Infinity, -Infinity, NaN, 0.1]

  it.each(['f32', 'bf16', 'f64'] as const)('from %s rounds to nearest even', async (from) => {
    for (const code of [0, 1, 2]) {
      const call: SampleCall = {
        op: cast,
        sample: { shapes: { x: [values.length] } },
        inputs: [{ name: 'x', shape: [values.length], values: Float64Array.from(values), dtype: undefined }],
        attributes: { dtype: code },
        shape: undefined,
      }
      const exact = roundedCall(call, from)
      const got = await results(exact, from)
      expect(Array.from(got.get('y')!)).toEqual(Array.from(exact.inputs[0]!.values, (x) => rounded(x, dtypeOf(code))))
    }
  })
})
