// What inspect shows, counts and refuses. Which tokens are trained is tested with the reference masks in test/text.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { type ChatCase, chats } from '../text/golden_files.js'
import { caravan, goldenFolder, jsonLines, temporaryFolder, writeRows } from './command_line.js'

const folder = temporaryFolder()
const tokenizer = join(goldenFolder, 'tokenizers/tulu')
const exchange = [
  { role: 'user', content: 'What is 2+2? 日本' },
  { role: 'assistant', content: 'It is 4. 🙂\nReally.' },
]

describe('inspect', () => {
  it('marks what is trained, the end of the turn included', async () => {
    const data = writeRows(folder, 'chat.jsonl', [{ messages: exchange }])
    const { stdout, exitCode } = await caravan(['inspect', '--data', data, '--tokenizer', tokenizer])
    expect(stdout).toContain('What is 2+2? 日本\n<|assistant|>\n⟦It is 4. 🙂\nReally.<|end_of_text|>⟧')
    expect(exitCode).toBe(0)
  })

  it('colours instead where it may', async () => {
    const data = writeRows(folder, 'chat.jsonl', [{ messages: exchange }])
    const environment = { FORCE_COLOR: '1' }
    const { stdout } = await caravan(['inspect', '--data', data, '--tokenizer', tokenizer], { environment })
    expect(stdout).toContain('\u001b[32mReally.<|end_of_text|>\u001b[39m')
    expect(stdout).not.toContain('⟦')
    const plain = await caravan(['inspect', '--data', data, '--tokenizer', tokenizer], {
      environment: { ...environment, NO_COLOR: '1' },
    })
    expect(plain.stdout).not.toContain('\u001b')
  })

  it('shows control characters of the data instead of sending them', async () => {
    const data = writeRows(folder, 'control.jsonl', [{ text: 'a\u001b[2Jb' }])
    const { stdout } = await caravan(['inspect', '--data', data, '--tokenizer', tokenizer])
    expect(stdout).toContain('a\\x1b[2Jb')
  })

  it('gives the tokens and masks of the reference', async () => {
    const cases = chats
      .tulu!.cases.filter(({ messages }: ChatCase) => messages.some(({ role }) => role === 'assistant'))
      .slice(0, 6)
    const data = writeRows(
      folder,
      'golden.jsonl',
      cases.map(({ messages }) => ({ messages })),
    )
    const words = ['inspect', '--data', data, '--tokenizer', tokenizer, '--rows', '6', '--json']
    const rows = jsonLines((await caravan(words)).stdout).filter(({ type }) => type === 'row')
    expect(rows).toHaveLength(cases.length)
    for (const [i, row] of rows.entries()) {
      const tokens = row.tokens as { id: number; text: string; trained: boolean }[]
      expect(tokens.map(({ id }) => id)).toEqual(cases[i]!.ids)
      expect(tokens.map(({ trained }) => Number(trained))).toEqual(cases[i]!.assistant_mask)
      expect(tokens.map(({ text }) => text).join('')).toBe(cases[i]!.text)
    }
  })

  it('counts rows, tokens, cut rows and rows that train nothing', async () => {
    const question = [exchange[0]!]
    const rows = [
      { messages: exchange },
      { messages: question },
      { messages: [exchange[0]!, { role: 'assistant', content: 'x'.repeat(200) }] },
    ]
    const data = writeRows(folder, 'counts.jsonl', rows)
    const words = ['inspect', '--data', data, '--tokenizer', tokenizer, '--rows', '0', '--max-tokens', '60', '--json']
    const [statistics] = jsonLines((await caravan(words)).stdout)
    expect(statistics).toMatchObject({
      type: 'statistics',
      rows: 3,
      chatRows: 3,
      truncatedRows: 1,
      untrainedRows: { no_assistant_turn: 1 },
      rowsWithoutTrainedEnd: 1,
    })
    expect((statistics!.lengths as { max: number }).max).toBe(60)
  })

  it('reads other columns by --fields', async () => {
    const data = writeRows(folder, 'columns.jsonl', [{ q: 'why?', a: 'because' }])
    const words = ['inspect', '--data', data, '--tokenizer', tokenizer, '--fields', 'prompt=q,completion=a']
    expect((await caravan(words)).stdout).toContain('⟦because<|end_of_text|>⟧')
  })
})

describe('inspect refuses', () => {
  it('data in which no end of turn is trained, and names the rows', async () => {
    const template = join(folder, 'endless.jinja')
    const body = '{% generation %}{{ m.content }}{% endgeneration %}'
    writeFileSync(
      template,
      `{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}${body}{% else %}` +
        '{{ m.content }}{% endif %}\n{% endfor %}',
    )
    const data = writeRows(folder, 'endless.jsonl', [{ messages: exchange }, { messages: exchange }])
    const { stderr, exitCode } = await caravan([
      'inspect',
      '--data',
      data,
      '--tokenizer',
      tokenizer,
      '--template',
      template,
    ])
    expect(stderr).toMatch(/no row trains an end of turn: .*endless\.jsonl:1, .*endless\.jsonl:2 \[ERR_DATA\]/)
    expect(exitCode).toBe(1)
  })

  it('data that train nothing', async () => {
    const data = writeRows(folder, 'questions.jsonl', [{ messages: [exchange[0]!] }])
    const { stderr, exitCode } = await caravan(['inspect', '--data', data, '--tokenizer', tokenizer])
    expect(stderr).toMatch(/no token of the 1 rows is trained \[ERR_DATA\]/)
    expect(exitCode).toBe(1)
  })

  it('a bad row, with its place', async () => {
    const data = writeRows(folder, 'bad.jsonl', [
      { messages: exchange },
      { messages: [{ role: 'robot', content: '' }] },
    ])
    const { stderr, exitCode } = await caravan(['inspect', '--data', data, '--tokenizer', tokenizer])
    expect(stderr).toMatch(/bad\.jsonl:2: .*role.*robot/)
    expect(exitCode).toBe(1)
  })

  it('a template that does not exist, with the nearest one', async () => {
    const data = writeRows(folder, 'chat.jsonl', [{ messages: exchange }])
    const { stderr, exitCode } = await caravan([
      'inspect',
      '--data',
      data,
      '--tokenizer',
      tokenizer,
      '--template',
      'tulo',
    ])
    expect(stderr).toMatch(/--template tulo: neither a built-in template nor a file/)
    expect(stderr).toMatch(/did you mean "tulu"\?/)
    expect(exitCode).toBe(2)
  })

  it('a tokenizer without a template, when there are messages', async () => {
    const bare = join(folder, 'bare')
    mkdirSync(bare)
    writeFileSync(join(bare, 'tokenizer.json'), readFileSync(join(tokenizer, 'tokenizer.json')))
    const data = writeRows(folder, 'chat.jsonl', [{ messages: exchange }])
    const { stderr, exitCode } = await caravan(['inspect', '--data', data, '--tokenizer', bare])
    expect(stderr).toMatch(/the tokenizer has no chat template \[ERR_TEMPLATE\]/)
    expect(exitCode).toBe(1)
  })
})
