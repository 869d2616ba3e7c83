// Where the rows of tasks are found, how they are read, and what is said when they are not there or not as they should
// be.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { parquetWriteFile } from 'hyparquet-writer'
import { afterAll, describe, expect, it } from 'vitest'
import { arcEasyTask, hellaswagTask, mmluTask } from '../../lib/evals/choice_tasks.js'
import { parseCsv } from '../../lib/evals/csv.js'
import { gsm8kTask, ifevalTask, mathTask } from '../../lib/evals/generation_tasks.js'
import { loadTasks, TASKS, type Task } from '../../lib/evals/index.js'
import { findTaskFiles, taskRows } from '../../lib/evals/task_data.js'

const root = mkdtempSync(join(tmpdir(), 'caravan-evals-'))
afterAll(() => rmSync(root, { recursive: true }))
let folders = 0

/** A new folder with these files, which are empty or have the given text. */
function folderOf(files: readonly string[] | { [file: string]: string }): string {
  const folder = join(root, String(folders++))
  mkdirSync(folder)
  const entries = Array.isArray(files) ? files.map((file) => [file, ''] as const) : Object.entries(files)
  for (const [file, text] of entries) {
    mkdirSync(dirname(join(folder, file)), { recursive: true })
    writeFileSync(join(folder, file), text)
  }
  return folder
}

describe('files are found', () => {
  const cases: [task: Task, files: string[], found: string[], shots: string[]][] = [
    [gsm8kTask, ['gsm8k/test.jsonl', 'gsm8k/train.jsonl', 'gsm8k/tests.md'], ['gsm8k/test.jsonl'], []],
    [gsm8kTask, ['gsm8k.jsonl', 'math.jsonl'], ['gsm8k.jsonl'], []],
    [gsm8kTask, ['gsm8k_test.json.gz', 'gsm8k.jsonl'], ['gsm8k_test.json.gz'], []],
    [
      gsm8kTask,
      ['gsm8k/main/test-00001-of-00002.parquet', 'gsm8k/main/test-00000-of-00002.parquet'],
      ['gsm8k/main/test-00000-of-00002.parquet', 'gsm8k/main/test-00001-of-00002.parquet'],
      [],
    ],
    [gsm8kTask, ['gsm8k/test.parquet', 'gsm8k/test.jsonl'], ['gsm8k/test.jsonl'], []],
    [mathTask, ['MATH-500/test.jsonl'], ['MATH-500/test.jsonl'], []],
    [ifevalTask, ['ifeval/prompts.jsonl', 'ifeval/verdicts.jsonl'], ['ifeval/prompts.jsonl'], []],
    [ifevalTask, ['IFEval/ifeval_input_data.jsonl'], ['IFEval/ifeval_input_data.jsonl'], []],
    [
      mmluTask,
      ['mmlu/b_test.csv', 'mmlu/a_test.csv', 'mmlu/a_dev.csv', 'mmlu/a_val.csv'],
      ['mmlu/a_test.csv', 'mmlu/b_test.csv'],
      ['mmlu/a_dev.csv'],
    ],
    [mmluTask, ['mmlu/validation.jsonl', 'mmlu/dev.jsonl'], ['mmlu/validation.jsonl'], ['mmlu/dev.jsonl']],
    [
      arcEasyTask,
      ['ARC-Easy/ARC-Easy-Test.jsonl', 'ARC-Easy/ARC-Easy-Train.jsonl'],
      ['ARC-Easy/ARC-Easy-Test.jsonl'],
      ['ARC-Easy/ARC-Easy-Train.jsonl'],
    ],
    [
      hellaswagTask,
      ['hellaswag/hellaswag_val.jsonl', 'hellaswag/hellaswag_train.jsonl', 'hellaswag/hellaswag_test.jsonl'],
      ['hellaswag/hellaswag_val.jsonl'],
      ['hellaswag/hellaswag_train.jsonl'],
    ],
  ]

  it.each(cases.map(([task, ...rest]) => [task.name, task, ...rest] as const))('%s: %#', async (...one) => {
    const [, task, files, found, shots] = one
    const folder = folderOf(files)
    const inside = (paths: string[]) => paths.map((path) => join(folder, path))
    expect(await findTaskFiles(task, folder)).toEqual({ files: inside(found), shotFiles: inside(shots) })
  })

  it('or the names that are looked for are said', async () => {
    const folder = folderOf(['gsm8k/train.jsonl'])
    await expect(findTaskFiles(gsm8kTask, folder)).rejects.toMatchObject({
      code: 'ERR_FILE',
      message: `${folder}: no data for the task gsm8k`,
      hint: expect.stringMatching(/gsm8k\/test\.jsonl, .*gsm8k_test\.jsonl, gsm8k\.jsonl/),
    })
    for (const task of TASKS) {
      await expect(findTaskFiles(task, folderOf([])), task.name).rejects.toMatchObject({ code: 'ERR_FILE' })
    }
  })
})

describe('comma-separated text', () => {
  const cells = (text: string) => parseCsv(text, 'x.csv').map((row) => [row.line, ...row.cells])

  it('has quoted cells with commas, quotes and line breaks', () => {
    expect(cells('a,"b, ""c""\nd",A\r\n\n e ,,""\n')).toEqual([
      [1, 'a', 'b, "c"\nd', 'A'],
      [4, ' e ', '', ''],
    ])
    expect([cells(''), cells('a'), cells('a,'), cells('5" x')]).toEqual([[], [[1, 'a']], [[1, 'a', '']], [[1, '5" x']]])
  })

  it.each(['a\nb,"c', 'a\n"b"c,d'])('%j is refused with its line', (text) => {
    expect(() => parseCsv(text, 'x.csv')).toThrow(/^x\.csv:2: a quoted cell does not end/)
  })

  it('of megabytes takes linear time', () => {
    const text = `${'"'.repeat(2 ** 20)}${'x,'.repeat(2 ** 19)}`
    expect(() => parseCsv(text, 'x.csv')).toThrow(/x\.csv:1/)
    expect(parseCsv(`"${'a,\n'.repeat(2 ** 20)}"`, 'x.csv')).toHaveLength(1)
  })
})

describe('rows', () => {
  it('of MMLU as CSV have subject, choices and answer', async () => {
    const test = '"What, now?",no,"a ""yes""",maybe,never,B\nTwo?,1,2,3,4,D\n'
    const data = folderOf({ 'mmlu/us_history_test.csv': test, 'mmlu/us_history_dev.csv': 'One?,1,2,3,4,A\n' })
    const [loaded] = await loadTasks([mmluTask], { data })
    if (loaded?.kind !== 'choice') throw new Error('not a task of choices')
    expect(loaded.questions).toMatchObject([
      { question: 'What, now?', choices: ['no', 'a "yes"', 'maybe', 'never'], answer: 1, subject: 'us_history' },
      { question: 'Two?', answer: 3, subject: 'us_history', place: { line: 2 } },
    ])
    expect(loaded.shots.get('us_history')).toMatchObject([{ question: 'One?', answer: 0 }])
    expect(mmluTask.description!('us_history')).toMatch(/about us history\.$/)
  })

  it('of Parquet have numbers where the file has 64-bit integers', async () => {
    const data = folderOf(['ifeval/x'])
    const file = join(data, 'ifeval/train-00000-of-00001.parquet')
    parquetWriteFile({
      filename: file,
      columnData: [
        { name: 'key', data: [1n], type: 'INT64' },
        { name: 'prompt', data: ['Do.'], type: 'STRING' },
        { name: 'instruction_id_list', data: [['length_constraints:number_words']], type: 'JSON' },
        { name: 'kwargs', data: [[{ num_words: 3, relation: 'at least' }]], type: 'JSON' },
      ],
    })
    const [loaded] = await loadTasks([ifevalTask], { data })
    if (loaded?.kind !== 'generation') throw new Error('not a task of answers')
    expect(loaded.problems[0]!.row).toMatchObject({ key: 1, kwargs: [{ num_words: 3 }] })
    for await (const { place } of taskRows([file])) expect(place).toEqual({ file, line: 1 })
  })

  it('are limited in each subject', async () => {
    const data = folderOf({ 'mmlu/a_test.csv': 'Q,1,2,A\n'.repeat(5), 'mmlu/b_test.csv': 'Q,1,2,A\n' })
    const [loaded] = await loadTasks([mmluTask], { data, limit: 2 })
    if (loaded?.kind !== 'choice') throw new Error('not a task of choices')
    expect(loaded.questions.map(({ subject }) => subject)).toEqual(['a', 'a', 'b'])
  })

  it('that are curated examples come before the first ones', async () => {
    const row = (id: string) => {
      const choices = { text: ['x', 'y'], label: ['A', 'B'] }
      return `${JSON.stringify({ id, question: id, choices, answerKey: 'B' })}\n`
    }
    const train = ['other', ...arcEasyTask.curated!.toReversed()].map(row).join('')
    const data = folderOf({ 'arc_easy/test.jsonl': row('t'), 'arc_easy/train.jsonl': train })
    const ids = async (shots?: number) => {
      const [loaded] = await loadTasks([arcEasyTask], { data, shots })
      if (loaded?.kind !== 'choice') throw new Error('not a task of choices')
      return loaded.shots.get('')?.map(({ id }) => id)
    }
    expect(await ids()).toEqual(arcEasyTask.curated!.slice(0, 5))
    // Nine are not all curated.
    expect((await ids(9))?.[0]).toBe('other')
    expect(await ids(0)).toBeUndefined()
    await expect(ids(10)).rejects.toMatchObject({ code: 'ERR_CONFIG', details: { wanted: 10, have: 9 } })
  })
})

describe('a bad row', () => {
  const cases: [task: Task, row: object, message: RegExp][] = [
    [gsm8kTask, { answer: '1' }, /`question` must be a text; got nothing/],
    [gsm8kTask, { question: 'q', answer: 4 }, /`answer` must be a text; got 4/],
    [mathTask, { problem: 'p' }, /`solution` must be a text; got nothing/],
    [ifevalTask, { prompt: 'p' }, /`instruction_id_list` must be a list of instruction ids/],
    [ifevalTask, { prompt: 'p', instruction_id_list: ['no:such'], kwargs: [{}] }, /must be known ids/],
    [
      mmluTask,
      { question: 'q', choices: ['a'], answer: 0 },
      /`choices` must be a list of at least two texts; got \["a"\]/,
    ],
    [mmluTask, { question: 'q', choices: ['a', 'b'], answer: 2 }, /`answer` must be an index from 0 to 1 or a letter/],
    [mmluTask, { question: 'q', choices: ['a', 'b'], answer: 'C' }, /`answer` .*from A to B; got "C"/],
    [mmluTask, { question: 'q', choices: Array(27).fill('a'), answer: 0 }, /`choices` must have at most 26 choices/],
    [arcEasyTask, { question: 'q', choices: { text: ['a', 'b'] }, answerKey: 'A' }, /`choices` must be at least two/],
    [
      arcEasyTask,
      { question: 'q', choices: { text: ['a', 'b'], label: ['1', '2'] }, answerKey: 'A' },
      /`answerKey` must be one of the labels 1, 2; got "A"/,
    ],
    [hellaswagTask, { activity_label: 'l', ctx_a: 'a', endings: ['a', 'b'], label: '0' }, /`ctx_b` must be a text/],
    [
      hellaswagTask,
      { activity_label: 'l', ctx_a: 'a', ctx_b: '', endings: ['a', 'b'], label: '' },
      /`label` must be an/,
    ],
  ]

  it.each(cases.map((one) => [one[0].name, one[2].source, one] as const))('%s: %s', async (_name, _message, one) => {
    const [task, row, message] = one
    const file = join(folderOf({ 'rows.jsonl': `\n${JSON.stringify(row)}\n` }), 'rows.jsonl')
    await expect(loadTasks([task], { data: file })).rejects.toMatchObject({
      code: 'ERR_DATA',
      details: { file, line: 2 },
      message: expect.stringMatching(message),
    })
  })

  it('is also no row, and a line of MMLU without choices', async () => {
    const data = folderOf({ 'gsm8k.jsonl': '\n', 'mmlu/a_test.csv': 'q,1,A\n' })
    await expect(loadTasks([gsm8kTask], { data })).rejects.toMatchObject({ code: 'ERR_DATA' })
    await expect(loadTasks([mmluTask], { data })).rejects.toThrow(/a_test\.csv:1: must have a question, at least two/)
    const file = join(data, 'gsm8k.jsonl')
    await expect(loadTasks([gsm8kTask, mathTask], { data: file })).rejects.toThrow(/one file cannot be the data of 2/)
  })
})
