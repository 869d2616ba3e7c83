// Tasks that are answered by writing: the published prompts, metrics of given answers, and runs of a model whose
// numbers depend on the seed alone.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { GSM8K_EXEMPLARS } from '../../lib/evals/exemplars.js'
import { type AnsweredProblem, generationMetrics, problemPrompt } from '../../lib/evals/generation_run.js'
import { gsm8kTask, ifevalTask, mathTask } from '../../lib/evals/generation_tasks.js'
import { type AnswerRecord, type EvaluateOptions, evaluate, evaluateTasks } from '../../lib/evals/index.js'
import type { GenerationTask, Problem } from '../../lib/evals/task.js'
import { type CausalLm, loadModel, newModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { answerNumber } from '../../lib/verify/gsm8k.js'
import { numberText } from '../../lib/verify/number_text.js'
import { guardedVerify } from '../../lib/verify/verifier.js'
import { modelFolder } from '../models/golden_model.js'
import { realData } from '../verify/verifier_cases.js'

const place = { file: 'rows.jsonl', line: 1 }

describe('prompts', () => {
  const problem = gsm8kTask.problem({ question: 'How many?', answer: '#### 4' }, place)
  const plain = (task: GenerationTask, question: string) =>
    problemPrompt(task, question, { format: 'plain', exemplars: task.exemplars!.slice(0, task.shots) }) as string

  it('of gsm8k have the eight published examples', () => {
    const text = plain(gsm8kTask, problem.question)
    expect(text.split('\n\n').length).toBe(9)
    expect(text).toMatch(/^Question: There are 15 trees in the grove\. /)
    expect(text).toContain('must have been 21 - 15 = 6. So the answer is 6.\n\nQuestion: If there are 3 cars')
    expect(text).toMatch(/23 - 15 is 8\. So the answer is 8\.\n\nQuestion: How many\?\nAnswer:$/)
    // Each example is right about itself.
    const answers = GSM8K_EXEMPLARS.map(({ answer }) => numberText(answerNumber(answer)!))
    expect(answers).toEqual(['6', '5', '39', '8', '9', '29', '33', '8'])
  })

  it('of math are those of Minerva', () => {
    const asked = mathTask.problem({ problem: 'Find $x$.', solution: 'It is $\\boxed{3}$.' }, place)
    const text = plain(mathTask, asked.question)
    expect(text).toMatch(
      /^Problem:\nFind the domain of the expression {2}\$\\frac\{\\sqrt\{x-2\}\}\{\\sqrt\{5-x\}\}\$\.\}\n\nSolution:\nThe /,
    )
    expect(text.endsWith('I hope it is correct.\n\nProblem:\nFind $x$.\n\nSolution:')).toBe(true)
    expect(text).toContain(
      '\\begin{align*}\n30n&=480\\\\\n\\Rightarrow\\qquad n&=480/30=\\boxed{16}\n\\end{align*}\nFinal',
    )
    const boxed = ['[2,5)', '24', '16', '-\\frac{2}{3}']
    for (const [i, { answer }] of mathTask.exemplars!.entries()) {
      const verdict = guardedVerify(mathTask.verifier, { completion: answer, groundTruth: boxed[i] })
      expect(verdict.score, answer).toBe(1)
    }
  })

  it('are one turn of a conversation, or several', () => {
    const exemplars = [{ question: 'Q1', answer: 'A1' }]
    expect(problemPrompt(gsm8kTask, 'Q2', { format: 'chat', exemplars })).toEqual([
      { role: 'user', content: 'Q1 A1\n\nQ2' },
    ])
    expect(problemPrompt(gsm8kTask, 'Q2', { format: 'turns', exemplars })).toEqual([
      { role: 'user', content: 'Q1' },
      { role: 'assistant', content: 'A1' },
      { role: 'user', content: 'Q2' },
    ])
  })
})

/** Problems with given answers, judged by the task's own rule. */
function answered(task: GenerationTask, rows: readonly (readonly [problem: Problem, texts: string[]])[]) {
  return rows.map(([problem, texts]): AnsweredProblem => {
    const answers = texts.map((text) => {
      const verdict = guardedVerify(task.verifier, { ...problem, completion: text })
      return { text, tokens: text.length, isCutOff: false, verdict }
    })
    return { problem, prompt: { prompt: '', ids: new Int32Array(0), shots: 0, isCut: false }, answers }
  })
}

function values(task: GenerationTask, rows: AnsweredProblem[]): { [metric: string]: number } {
  return Object.fromEntries(generationMetrics(task, rows).map(({ name, value }) => [name, value]))
}

describe('metrics', () => {
  const asked = (answer: string) => gsm8kTask.problem({ question: 'How many?', answer: `#### ${answer}` }, place)

  it('of several samples: mean, pass@k and the majority', () => {
    const rows = answered(gsm8kTask, [
      // Two of four are right and agree: the majority is right. pass@2 = 1 - (2 * 1) / (4 * 3) = 5/6.
      [asked('4'), ['so 4', '5', 'I get $4.00', '6']],
      // One is right, two agree on something else. pass@2 = 1 - (3 * 2) / (4 * 3) = 1/2.
      [asked('7'), ['8', '7', '8', 'none']],
    ])
    expect(values(gsm8kTask, rows)).toEqual({
      exact_match: expect.closeTo(3 / 8, 12),
      'pass@1': expect.closeTo(3 / 8, 12),
      'pass@2': expect.closeTo((5 / 6 + 1 / 2) / 2, 12),
      'pass@4': 1,
      'maj@4': 0.5,
    })
  })

  it('of one sample: the share of right answers alone', () => {
    const rows = answered(gsm8kTask, [
      [asked('4'), ['4']],
      [asked('4'), ['5']],
    ])
    expect(values(gsm8kTask, rows)).toEqual({ exact_match: 0.5 })
  })

  it('of instructions: prompts and instructions, strict and loose', () => {
    const ids = ['punctuation:no_comma', 'startend:quotation']
    const row = { prompt: 'Do.', instruction_id_list: ids, kwargs: [{}, {}] }
    const one = { prompt: 'Do.', instruction_id_list: ids.slice(0, 1), kwargs: [{}] }
    const rows = answered(ifevalTask, [
      // Strictly neither; without its first line both.
      [ifevalTask.problem(row, place), ['Sure, here:\n"a b"']],
      [ifevalTask.problem(one, place), ['fine']],
    ])
    expect(values(ifevalTask, rows)).toEqual({
      prompt_level_loose_acc: 1,
      inst_level_loose_acc: 1,
      prompt_level_strict_acc: 0.5,
      inst_level_strict_acc: expect.closeTo(1 / 3, 12),
    })
  })

  it.skipIf(!existsSync(realData('gsm8k')))('of the published model solutions of GSM8K (needs ../shared/data)', () => {
    const lines = readFileSync(realData('gsm8k/model_solutions_200.jsonl'), 'utf8').trimEnd().split('\n')
    const rows = lines.map((line) => JSON.parse(line) as { [key: string]: { solution: string; is_correct: boolean } })
    for (const system of Object.keys(rows[0]!).filter((key) => !['question', 'ground_truth'].includes(key))) {
      const given = answered(
        gsm8kTask,
        rows.map((row) => {
          const { question, ground_truth } = row as unknown as { question: string; ground_truth: string }
          return [gsm8kTask.problem({ question, answer: ground_truth }, place), [row[system]!.solution]] as const
        }),
      )
      const right = rows.filter((row) => row[system]!.is_correct).length
      expect(values(gsm8kTask, given).exact_match, system).toBeCloseTo(right / rows.length, 12)
    }
  })

  it.skipIf(!existsSync(realData('ifeval')))('of published responses to IFEval (needs ../shared/data)', () => {
    const read = (name: string) =>
      readFileSync(realData(`ifeval/${name}`), 'utf8')
        .trimEnd()
        .split('\n')
    const problems = read('prompts.jsonl').map((line) => ifevalTask.problem(JSON.parse(line), place))
    const official = read('verdicts-qwen2.5-1.5b.jsonl').map((line) => {
      return JSON.parse(line) as { response: string; strict: boolean[]; loose: boolean[] }
    })
    const given = values(
      ifevalTask,
      answered(
        ifevalTask,
        problems.map((one, i) => [one, [official[i]!.response]]),
      ),
    )
    for (const reading of ['strict', 'loose'] as const) {
      const verdicts = official.map((one) => one[reading])
      const whole = verdicts.filter((one) => one.every(Boolean)).length / verdicts.length
      const single = verdicts.flat().filter(Boolean).length / verdicts.flat().length
      // Of 5004 verdicts of three models ten are known to differ (docs/verifiers.md).
      expect(Math.abs(given[`prompt_level_${reading}_acc`]! - whole)).toBeLessThan(3.5 / 541)
      expect(Math.abs(given[`inst_level_${reading}_acc`]! - single)).toBeLessThan(4.5 / 834)
    }
  })
})

describe('a model', () => {
  const folder = mkdtempSync(join(tmpdir(), 'caravan-evals-'))
  let device: Device
  let model: CausalLm
  let tokenizer: Tokenizer
  beforeAll(async () => {
    device = openDevice({ threads: 2 })
    model = await loadModel(device, modelFolder('llama_mha_tied'))
    tokenizer = await Tokenizer.load(modelFolder('llama_mha_tied'))
    mkdirSync(join(folder, 'gsm8k'))
    const rows = Array.from({ length: 5 }, (_, i) => ({ question: `${i}+${i}?`, answer: `#### ${2 * i}` }))
    writeFileSync(join(folder, 'gsm8k/test.jsonl'), rows.map((row) => `${JSON.stringify(row)}\n`).join(''))
  })
  afterAll(async () => {
    model.dispose()
    await device.idle()
    expect(device.stats().liveTensors).toBe(0)
    device.close()
    rmSync(folder, { recursive: true })
  })

  const options: EvaluateOptions = { data: folder, shots: 0, samples: 3, temperature: 1, maxTokens: 12, seed: 4 }

  async function run(more: EvaluateOptions = {}, tasks: string[] = ['gsm8k']) {
    const records: AnswerRecord[] = []
    const result = await evaluate(model, tokenizer, tasks, {
      ...options,
      ...more,
      onSample: (record) => {
        records.push(record as AnswerRecord)
      },
    })
    return { result, records }
  }

  it('gives the same answers whatever is in work beside them, and others for another seed', async () => {
    const { result, records } = await run()
    expect(records.map(({ row, sample }) => [row, sample])).toEqual(
      [0, 1, 2, 3, 4].flatMap((row) => [0, 1, 2].map((sample) => [row, sample])),
    )
    expect(new Set(records.map(({ completion }) => completion)).size).toBeGreaterThan(10)
    expect((await run({ slots: 1 })).records).toEqual(records)
    expect((await run({ limit: 2 })).records).toEqual(records.slice(0, 6))
    expect((await run({ seed: 5 })).records).not.toEqual(records)
    expect(result.tasks[0]!.metrics.map(({ name }) => name)).toEqual(['exact_match', 'pass@1', 'pass@2', 'maj@3'])
    expect(result.tasks[0]!.answers!.count).toBe(15)
    expect(result.settings).toMatchObject({ seed: 4, samples: 3, temperature: 1, topP: 1, limit: null, dtype: 'f32' })
  })

  it('is asked in the format that is wanted', async () => {
    const [turns, chat, plain, tulu] = await Promise.all([
      run(),
      run({ format: 'chat' }),
      run({ format: 'plain' }),
      run({ template: 'tulu' }),
    ])
    const message = { role: 'user', content: 'Question: 0+0?\nAnswer:' }
    expect(turns.records[0]!.prompt).toEqual([message])
    expect(chat.records).toEqual(turns.records)
    expect(plain.records[0]!.prompt).toBe(message.content)
    expect(plain.records.map((one) => one.completion)).not.toEqual(chat.records.map((one) => one.completion))
    expect(tulu.records.map((one) => one.completion)).not.toEqual(chat.records.map((one) => one.completion))
  })

  it('stops in plain text where it begins to ask itself', async () => {
    const { records } = await run({ format: 'plain' })
    const [, first] = /^.{2}(..)/s.exec(records[0]!.completion)!
    const task: GenerationTask = { ...gsm8kTask, stopTexts: [first!] }
    const stopped: AnswerRecord[] = []
    await evaluate(model, tokenizer, [task], {
      ...options,
      format: 'plain',
      onSample: (record) => {
        stopped.push(record as AnswerRecord)
      },
    })
    expect(stopped[0]).toMatchObject({ completion: records[0]!.completion.slice(0, 2), finish_reason: 'stop' })
  })

  it('has as many examples as its context takes', async () => {
    const { result, records } = await run({ shots: 8, samples: 1 })
    // 128 tokens hold none of them beside a question.
    expect(result.tasks[0]).toMatchObject({ shortenedPrompts: 5, cutPrompts: 0, settings: { shots: 8 } })
    expect(records[0]!.prompt).toHaveLength(1)
    using large = newModel(device, { ...model.config, contextTokens: 4096 }, { seed: 1, dtype: 'f32' })
    const whole = await evaluate(large, tokenizer, ['gsm8k'], { ...options, shots: undefined, samples: 1 })
    expect(whole.tasks[0]).toMatchObject({ shortenedPrompts: 0, cutPrompts: 0, settings: { shots: 8 } })
  })

  it('reports progress, numbers for a training log, and ends when it is told to', async () => {
    const seen: number[] = []
    const numbers = await evaluateTasks(model, tokenizer, ['gsm8k'], {
      ...options,
      onProgress: ({ task, done, total }) => {
        expect([task, total]).toEqual(['gsm8k', 15])
        seen.push(done)
      },
    })
    expect(seen.at(-1)).toBe(15)
    expect(Object.keys(numbers)).toEqual(['gsm8k/exact_match', 'gsm8k/pass@1', 'gsm8k/pass@2', 'gsm8k/maj@3'])
    const stop = new AbortController()
    const stopped = run({ signal: stop.signal, onProgress: () => stop.abort() })
    await expect(stopped).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  })

  it.each([
    [{ temperature: 0 }, 'ERR_CONFIG', /3 samples at temperature 0 are all alike/],
    [{ topP: 2 }, 'ERR_CONFIG', /topP must be above 0 and at most 1/],
    [{ shots: 9 }, 'ERR_CONFIG', /gsm8k: 9 worked examples are wanted; there are 8/],
    [{ limit: 0 }, 'ERR_CONFIG', /limit must be a whole number >= 1; got 0/],
    [{ format: 'prose' as 'plain' }, 'ERR_CONFIG', /format must be one of plain, chat, turns; got prose/],
    [{ formulations: [] }, 'ERR_CONFIG', /formulations must be some of mcf, cf/],
    [{ data: undefined }, 'ERR_CONFIG', /the task gsm8k needs a data folder/],
    [{ data: join(folder, 'none') }, 'ERR_FILE', /none: stat failed with ENOENT/],
  ])('%j is refused', async (more, code, message) => {
    await expect(run(more)).rejects.toMatchObject({ code, message: expect.stringMatching(message) })
  })

  it('is not asked anything when a label is bad', async () => {
    const file = join(folder, 'bad.jsonl')
    writeFileSync(file, '{"question":"a","answer":"#### 1"}\n{"question":"b","answer":"no number"}\n')
    let asked = 0
    const failed = run({ data: file, slots: 1, onProgress: () => asked++ })
    await expect(failed).rejects.toMatchObject({ code: 'ERR_DATA', details: { file, line: 2 } })
    expect(asked).toBe(0)
  })
})
