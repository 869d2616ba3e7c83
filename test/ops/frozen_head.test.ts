// The fused losses under a frozen head: the same bits as with a trained one, and no [V,D] tensor.
import { afterAll, describe, expect, it } from 'vitest'
import { allSamples, plausibleCall } from '../../lib/cli/check_samples.js'
import { crossEntropy, fill, linearLogprob, openDevice } from '../../lib/ops/index.js'
import { declaredOps, Gradients, leaks, type Op, Tape, Tensor } from '../../lib/tensor/index.js'
import {
  argumentsOn,
  bitsOf,
  callOp,
  disposeAll,
  roundedCall,
  type SampleCall,
  sampleText,
} from '../../lib/tensor/sample_call.js'
import { deviceUnderTest } from '../device_under_test.js'

const device = openDevice(deviceUnderTest)
const opOf = (name: string): Op => declaredOps().get(name)!

afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
})

async function bits(call: SampleCall, dtype: 'f32' | 'bf16'): Promise<{ [name: string]: string }> {
  const given = argumentsOn(device, call, dtype)
  const made = callOp(call.op, given)
  const found = await bitsOf(made)
  disposeAll(given, made)
  return found
}

describe.each([
  ['linear_logprob_backward_frozen', 'linear_logprob_backward'],
  ['cross_entropy_frozen', 'cross_entropy'],
])('%s', (name, twin) => {
  const op = opOf(name)

  it.each(['f32', 'bf16'] as const)(`has the bits of ${twin} but for dhead, %s`, async (dtype) => {
    const samples = allSamples(op)
    expect(samples.length).toBeGreaterThan(3)
    for (const sample of samples) {
      const call = roundedCall(plausibleCall(op, sample), dtype)
      const { dhead, ...wanted } = await bits({ ...call, op: opOf(twin) }, dtype)
      expect(dhead).toBeDefined()
      expect(await bits(call, dtype), sampleText(sample)).toEqual(wanted)
    }
  })
})

describe.each([
  ['cross entropy', (h: Tensor, w: Tensor, t: Tensor) => crossEntropy(h, w, { target: t }).loss],
  ['log-probabilities', (h: Tensor, w: Tensor, t: Tensor) => linearLogprob(h, w, t).logp],
] as const)('%s of a frozen head', (_, loss) => {
  const [N, V, D] = [5, 4001, 8]

  /** Bits of the gradient of hidden, number of gradients, and bytes of the pass at its peak. */
  async function pass(headTracked: boolean): Promise<{ dhidden: string; count: number; peakBytes: number }> {
    const numbers = (count: number) => Float32Array.from({ length: count }, (_, i) => Math.sin(i))
    using hidden = Tensor.from(device, numbers(N * D), [N, D])
    using head = Tensor.from(device, numbers(V * D), [V, D])
    using target = Tensor.from(
      device,
      Int32Array.from({ length: N }, (_, i) => i * 7),
      [N],
    )
    hidden.tracked = true
    head.tracked = headTracked
    using gradients = new Gradients()
    await device.idle()
    const before = device.stats().liveBytes
    device.resetPeak()
    const tape = new Tape()
    const output = tape.record(() => loss(hidden, head, target))
    using seed = fill(device, output.shape, { value: 0.5, dtype: 'f32' })
    tape.backward(output, seed, gradients)
    output.dispose()
    const dhidden = await gradients.get(hidden)!.read()
    const { peakBytes } = device.stats()
    const count = [...gradients.entries()].length
    return { dhidden: Buffer.from(dhidden.buffer).toString('hex'), count, peakBytes: peakBytes - before }
  }

  it('flows to the hidden rows alone, in less memory', async () => {
    const [trained, frozen] = [await pass(true), await pass(false)]
    expect(frozen.dhidden).toBe(trained.dhidden)
    expect([trained.count, frozen.count]).toEqual([2, 1])
    expect(trained.peakBytes - frozen.peakBytes).toBeGreaterThanOrEqual(V * D * 4)
  })
})
