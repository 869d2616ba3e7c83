// Tasks of a user's own: what a task file becomes, and which file and field an error names.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { choicePrompt, continuations } from '../../lib/evals/choice_prompts.js'
import { findTasks, loadTasks } from '../../lib/evals/index.js'

const folder = mkdtempSync(join(tmpdir(), 'caravan-evals-'))
afterAll(() => rmSync(folder, { recursive: true }))

function write(name: string, content: object | string): string {
  const path = join(folder, name)
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content))
  return path
}

async function load(task: object) {
  const [loaded] = await loadTasks(await findTasks([write('task.json', task)]), {})
  return loaded!
}

it('a task of answers has prompts, examples, labels and a rule of its own', async () => {
  write('rows.jsonl', '{"land":"France","n":1,"capital":["Paris"]}\n')
  write('shots.jsonl', '{"land":"Italy","n":2,"capital":"Rome"}\n{"land":"Spain","n":3,"capital":"Madrid"}\n')
  const loaded = await load({
    name: 'capitals',
    kind: 'generation',
    data: 'rows.jsonl',
    shots_data: 'shots.jsonl',
    shots: 1,
    prompt: '{n}. {{Capital}} of {land}?',
    answer: 'It is {capital}.',
    label: 'capital',
    verifier: 'string_match',
    metric: 'score',
    max_tokens: 9,
    stop: '\n',
  })
  if (loaded.kind !== 'generation') throw new Error('not a task of answers')
  expect(loaded.problems[0]).toMatchObject({ question: '1. {Capital} of France?', groundTruth: ['Paris'] })
  expect(loaded.exemplars).toEqual([{ question: '2. {Capital} of Italy?', answer: 'It is Rome.' }])
  expect(loaded.task).toMatchObject({
    name: 'capitals',
    metric: 'score',
    maxTokens: 9,
    stopTexts: ['\n'],
    separator: ' ',
  })
})

it('a task of choices has prompts in both formulations', async () => {
  write('rows.jsonl', '{"q":"Sky?","options":["red","blue"],"gold":"B","topic":"the_world"}\n')
  const loaded = await load({
    name: 'sky',
    kind: 'choice',
    data: join(folder, 'rows.jsonl'),
    prompt: 'Q: {q}',
    choices: 'options',
    answer: 'gold',
    subject: 'topic',
    description: 'About {subject}:',
    choices_prefix: 'Options:\n',
    answer_prefix: 'A:',
    normalization: 'uncond',
  })
  if (loaded.kind !== 'choice') throw new Error('not a task of choices')
  const { task, questions } = loaded
  const prompt = (formulation: 'mcf' | 'cf') => choicePrompt(task, questions[0]!, { formulation, shots: questions })
  expect(prompt('mcf')).toBe(
    ['About the world:', ...Array(2).fill('Q: Sky?\nOptions:\n A. red\n B. blue\nA:')]
      .join('\n\n')
      .replace('A:\n\n', 'A: B\n\n'),
  )
  expect(prompt('cf')).toBe('About the world:\n\nQ: Sky?\nA: blue\n\nQ: Sky?\nA:')
  expect([continuations(task, questions[0]!, 'mcf'), continuations(task, questions[0]!, 'cf')]).toEqual([
    [' A', ' B'],
    [' red', ' blue'],
  ])
  expect(task.normalization).toBe('uncond')
})

it('a task of choices needs no more than data with question, choices and answer', async () => {
  write('rows.jsonl', '{"question":"Sky?","choices":["red","blue"],"answer":1}\n')
  const loaded = await load({ name: 'sky', kind: 'choice', data: 'rows.jsonl' })
  if (loaded.kind !== 'choice') throw new Error('not a task of choices')
  const shown = choicePrompt(loaded.task, loaded.questions[0]!, { formulation: 'mcf', shots: [] })
  expect(shown).toBe('Question: Sky?\n A. red\n B. blue\nAnswer:')
})

describe('a task file', () => {
  const sound = { name: 't', kind: 'generation', data: 'rows.jsonl', prompt: '{q}', verifier: 'gsm8k' }
  const cases: [what: object | string, message: RegExp, hint?: RegExp][] = [
    ['{"name": ', /task\.json: not valid JSON/],
    [[], /task\.json: a task must be a JSON object; got \[\]/],
    [{ ...sound, kind: 'essay' }, /task\.json: `kind` must be one of generation, choice; got "essay"/],
    [{ ...sound, promt: 'x' }, /task\.json: `promt` is no field of a task/, /did you mean "prompt"\?/],
    [{ ...sound, normalization: 'raw' }, /task\.json: `normalization` is no field of a task/],
    [{ ...sound, name: 7 }, /task\.json: `name` must be a text; got 7/],
    [{ ...sound, verifier: 'gsm9k' }, /task\.json: `verifier`: there is no verifier 'gsm9k'/, /did you mean 'gsm8k'\?/],
    [{ ...sound, max_tokens: 0 }, /task\.json: `max_tokens` must be a whole number >= 1; got 0/],
    [{ ...sound, metric: 'f1' }, /task\.json: `metric` must be one of accuracy, score, instructions; got "f1"/],
    [{ ...sound, stop: [''] }, /task\.json: `stop` must be a text or a list of texts/],
    [{ ...sound, prompt: 'a {' }, /task\.json: `prompt` has a brace without a column name at 2/, /write \{\{/],
    [{ ...sound, kind: 'choice', verifier: undefined, normalization: 'len' }, /`normalization` must be one of raw, /],
  ]

  it.each(cases)('%j is refused', async (what, message, hint = /./) => {
    await expect(findTasks([write('task.json', what)])).rejects.toMatchObject({
      code: 'ERR_CONFIG',
      message: expect.stringMatching(message),
      hint: message.source.includes('JSON') ? undefined : expect.stringMatching(hint),
    })
  })

  it('that is not there, or whose data is not, is named', async () => {
    await expect(findTasks([join(folder, 'no.json')])).rejects.toMatchObject({ code: 'ERR_FILE' })
    await expect(load({ ...sound, data: 'gone.jsonl' })).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining(join(folder, 'gone.jsonl')),
    })
  })

  it('with a column that a row lacks names the row', async () => {
    write('rows.jsonl', '{"p":"a","answer":"1"}\n')
    await expect(load(sound)).rejects.toMatchObject({
      code: 'ERR_DATA',
      message: expect.stringMatching(/rows\.jsonl:1: `q` is named by the task's template; the row has p, answer/),
    })
  })
})

describe('names of tasks', () => {
  it.each([
    [['gms8k'], /there is no task "gms8k"; known: gsm8k, math/],
    [['gsm8k', 'gsm8k'], /two tasks are called "gsm8k"/],
    [[], /at least one task/],
  ])('%j are refused', async (names, message) => {
    await expect(findTasks(names)).rejects.toMatchObject({
      code: 'ERR_CONFIG',
      message: expect.stringMatching(message),
    })
  })
})
