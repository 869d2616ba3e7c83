// Budget forcing, against the rules written out as a loop that computes every part anew from its text.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type BudgetForcingOptions, generateAll, generateWithBudget, type Reasoned } from '../../lib/generate/index.js'
import { type CausalLm, loadModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { modelFolder } from '../models/golden_model.js'

let device: Device
let model: CausalLm
beforeAll(async () => {
  device = openDevice({ threads: 2 })
  model = await loadModel(device, modelFolder('llama_mha_tied'))
})
afterAll(async () => {
  model.dispose()
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

/** A token for each character. */
const encode = (text: string) => Int32Array.from(text, (character) => character.charCodeAt(0))
const decode = (sequences: readonly Int32Array[]) =>
  sequences.map((ids) => Array.from(ids, (id) => String.fromCharCode(id)).join(''))
const seed = 11
const prompt = Int32Array.of(65, 66, 67)
const sampling = { temperature: 1 }

/** What the model says after `known`, computed from nothing. */
async function fresh(known: number[], maxTokens: number, stopIds: readonly number[]) {
  const request = { ...sampling, prompt: Int32Array.from(known), maxTokens, stopIds }
  const [[result]] = (await generateAll(model, [request], { seed })) as [
    [Awaited<ReturnType<typeof generateAll>>[0][0]],
  ]
  return { tokens: [...result!.tokens], stopped: result!.finishReason === 'stop' }
}

interface Rules {
  stop: number[]
  budget: number
  ignoreTimes: number
  answer: number
  ignore?: string
}

async function byTheRules({ stop, budget, ignoreTimes, answer, ignore = 'Wait' }: Rules) {
  const begin = [...prompt, ...encode('<think>')]
  const thinking: number[] = []
  let [ignored, cutOff] = [0, false]
  for (;;) {
    const { tokens, stopped } = await fresh([...begin, ...thinking], budget - thinking.length, stop)
    thinking.push(...(stopped ? tokens.slice(0, -1) : tokens))
    cutOff = !stopped
    if (cutOff || ignored === ignoreTimes || thinking.length + ignore.length >= budget) break
    ignored++
    thinking.push(...encode(ignore))
  }
  const close = cutOff ? '\n</think>\nFinal Answer:' : '</think>'
  const known = [...begin, ...thinking, ...encode(close)]
  const final = await fresh(known, answer, [])
  return { thinking, answer: final.tokens, tokens: [...known.slice(3), ...final.tokens], ignored, cutOff }
}

const options = ({ stop, budget, ignoreTimes, answer, ignore }: Rules): BudgetForcingOptions => ({
  thinking: { start: '<think>', end: '</think>', stopIds: stop, maxTokens: budget, ignoreTimes, ignore },
  maxAnswerTokens: answer,
  stopIds: [],
  encode,
  decode,
  sampling,
  seed,
})

const plain = ({ thinking, answer, tokens, ignored, cutOff }: Reasoned) => ({
  thinking: [...thinking],
  answer: [...answer],
  tokens: [...tokens],
  ignored,
  cutOff,
})

describe('thinking', () => {
  /** Ids that end thinking now and then: of the first 60 tokens that the model would say, every tenth. */
  let stop: number[]
  beforeAll(async () => {
    const { tokens } = await fresh([...prompt, ...encode('<think>')], 60, [])
    stop = tokens.filter((_, i) => i % 10 === 9)
  })

  it.each([
    ['that ends by itself is followed by the answer', { budget: 60, ignoreTimes: 0 }, { ignored: 0, cutOff: false }],
    ['that ends too early goes on', { budget: 100, ignoreTimes: 1 }, { ignored: 1 }],
    ['that takes too long is cut off', { budget: 4, ignoreTimes: 3 }, { ignored: 0, cutOff: true }],
    ['whose end is ignored without a word is drawn again', { budget: 60, ignoreTimes: 2, ignore: '' }, { ignored: 2 }],
    ['may be told to go on until it is cut off', { budget: 24, ignoreTimes: 50 }, {}],
  ])('%s', async (_, changed, expected) => {
    const rules = { stop, answer: 5, ...changed }
    const wanted = await byTheRules(rules)
    const [got] = await generateWithBudget(model, [prompt], options(rules))
    expect(plain(got!)).toEqual(wanted)
    expect(got).toMatchObject(expected)
    expect(got!.thinking.length).toBeLessThanOrEqual(rules.budget)
    expect(got!.thinkingText).toBe(decode([got!.thinking])[0])
    expect(got!.answerText).toBe(decode([got!.answer])[0])
  })

  it('of many prompts at once is that of each alone', async () => {
    const prompts = Array.from({ length: 9 }, (_, i) => Int32Array.of(70 + i, 71))
    const rules = { stop, budget: 30, ignoreTimes: 2, answer: 6 }
    const together = await generateWithBudget(model, prompts, options(rules))
    expect(together).toEqual(await generateWithBudget(model, prompts, { ...options(rules), slots: 1 }))
    expect(new Set(together.map(({ ignored }) => ignored)).size).toBeGreaterThan(1)
  })

  it('and answer end where the context does', async () => {
    const long = Int32Array.from({ length: model.config.contextTokens - 20 }, () => 70)
    const rules = { stop: [], budget: 50, ignoreTimes: 0, answer: 5 }
    const [got] = await generateWithBudget(model, [long], options(rules))
    expect(got).toMatchObject({ finishReason: 'length', answer: new Int32Array(0) })
    expect(got!.thinking).toHaveLength(13)
  })
})

it('adds no second line break before the end marker', async () => {
  const lines = (sequences: readonly Int32Array[]) => sequences.map(() => 'a thought\n')
  const rules = { stop: [], budget: 4, ignoreTimes: 0, answer: 3 }
  const [got] = await generateWithBudget(model, [prompt], { ...options(rules), decode: lines })
  expect(got!.tokens.slice(11, -3)).toEqual(encode('</think>\nFinal Answer:'))
})

it.each([
  [{ maxTokens: 0 }, 'thinking.maxTokens must be an integer >= 1; got 0'],
  [{ ignoreTimes: -1 }, 'thinking.ignoreTimes must be an integer >= 0; got -1'],
  [{ ignoreTimes: 2 }, 'thinking.ignoreTimes needs thinking.stopIds: no end can be ignored without'],
])('refuses %o', async (changed, message) => {
  const given = options({ stop: [], budget: 5, ignoreTimes: 0, answer: 3 })
  const run = generateWithBudget(model, [prompt], { ...given, thinking: { ...given.thinking, ...changed } })
  await expect(run).rejects.toMatchObject({ code: 'ERR_CONFIG', message })
})
