// The verify command: its verdicts line by line, the summary, and rows that end it.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { caravan, jsonLines, temporaryFolder, writeRows } from './command_line.js'

const folder = temporaryFolder()
const output = join(folder, 'verdicts.jsonl')

function run(verifier: string, input: string, words: readonly string[] = []) {
  return caravan(['verify', '--verifier', verifier, '--input', input, '--output', output, ...words])
}

describe('caravan verify', () => {
  it('writes a verdict a row, in order, and says how many were right', async () => {
    const rows = Array.from({ length: 150 }, (_, i) => ({ completion: `so ${i % 3}`, ground_truth: '1' }))
    const { exitCode, stdout, stderr } = await run('gsm8k', writeRows(folder, 'numbers.jsonl', rows))
    expect([exitCode, stderr]).toEqual([0, ''])
    expect(stdout).toMatch(/150 rows in .* -> .*verdicts\.jsonl\naccepted 50 \(33(\.\d+)? ?%\), mean score 0\.333\n$/)
    const verdicts = jsonLines(readFileSync(output, 'utf8'))
    expect(verdicts.map(({ score }) => score)).toEqual(rows.map((_, i) => (i % 3 === 1 ? 1 : 0)))
    expect(verdicts[0]).toEqual({ score: 0, reason: 'expected 1, got 0', extracted: '0' })
  })

  it('gives strict and loose verdicts per instruction', async () => {
    const row = { instruction_id_list: ['punctuation:no_comma', 'startend:quotation'], kwargs: [{}, {}], prompt: 'p' }
    const input = writeRows(folder, 'instructions.jsonl', [
      { ...row, completion: '"a"' },
      { ...row, completion: 'Here:\n"a"' },
    ])
    const { exitCode, stdout } = await run('ifeval', input, ['--json'])
    expect(exitCode).toBe(0)
    const { seconds, ...summary } = JSON.parse(stdout) as Record<string, unknown>
    expect(seconds).toBeGreaterThan(0)
    expect(summary).toEqual({
      verifier: 'ifeval',
      rows: 2,
      accepted: 1,
      meanScore: 0.75,
      promptStrict: 0.5,
      promptLoose: 1,
      instructionStrict: 0.75,
      instructionLoose: 1,
      output,
    })
    expect(jsonLines(readFileSync(output, 'utf8'))).toMatchObject([
      { score: 1, strict: [true, true], loose: [true, true] },
      { score: 0.5, strict: [true, false], loose: [true, true] },
    ])
    expect((await run('ifeval', input)).stdout).toMatch(
      /prompts +strict 50(\.0)? ?%, loose 100(\.0)? ?%\ninstructions +strict 75/,
    )
  })

  it('takes an empty file', async () => {
    const { exitCode, stdout } = await run('math', writeRows(folder, 'empty.jsonl', []), ['--json'])
    expect(exitCode).toBe(0)
    expect(JSON.parse(stdout)).toMatchObject({ rows: 0, meanScore: null })
    expect(readFileSync(output, 'utf8')).toBe('')
  })

  it('is quiet when asked', async () => {
    const input = writeRows(folder, 'one.jsonl', [{ completion: '\\boxed{0.5}', ground_truth: '1/2' }])
    expect(await run('math', input, ['--quiet'])).toEqual({ exitCode: 0, stdout: '', stderr: '' })
    expect(jsonLines(readFileSync(output, 'utf8'))).toMatchObject([{ score: 1 }])
  })
})

describe('a verifier of the user', () => {
  const text = `export const verifier = {
    name: 'brief',
    summary: 'accepts short answers, and hangs on what it does not like',
    verify({ completion, groundTruth }) {
      while (completion === 'hang') {}
      return completion.length <= groundTruth ? { score: 1, reason: 'short' } : { score: 0, reason: 'long' }
    },
  }`

  it('is named by its path, and cannot hang the command', async () => {
    writeFileSync(join(folder, 'brief.mjs'), text)
    const rows = ['ab', 'hang', 'abcd'].map((completion) => ({ completion, ground_truth: 3 }))
    const input = writeRows(folder, 'short.jsonl', rows)
    const words = ['verify', '--verifier', './brief.mjs', '--input', input, '--output', output, '--json']
    const { exitCode, stdout, stderr } = await caravan(words, { directory: folder })
    expect([exitCode, stderr]).toEqual([0, ''])
    expect(JSON.parse(stdout)).toMatchObject({ verifier: './brief.mjs', rows: 3, accepted: 1 })
    expect(jsonLines(readFileSync(output, 'utf8'))).toEqual([
      { score: 1, reason: 'short' },
      { score: 0, reason: expect.stringMatching(/brief\.mjs took more than 1000 ms$/) },
      { score: 0, reason: 'long' },
    ])
  })

  it('is as the documentation shows it', async () => {
    const documentation = readFileSync(new URL('../../docs/verifiers.md', import.meta.url), 'utf8')
    writeFileSync(join(folder, 'brief.mjs'), /```js\n(export const verifier.*?)```/s.exec(documentation)![1]!)
    writeFileSync(join(folder, 'rows.jsonl'), `${/echo '(.*)' > rows\.jsonl/.exec(documentation)![1]!}\n`)
    const command = /^caravan (verify --verifier .*)$/m.exec(documentation)![1]!
    expect(await caravan(command.split(' '), { directory: folder })).toMatchObject({ exitCode: 0, stderr: '' })
    expect(readFileSync(join(folder, 'verdicts.jsonl'), 'utf8')).toBe('{"score":1,"reason":"1 words"}\n')
  })

  it('is asked for before anything is read', async () => {
    const { exitCode, stderr } = await run('./nowhere.js', join(folder, 'nowhere.jsonl'))
    expect(stderr).toMatch(/nowhere\.js: there is no such file; expected a module .*\[ERR_CONFIG\]/)
    expect(exitCode).toBe(2)
    expect((await run('gms8k', join(folder, 'nowhere.jsonl'))).stderr).toMatch(/hint: did you mean 'gsm8k'\?/)
  })
})

describe('bad rows', () => {
  const cases: [verifier: string, row: unknown, error: RegExp][] = [
    [
      'gsm8k',
      { completion: '1' },
      /bad\.jsonl:2: gsm8k: `ground_truth` must be text or a number; got nothing \[ERR_DATA\]/,
    ],
    ['gsm8k', { ground_truth: '1' }, /bad\.jsonl:2: gsm8k: `completion` must be text; got nothing/],
    ['gsm8k', '{"completion": ', /bad\.jsonl:2:\d+: .*\[ERR_DATA\]/],
    [
      'multiple_choice',
      { completion: 'B', ground_truth: '1' },
      /bad\.jsonl:2: multiple_choice: `ground_truth` must be one letter/,
    ],
  ]

  it.for(cases)('%s names %j, and keeps the old output', async ([verifier, row, error]) => {
    writeFileSync(output, 'before\n')
    const good = { completion: '1', ground_truth: verifier === 'gsm8k' ? '1' : 'B' }
    const { exitCode, stderr } = await run(verifier, writeRows(folder, 'bad.jsonl', [good, row]))
    expect(stderr).toMatch(error)
    expect(exitCode).toBe(1)
    expect(readFileSync(output, 'utf8')).toBe('before\n')
    expect(readdirSync(folder).filter((name) => name.includes('.tmp'))).toEqual([])
  })

  it('names the line of a row behind the first ones', async () => {
    const rows = Array.from({ length: 700 }, (_, i) => ({ completion: '1', ground_truth: i < 600 ? '1' : undefined }))
    const { stderr } = await run('gsm8k', writeRows(folder, 'bad.jsonl', rows))
    expect(stderr).toMatch(/bad\.jsonl:601: gsm8k/)
  })

  it('names a file that is not there', async () => {
    const { exitCode, stderr } = await run('gsm8k', join(folder, 'nowhere.jsonl'))
    expect(stderr).toMatch(/nowhere\.jsonl.*\[ERR_FILE\]/)
    expect(exitCode).toBe(1)
    expect(existsSync(join(folder, 'nowhere.jsonl'))).toBe(false)
  })
})
