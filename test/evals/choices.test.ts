// Tasks of choices from file to accuracy, against log-probabilities of transformers in f64, one text at a time, and
// prompts built from OLMES's description by another program (test/golden/evals/make.py).
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type ChoiceScore, chosenIndex } from '../../lib/evals/choice_run.js'
import { cleanHellaSwag } from '../../lib/evals/choice_tasks.js'
import { type ChoiceRecord, evaluate, type SampleRecord } from '../../lib/evals/index.js'
import { type CausalLm, loadModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { deviceUnderTest } from '../device_under_test.js'
import { modelFolder } from '../models/golden_model.js'

interface Golden {
  dev?: object[]
  train?: object[]
  test?: object[]
  validation?: object[]
  questions: Record<'mcf' | 'cf', { prompt: string; answer: number; scores: ChoiceScore[] }>[]
  accuracies: { [metric: string]: number }
  by_subject?: { [subject: string]: { [metric: string]: number } }
}

const path = new URL('../golden/evals/choices.json', import.meta.url)
const golden = JSON.parse(readFileSync(path, 'utf8')) as { [task: string]: Golden }
const folder = mkdtempSync(join(tmpdir(), 'caravan-evals-'))
let device: Device
let model: CausalLm
let tokenizer: Tokenizer

beforeAll(async () => {
  device = openDevice(deviceUnderTest)
  model = await loadModel(device, modelFolder('llama_mha_tied'))
  tokenizer = await Tokenizer.load(modelFolder('llama_mha_tied'))
  for (const [task, sets] of Object.entries(golden)) {
    mkdirSync(join(folder, task))
    for (const split of ['dev', 'train', 'test', 'validation'] as const) {
      const lines = sets[split]?.map((row) => `${JSON.stringify(row)}\n`)
      if (lines) writeFileSync(join(folder, task, `${split}.jsonl`), lines.join(''))
    }
  }
})
afterAll(async () => {
  model.dispose()
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
  rmSync(folder, { recursive: true })
})

describe.each(Object.entries(golden))('%s', (task, { questions, accuracies, by_subject }) => {
  const records: ChoiceRecord[] = []
  let result: Awaited<ReturnType<typeof evaluate>>['tasks'][number]
  beforeAll(async () => {
    const onSample = (record: SampleRecord) => {
      if ('formulation' in record) records.push(record)
    }
    result = (await evaluate(model, tokenizer, [task], { data: folder, onSample })).tasks[0]!
  })

  it('has the prompts of OLMES', () => {
    expect(records.length).toBe(2 * questions.length)
    for (const { row, formulation, prompt, answer } of records) {
      expect(prompt).toBe(questions[row]![formulation].prompt)
      expect(answer).toBe(questions[row]![formulation].answer)
    }
    expect([result.shortenedPrompts, result.cutPrompts]).toEqual([0, 0])
  })

  it('has the log-probabilities of transformers', () => {
    for (const { row, formulation, logprobs, unconditional_logprobs } of records) {
      const { scores } = questions[row]![formulation]
      expect(logprobs.length).toBe(scores.length)
      for (const [i, score] of scores.entries()) {
        expect(Math.abs(logprobs[i]! - score.logprob)).toBeLessThan(2e-4)
        if (formulation === 'cf') {
          expect(Math.abs(unconditional_logprobs![i]! - score.unconditional!)).toBeLessThan(2e-4)
        }
      }
    }
  })

  it('has the accuracies that follow', () => {
    const of = (metrics: { name: string; value: number }[]) =>
      Object.fromEntries(metrics.map(({ name, value }) => [name, value]))
    const expected = (one: { [metric: string]: number }) =>
      Object.fromEntries(Object.entries(one).map(([name, value]) => [name, expect.closeTo(value, 12)]))
    const groups = by_subject ? Object.values(by_subject) : [accuracies]
    const macro = Object.fromEntries(
      Object.keys(accuracies).map((name) => [name, groups.reduce((sum, one) => sum + one[name]!, 0) / groups.length]),
    )
    const counting = task === 'arc_challenge' ? 'cf/acc_uncond' : 'cf/acc_per_char'
    const best = Math.max(macro['mcf/acc_raw']!, macro[counting]!)
    expect(of(result.metrics)).toEqual(expected({ acc: best, ...macro }))
    if (by_subject) {
      for (const [subject, metrics] of Object.entries(by_subject)) {
        expect(of(result.subjects![subject]!)).toEqual(expected(metrics))
      }
    } else expect(result.subjects).toBeUndefined()
  })
})

it('no number depends on the size of a pass, threads, or a formulation beside it', async () => {
  const tasks = Object.keys(golden)
  const wanted = await evaluate(model, tokenizer, tasks, { data: folder })
  const small = await evaluate(model, tokenizer, tasks, { data: folder, batchTokens: 1 })
  expect(small.tasks).toEqual(wanted.tasks)
  const cf = await evaluate(model, tokenizer, ['mmlu'], { data: folder, formulations: ['cf'] })
  expect(cf.tasks[0]!.metrics.slice(1)).toEqual(wanted.tasks[0]!.metrics.filter(({ name }) => name.startsWith('cf/')))
  expect(cf.tasks[0]!.metrics[0]!.from).toBe('cf/acc_per_char')
  using other = openDevice({ threads: 1 })
  using alone = await loadModel(other, modelFolder('llama_mha_tied'))
  expect((await evaluate(alone, tokenizer, tasks, { data: folder })).tasks).toEqual(wanted.tasks)
})

it('prompts that are too long lose examples, then their beginning, and are counted', async () => {
  const data = join(folder, 'long')
  mkdirSync(join(data, 'mmlu'), { recursive: true })
  const row = (question: string) => `${JSON.stringify({ question, choices: ['a', 'b'], answer: 'B' })}\n`
  writeFileSync(join(data, 'mmlu/dev.jsonl'), row('x'.repeat(9)).repeat(3))
  writeFileSync(join(data, 'mmlu/test.jsonl'), row('short?') + row('y'.repeat(200)))
  const shown: string[] = []
  const { tasks } = await evaluate(model, tokenizer, ['mmlu'], {
    data,
    shots: 3,
    formulations: ['mcf'],
    onSample: (record) => {
      shown.push(record.prompt as string)
    },
  })
  expect(tasks[0]).toMatchObject({ shortenedPrompts: 2, cutPrompts: 1, rows: 2 })
  // As many examples as the context of 128 tokens holds with the letter: one more would not fit.
  const examples = shown.map((prompt) => prompt.split('Question: x').length - 1)
  expect(examples[0]).toBeGreaterThan(0)
  expect(examples[1]).toBe(0)
  const tokens = async (text: string) => (await tokenizer.encode(text, { addSpecialTokens: true })).ids.length
  const example = shown[0]!.split('\n\n')[1]!
  expect(await tokens(shown[0]!)).toBeLessThan(128)
  expect(await tokens(shown[0]!.replace(example, `${example}\n\n${example}`))).toBeGreaterThan(127)
  expect(shown[0]).toMatch(/^The following are multiple choice questions \(with answers\)\.\n\nQuestion: .*short\?/s)
})

it('the published marks of HellaSwag go', () => {
  expect(cleanHellaSwag(' [header] How to sew [title] Cut. [title] Sew. [step] Go  on.')).toBe(
    ' How to sew. Cut. Sew. Go on.',
  )
})

it('normalizations choose as the worked example of the standard', () => {
  // Gu et al. 2024: by raw sums "water", by tokens, by characters and against "Answer:" alone "food".
  const score = (text: string, logprob: number, unconditional: number, tokens: number) => {
    return { logprob, unconditional, tokens, characters: text.length }
  }
  const scores = [
    score('food', -4.2, -7, 1),
    score('carbon dioxide', -6.1, -12.5, 2),
    score('protection', -5, -9.9, 1),
    score('water', -3.9, -5.1, 1),
  ]
  const chosen = (['raw', 'per_token', 'per_char', 'uncond'] as const).map((one) => chosenIndex(scores, one))
  expect(chosen).toEqual([3, 1, 1, 1])
  expect(chosenIndex([scores[0]!, scores[0]!], 'raw')).toBe(0)
})
