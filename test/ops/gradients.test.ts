// Gradients of every op of the table. In f64 against central differences; the fused f32 and bf16 backward kernels
// against the differentiated reference in f64, under the tolerance rule.
import { afterAll, describe, expect, it } from 'vitest'
import { countOf } from '../../lib/base/shape.js'
import { oddSamples } from '../../lib/cli/odd_samples.js'
import { crossEntropyOp, openDevice } from '../../lib/ops/index.js'
import {
  checkGradient,
  declaredOps,
  Gradients,
  leaks,
  type Op,
  type Sample,
  scope,
  Tape,
  type Tensor,
} from '../../lib/tensor/index.js'
import {
  argumentsOn,
  callOp,
  disposeAll,
  roundedCall,
  type SampleCall,
  sampleCall,
  sampleText,
  type Tensors,
  tensorsOf,
  testSamples,
  uniformArguments,
  upload,
} from '../../lib/tensor/sample_call.js'
import { deviceUnderTest, hasBf16Products } from '../device_under_test.js'
import { cancellingTerms, naiveAttentionBackward } from './attention_backward.js'
import { differentiable, gradientsBy, seedValues } from './autodiff.js'
import { expectWithinNaive, largestMagnitude } from './tolerance.js'

const device = openDevice(deviceUnderTest)
const ops = [...declaredOps().values()]
const nameOf = (op: Op) => op.definition.name

/** Central differences cost two runs an element. */
const MOST_ELEMENTS = 512

/** Ops without a gradient, and why. */
const withoutGradient: { [op: string]: string } = {
  greater: 'a step: its gradient is 0 almost everywhere and is never asked for',
  argmax: 'an index',
  sample: 'an index',
  attention_paged: 'reads a cache: generation only',
  rope_table: 'a table of constants',
  fill: 'no inputs',
  iota: 'no inputs',
  random_normal: 'no inputs',
  random_uniform: 'no inputs',
  cross_entropy: 'makes its gradient in the forward pass; checked below',
  cross_entropy_frozen: 'makes its gradient in the forward pass; test/ops/frozen_head.test.ts',
}
const gradientOrInPlace = (op: Op) => /_backward/.test(nameOf(op)) || op.parsed.inputs.some((input) => input.inPlace)

afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
})

const withGradient = ops.filter((op) => op.definition.backward)

it('every op has a gradient, is one, or is excused', () => {
  const missing = ops.filter((op) => !op.definition.backward && !gradientOrInPlace(op)).map(nameOf)
  expect(missing.sort()).toEqual(Object.keys(withoutGradient).sort())
})

function elementsOf(op: Op, sample: Sample): number {
  return sampleCall(op, sample).inputs.reduce((count, input) => count + input.values.length, 0)
}

describe.each(withGradient.map((op) => [nameOf(op), op] as const))('%s against central differences', (_, op) => {
  const samples = testSamples(op).filter((sample) => elementsOf(op, sample) <= MOST_ELEMENTS)

  it.each(samples.map((sample) => [sampleText(sample), sample] as const))('sample %s', async (_text, sample) => {
    // A cast to a narrower type is a staircase: only its slope on average is 1.
    if (nameOf(op) === 'cast' && sample.dtype !== 2) return
    const call = argumentsOn(device, sampleCall(op, sample), 'f64')
    const tensors = Object.fromEntries(tensorsOf(call))
    const constant = (op.definition.constant ?? []) as readonly string[]
    const body = (inputs: Tensors) => differentiable(op, callOp(op, { ...call, ...inputs }))
    const report = await checkGradient(body, tensors, { constant })
    disposeAll(call)
    expect(report.faults).toEqual([])
    const variable = Object.entries(tensors).filter(([name, t]) => t.dtype === 'f64' && !constant.includes(name))
    expect(report.checked).toBe(variable.reduce((count, [, tensor]) => count + tensor.count, 0))
  })

  it('has a sample small enough', () => {
    expect(samples.length).toBeGreaterThan(0)
  })
})

/** Backward kernels that read a bf16-rounded output of the forward pass: compared with the composition in bf16. */
const readsRounded: { [op: string]: string } = {
  add_rms_norm: 'sum, as stored',
  preference_loss: 'dlogp, as stored',
  policy_loss: 'dlogp, as stored',
  value_loss: 'dvalues, as stored',
  ...(hasBf16Products(device.isa) && { linear_logprob: 'the gradient of the logits, a bf16 operand there' }),
}

async function naiveGradients(call: SampleCall, dtype: 'f32' | 'bf16'): Promise<Map<string, Float64Array>> {
  const { op } = call
  if (nameOf(op) === 'attention') {
    const { shape } = call.inputs.find((input) => input.name === 'q')!
    return naiveAttentionBackward(call, seedValues(countOf(shape), 0), dtype)
  }
  const given = uniformArguments(device, call, nameOf(op) in readsRounded ? dtype : 'f32')
  const { values } = await gradientsBy(device, op, given, referenceOf(op))
  disposeAll(given)
  return values
}

const referenceOf = (op: Op) => (given: object) => op.definition.reference!(given as never) as Tensors

async function checkBackward(op: Op, sample: Sample, dtype: 'f32' | 'bf16'): Promise<void> {
  const call = roundedCall(sampleCall(op, sample), dtype)
  const given = argumentsOn(device, call, dtype)
  const exact = uniformArguments(device, call, 'f64')
  const [got, truth, naive] = await Promise.all([
    gradientsBy(device, op, given, (arguments_) => callOp(op, arguments_)),
    gradientsBy(device, op, exact, referenceOf(op)),
    naiveGradients(call, dtype),
  ])
  disposeAll(given, exact)
  // dq and dk come from do.v - do.o, two terms that may cancel altogether (a query with one key).
  const terms = nameOf(op) === 'attention' ? cancellingTerms(call, seedValues(call.inputs[0]!.values.length, 0)) : 0
  expect([...got.values.keys()].sort()).toEqual([...truth.values.keys()].sort())
  for (const [name, gradient] of got.values) {
    expectWithinNaive({
      what: `${nameOf(op)} ${dtype} ${sampleText(sample)}: d${name}`,
      got: gradient,
      truth: truth.values.get(name)!,
      naive: naive.get(name)!,
      dtype: nameOf(op) in readsRounded ? dtype : got.dtypes.get(name)!,
      terms,
    })
  }
}

const fused = withGradient.filter((op) => op.definition.reference)

describe.each(fused.map((op) => [nameOf(op), op] as const))('%s against its differentiated reference', (_, op) => {
  it.each(['f32', 'bf16'] as const)('in %s', async (dtype) => {
    const faults: string[] = []
    const samples = [...testSamples(op), ...oddSamples(op)]
    for (const sample of samples) {
      await checkBackward(op, sample, dtype).catch((error: Error) => faults.push(error.message))
    }
    expect(faults).toEqual([])
  })
})

describe('cross_entropy', () => {
  it.each(testSamples(crossEntropyOp as Op).map((s) => [sampleText(s), s] as const))(
    'gradients of %s',
    async (_t, s) => {
      const call = argumentsOn(device, sampleCall(crossEntropyOp as Op, s), 'f64')
      const { hidden, head } = call as { hidden: Tensor; head: Tensor }
      hidden.tracked = true
      head.tracked = true
      using gradients = new Gradients()
      const made = scope(() => {
        const results = crossEntropyOp.definition.reference!(call as never)
        return { dhidden: results.dhidden!, dhead: results.dhead! }
      })
      scope(() => {
        const tape = new Tape()
        const { loss } = tape.record(() => ({ loss: crossEntropyOp.definition.reference!(call as never).loss! }))
        tape.backward(loss, upload(device, 'f64', [1], [1]), gradients)
      })
      for (const [input, tensor] of [
        [hidden, made.dhidden],
        [head, made.dhead],
      ] as const) {
        const truth = await gradients.get(input)!.read()
        const got = await tensor.read()
        const allowed = 1e-12 * (1 + largestMagnitude(truth))
        for (let i = 0; i < truth.length; i++) expect(Math.abs(got[i]! - truth[i]!)).toBeLessThanOrEqual(allowed)
      }
      disposeAll(call, made)
    },
  )
})
