// Same bits on any number of threads, for every op: training is to be repeatable on another machine's core count.
import { afterAll, describe, expect, it } from 'vitest'
import { allSamples, plausibleCall } from '../../lib/cli/check_samples.js'
import { openDevice } from '../../lib/ops/index.js'
import { declaredOps } from '../../lib/tensor/index.js'
import {
  argumentsOn,
  callOp,
  digestOf,
  disposeAll,
  type FloatDType,
  roundedCall,
  type SampleCall,
  sampleText,
} from '../../lib/tensor/sample_call.js'

const devices = [1, 2, 3, 4].map((threads) => openDevice({ threads }))

afterAll(() => {
  for (const device of devices) device.close()
})

/** Bits of the results and of every argument (some are updated in place). */
async function bitsOn(device: (typeof devices)[number], call: SampleCall, dtype: FloatDType) {
  const given = argumentsOn(device, call, dtype)
  const made = callOp(call.op, given)
  const bits = { ...(await digestOf(made)), ...(await digestOf(given)) }
  disposeAll(given, made)
  return bits
}

describe.each([...declaredOps()])('%s', (_, op) => {
  const dtypes = (op.definition.dtypes ?? ['f32', 'bf16']).filter((d) => d === 'f32' || d === 'bf16' || d === 'f64')

  it('has the same bits on 1, 2, 3 and 4 threads', async () => {
    const samples = allSamples(op)
    expect(samples.length).toBeGreaterThan(0)
    for (const sample of samples) {
      const exact = plausibleCall(op, sample)
      for (const dtype of dtypes as FloatDType[]) {
        const call = roundedCall(exact, dtype)
        const [one, ...others] = await Promise.all(devices.map((device) => bitsOn(device, call, dtype)))
        expect(Object.keys(one!).length).toBeGreaterThan(0)
        for (const [i, other] of others.entries()) {
          for (const [name, bits] of Object.entries(one!)) {
            expect(other[name], `${name} with ${i + 2} threads, ${dtype}, ${sampleText(sample)}`).toBe(bits)
          }
        }
      }
    }
  })
})
