// `caravan eval` as a user runs it: a table, JSON, a file of samples, a task of one's own, and what goes wrong.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { caravan, goldenFolder, jsonLines, temporaryFolder, writeRows } from './command_line.js'

const folder = temporaryFolder()
const model = join(goldenFolder, 'models/llama_mha_tied')
const golden = JSON.parse(readFileSync(join(goldenFolder, 'evals/choices.json'), 'utf8'))
const data = join(folder, 'data')

mkdirSync(join(data, 'mmlu'), { recursive: true })
mkdirSync(join(data, 'gsm8k'))
writeRows(data, 'mmlu/test.jsonl', golden.mmlu.test)
writeRows(data, 'mmlu/dev.jsonl', golden.mmlu.dev)
writeRows(data, 'gsm8k/test.jsonl', [
  { question: '1+1?', answer: 'It is 2.\n#### 2' },
  { question: '2+2?', answer: '#### 4' },
])

const run = (words: readonly string[]) => caravan(['eval', '--model', model, '--threads', '2', ...words])

it('prints a table, and writes all numbers, settings and answers', async () => {
  const [output, samples] = [join(folder, 'results.json'), join(folder, 'samples.jsonl')]
  const result = await run([
    ...['--tasks', 'gsm8k,mmlu', '--data', data, '--samples', '2', '--temperature', '1', '--max-tokens', '6'],
    ...['--seed', '3', '--output', output, '--samples-output', samples],
  ])
  expect(result.stderr).toBe('')
  expect(result.exitCode).toBe(0)
  expect(result.stdout).toMatch(/^task +metric +% +± s\.e\. +95 % +rows +shots$/m)
  // By characters one of two sums is right and no hue: (1/2 + 0) / 2 (test/golden/evals).
  expect(result.stdout).toMatch(/^mmlu +acc \(cf\/acc_per_char\) +25\.0 +/m)
  expect(result.stdout).toMatch(/^ +cf\/acc_raw +100\.0 +/m)
  expect(result.stdout).toMatch(/^gsm8k: 2 prompts have fewer examples: too long$/m)
  expect(result.stdout).toContain(`-> ${output}, ${samples}`)
  const report = JSON.parse(readFileSync(output, 'utf8'))
  expect(report).toMatchObject({
    model,
    versions: { caravan: expect.stringMatching(/^\d+\.\d+\.\d+/), node: process.versions.node },
    settings: { seed: 3, samples: 2, temperature: 1, topP: 1, limit: null, dtype: 'f32' },
    tasks: [
      {
        task: 'gsm8k',
        rows: 2,
        settings: { files: [join(data, 'gsm8k/test.jsonl')], shots: 8, format: 'turns', maxTokens: 6 },
        answers: { count: 4 },
      },
      { task: 'mmlu', rows: 3, settings: { shots: 1 } },
    ],
  })
  expect(report.tasks[0].metrics.map(({ name }: { name: string }) => name)).toEqual([
    'exact_match',
    'pass@1',
    'pass@2',
    'maj@2',
  ])
  expect(report.tasks[1].subjects.sums[0]).toMatchObject({ name: 'mcf/acc_raw', value: 0, count: 2 })
  const lines = jsonLines(readFileSync(samples, 'utf8'))
  const scores: number[] = golden.mmlu.questions[0].mcf.scores.map((one: { logprob: number }) => one.logprob)
  const likeliest = scores.indexOf(Math.max(...scores))
  expect(lines.length).toBe(4 + 6)
  expect(lines[1]).toMatchObject({ task: 'gsm8k', row: 0, sample: 1, line: 1, prompt: [{ role: 'user' }] })
  expect(lines[4]).toMatchObject({ task: 'mmlu', row: 0, formulation: 'mcf', answer: 1, chosen: { raw: likeliest } })
})

it('prints JSON for programs, the same for any slots and threads', async () => {
  const words = ['--tasks', 'gsm8k', '--data', data, '--limit', '1', '--format', 'plain', '--shots', '1', '--json']
  const report = async (more: string[]) => {
    const { stdout, exitCode } = await run([...words, '--max-tokens', '9', ...more])
    expect(exitCode).toBe(0)
    const { seconds, ...rest } = JSON.parse(stdout)
    expect(seconds).toBeGreaterThan(0)
    return rest
  }
  const one = await report(['--samples', '4', '--temperature', '0.9', '--top-p', '0.9'])
  expect(one.tasks[0]).toMatchObject({ rows: 1, settings: { shots: 1, format: 'plain' } })
  const other = ['--samples', '4', '--temperature', '0.9', '--top-p', '0.9', '--slots', '1', '--threads', '1']
  expect(await report(other)).toEqual(one)
})

it('runs a task of your own', async () => {
  writeRows(folder, 'lands.jsonl', [{ land: 'France', answer: 'Paris' }])
  const task = join(folder, 'lands.json')
  const fields = { name: 'lands', kind: 'generation', data: 'lands.jsonl', prompt: '{land}?', verifier: 'string_f1' }
  writeFileSync(task, JSON.stringify({ ...fields, metric: 'score', max_tokens: 4 }))
  const { stdout, exitCode } = await run(['--tasks', task, '--format', 'plain'])
  expect(exitCode).toBe(0)
  expect(stdout).toMatch(/^lands +mean_score +0\.0 +0\.0 to 79\.3 +1 +0$/m)
})

describe('what goes wrong', () => {
  const cases: [words: string[], error: RegExp, exitCode: number][] = [
    [['--tasks', 'gsm9k', '--data', data], /there is no task "gsm9k".*\[ERR_CONFIG\]\nhint: did you mean "gsm8k"\?/, 2],
    [
      ['--tasks', 'math', '--data', data],
      /no data for the task math \[ERR_FILE\]\nhint: looked for math\/test\.jsonl/,
      1,
    ],
    [['--tasks', 'gsm8k'], /the task gsm8k needs a data folder.*\nhint: .*--data DIR/, 2],
    [['--data', data], /required option '--tasks/, 2],
    [['--tasks', 'gsm8k', '--data', data, '--samples', '2'], /2 samples at temperature 0 are all alike/, 2],
    [['--tasks', 'gsm8k', '--data', data, '--temperature', '-1'], /--temperature must be from 0 to 10000; got "-1"/, 2],
    [['--tasks', 'mmlu', '--data', data, '--formulation', 'xcf'], /--formulation must be one of mcf, cf/, 2],
    [
      ['--tasks', 'gsm8k', '--data', data, '--template', 'tullu'],
      /--template tullu: .*\nhint: did you mean "tulu"\?/,
      2,
    ],
  ]

  it.each(cases)('%j', async (words, error, exitCode) => {
    const [output, samples] = [join(folder, 'none.json'), join(folder, 'none.jsonl')]
    const result = await run([...words, '--output', output, '--samples-output', samples])
    expect(result.stderr).toMatch(error)
    expect(result.exitCode).toBe(exitCode)
    expect([existsSync(output), existsSync(samples)]).toEqual([false, false])
    expect(readdirSync(folder).filter((file) => file.includes('.tmp'))).toEqual([])
  })

  it('a signal ends it with 130 and writes nothing', async () => {
    const rows = Array.from({ length: 400 }, (_, i) => ({ question: `${i}?`, answer: '1' }))
    const file = writeRows(folder, 'many.jsonl', rows)
    const [output, samples] = [join(folder, 'stopped.json'), join(folder, 'stopped.jsonl')]
    const words = ['eval', '--model', model, '--tasks', 'gsm8k', '--data', file, '--shots', '0', '--output', output]
    let sent = false
    const result = await caravan([...words, '--samples-output', samples, '--slots', '1'], {
      onOutput: (child) => {
        if (!sent) child.kill('SIGINT')
        sent = true
      },
    })
    expect(result).toMatchObject({ exitCode: 130, stderr: '' })
    expect([existsSync(output), existsSync(samples)]).toEqual([false, false])
    expect(readdirSync(folder).filter((name) => name.includes('.tmp'))).toEqual([])
  })
})
