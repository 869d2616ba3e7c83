// Rows of preference data in the shapes that published sets have, and what is wrong with those that are refused.
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openDataset } from '../../lib/data/dataset.js'
import { pairRows } from '../../lib/data/pair_rows.js'

const place = { file: 'pairs.jsonl', line: 7 }
const user = (content: string) => ({ role: 'user', content })
const assistant = (content: string) => ({ role: 'assistant', content })
const system = (content: string) => ({ role: 'system', content })

const messagesOf = (row: Record<string, unknown>, map = {}) =>
  pairRows.convert(row, place, map).map((side) => (side.kind === 'messages' ? side.messages : side))

describe('pairs', () => {
  it.each([
    ['two whole chats (Tulu)', { chosen: [user('q'), assistant('a')], rejected: [user('q'), assistant('b')] }],
    ['a prompt and two strings', { prompt: 'q', chosen: 'a', rejected: 'b' }],
    ['a question and two strings (Orca)', { question: 'q', chosen: 'a', rejected: 'b', system_prompt: '' }],
    [
      'a prompt and two answers as lists (TRL)',
      { prompt: [user('q')], chosen: [assistant('a')], rejected: [assistant('b')] },
    ],
    [
      'a prompt that both chats repeat (UltraFeedback)',
      { prompt: 'q', chosen: [user('q'), assistant('a')], rejected: [user('q'), assistant('b')] },
    ],
  ])('%s', (_, row) => {
    expect(messagesOf(row)).toEqual([
      [user('q'), assistant('a')],
      [user('q'), assistant('b')],
    ])
  })

  it('keep system turns and earlier turns', () => {
    const before = [system('s'), user('1'), assistant('2'), user('3')]
    expect(messagesOf({ chosen: [...before, assistant('a')], rejected: [...before, assistant('b')] })).toEqual([
      [...before, assistant('a')],
      [...before, assistant('b')],
    ])
    const [chosen] = messagesOf({ system_prompt: 's', prompt: 'q', chosen: 'a', rejected: 'b' })
    expect(chosen).toEqual([system('s'), user('q'), assistant('a')])
  })

  it('are read through a field map', () => {
    const map = { prompt: 'instruction', chosen: 'better', rejected: 'worse' }
    expect(messagesOf({ instruction: 'q', better: 'a', worse: 'b' }, map)[1]).toEqual([user('q'), assistant('b')])
  })

  it.each([
    [{ prompt: 'q', chosen: '', rejected: 'b' }],
    [{ chosen: [], rejected: [user('q'), assistant('b')] }],
    [{ chosen: [user('q'), assistant('')], rejected: [user('q'), assistant('b')] }],
  ])('with an empty side are left out: %o', (row) => {
    expect(messagesOf(row)).toEqual([])
  })

  it.each([
    [{ prompt: 'q', chosen: 'a' }, /pairs\.jsonl:7: `rejected` is missing/],
    [{ prompt: 'q', rejected: 'a', chosen: null }, /`chosen` is missing/],
    [{ prompt: 'q', chosen: 'a', rejected: 5 }, /`rejected` must be a string; got the number 5/],
    [{ chosen: [user('q'), { role: 'assistant', content: 3 }], rejected: [user('q'), assistant('b')] }, /content/],
    [{ prompt: 'q', chosen: 'a', rejected: 'a' }, /identical/],
    [
      { chosen: [user('q'), assistant('a')], rejected: [user('other'), assistant('b')] },
      /messages before the last one must be the same/,
    ],
    [
      { prompt: 'q', chosen: [user('p'), assistant('a')], rejected: [user('p'), assistant('b')] },
      /starts with another prompt/,
    ],
    [{ chosen: [assistant('a'), user('q')], rejected: [assistant('a'), user('r')] }, /is assistant after nothing/],
    [{ chosen: [user('q'), user('a')], rejected: [user('q'), user('b')] }, /is user after user/],
    [{ chosen: [user('q')], rejected: [user('r')] }, /must end with the assistant/],
    [
      { chosen: [user('q'), system('s'), assistant('a')], rejected: [user('q'), system('s'), assistant('b')] },
      /system/,
    ],
    [{ text: 'x' }, /no known row shape/],
  ])('%o is refused', (row, message) => {
    expect(() => pairRows.convert(row as Record<string, unknown>, place)).toThrow(message)
    expect(() => pairRows.convert(row as Record<string, unknown>, place)).toThrow(
      expect.objectContaining({ code: 'ERR_DATA' }),
    )
  })
})

describe('a file of pairs', () => {
  let folder: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'pairs-'))
  })
  afterAll(() => rm(folder, { recursive: true }))

  it('gives two rows for each, and counts those with an empty side', async () => {
    const file = join(folder, 'p.jsonl')
    const rows = [
      { prompt: 'q', chosen: 'a', rejected: 'b' },
      { prompt: 'q', chosen: 'a', rejected: '' },
    ]
    await writeFile(file, rows.map((row) => JSON.stringify(row)).join('\n'))
    const dataset = await openDataset([file], { form: pairRows })
    const seen = []
    for await (const { line } of dataset.rows()) seen.push(line)
    expect(seen).toEqual([1, 1])
    expect(dataset.counts).toMatchObject({ rows: 1, badRows: 1 })
  })

  it('is not taken for chat rows, and says what it is', async () => {
    const file = join(folder, 'p.jsonl')
    const dataset = await openDataset([file])
    await expect(dataset.rows().next()).rejects.toThrow(/no known row shape|preference pairs/)
  })
})
