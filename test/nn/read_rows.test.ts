// Hidden rows that nobody reads are left out of the last block: the others keep their bits, and gradients are those of
// the whole pass, in every model family.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { AnswerLayout } from '../../lib/data/answer_layout.js'
import { answerRows } from '../../lib/methods/answer_rows.js'
import { type CausalLm, loadModel, readRows } from '../../lib/models/index.js'
import { fill, linearLogprob, openDevice, targetsOn } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { type Checkpointing, checkpointings, Gradients, scope, Tape } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { goldenNames, modelFolder } from '../models/golden_model.js'

let device: Device
beforeAll(() => {
  device = openDevice(deviceUnderTest)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

/** Prompts of 0 to 90 tokens, each before three answers of which some tokens are trained. */
function randomAnswers(V: number) {
  const random = new Random(5)
  const draw = (length: number) => Int32Array.from({ length }, () => random.integer(0, V))
  const prompts = [0, 1, 30, 90]
  const lengths = [2, 9, 40]
  const tokens = prompts.reduce((sum, prompt) => sum + prompt + lengths.reduce((a, b) => a + b), 0)
  const layout = new AnswerLayout({ tokens, answers: prompts.length * lengths.length })
  for (const prompt of prompts) {
    layout.addPrompt(draw(prompt))
    // Of the longest answer two stretches, and not its last tokens.
    for (const length of lengths) {
      const trained = (t: number) => t > 0 && (length < 40 || (t > 10 && t < 14) || (t > 20 && t < 36))
      layout.addAnswer(
        draw(length),
        Uint8Array.from({ length }, (_, t) => Number(trained(t))),
      )
    }
  }
  return layout.finish()
}

type Answers = ReturnType<typeof randomAnswers>

async function hiddenRows(model: CausalLm, answers: Answers, whole: boolean): Promise<Float32Array> {
  using hidden = scope(() => {
    const { read, ...rows } = answerRows(device, answers)
    expect(read).toBeDefined()
    return model.hidden(whole ? rows : { ...rows, read })
  })
  return (await hidden.read()) as Float32Array
}

/** Gradients of the summed log-probabilities, by parameter. */
async function gradients(
  model: CausalLm,
  answers: Answers,
  { whole, checkpoint = 'none' }: { whole: boolean; checkpoint?: Checkpointing },
): Promise<Map<string, Float32Array>> {
  using table = new Gradients()
  using tape = new Tape()
  scope(() => {
    const logp = tape.record(() => {
      const { read, ...rows } = answerRows(device, answers)
      const hidden = model.hidden(whole ? rows : { ...rows, read }, { checkpoint })
      return linearLogprob(hidden, model.head, targetsOn(device, answers.labels)).logp
    })
    tape.backward(logp, fill(device, logp.shape, { value: 1, dtype: 'f32' }), table)
  })
  const found = new Map<string, Float32Array>()
  for (const [name, tensor] of model.parameters()) {
    found.set(name, (await table.get(tensor)!.read()) as Float32Array)
  }
  return found
}

const largest = (values: Float32Array) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0)

describe.each(goldenNames)('%s', (name) => {
  it('has the same hidden rows where they are read', async () => {
    using model = await loadModel(device, modelFolder(name))
    const answers = randomAnswers(model.config.V)
    const D = model.config.D
    const [whole, some] = [await hiddenRows(model, answers, true), await hiddenRows(model, answers, false)]
    let left = 0
    for (let row = 0; row < answers.labels.length; row++) {
      const [a, b] = [whole, some].map((rows) => rows.subarray(row * D, (row + 1) * D))
      if (answers.labels[row]! >= 0) expect(b, `row ${row}`).toEqual(a)
      else if (b!.every((value) => value === 0)) left++
    }
    expect(left).toBeGreaterThan(100)
  })

  it('has the same gradients, in every mode of checkpointing', async () => {
    using model = await loadModel(device, modelFolder(name), { dtype: 'f32', trainable: true })
    const answers = randomAnswers(model.config.V)
    const whole = await gradients(model, answers, { whole: true })
    const some = await gradients(model, answers, { whole: false })
    for (const [parameter, wanted] of whole) {
      const difference = some.get(parameter)!.map((value, i) => value - wanted[i]!)
      // Sums of as many terms, of which the zeros are left out: another order in the norms alone.
      expect(largest(difference), parameter).toBeLessThan(1e-5 * largest(wanted))
    }
    for (const checkpoint of checkpointings.slice(1)) {
      expect(await gradients(model, answers, { whole: false, checkpoint }), checkpoint).toEqual(some)
    }
  })
})

describe('the rows that are read', () => {
  const segments = Int32Array.from([0, 4, 0, 4, 4, 9, 4, 9])
  const read = async (reads: (row: number) => boolean) => {
    const found = readRows(device, segments, reads)
    if (!found) return undefined
    using rows = found.rows
    using ofRead = found.segments
    return { rows: Array.from(await rows.read()), segments: Array.from(await ofRead.read()) }
  }

  it('are the last ones of each sequence, from the first that is asked for', async () => {
    expect(await read((row) => row === 2 || row === 6)).toEqual({
      rows: [2, 3, 6, 7, 8],
      segments: [0, 2, 0, 4, 2, 5, 4, 9],
    })
  })

  it('are one of each sequence at least', async () => {
    expect(await read(() => false)).toEqual({ rows: [3, 8], segments: [0, 1, 0, 4, 1, 2, 4, 9] })
  })

  it('are not told apart where they are nearly all', async () => {
    expect(await read(() => true)).toBeUndefined()
  })
})
