import { describe, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { checkFieldMap, convertRow, type FieldMap, type Row } from '../../lib/data/rows.js'

const place = { file: 'data.jsonl', line: 7 }
const user = (content: string) => ({ role: 'user', content })
const assistant = (content: string) => ({ role: 'assistant', content })
const system = (content: string) => ({ role: 'system', content })

function messagesOf(row: Row): unknown {
  return row.kind === 'messages' ? row.messages : row
}

function errorOf(action: () => unknown): CaravanError {
  try {
    action()
  } catch (error) {
    expect(error).toBeInstanceOf(CaravanError)
    return error as CaravanError
  }
  throw new Error('nothing was thrown')
}

describe('convertRow', () => {
  it.each<[string, Record<string, unknown>, unknown[]]>([
    [
      'messages',
      { messages: [system('s'), user('u'), assistant('a')], prompt: 'ignored', id: 3 },
      [system('s'), user('u'), assistant('a')],
    ],
    [
      'assistant first, no alternation',
      { messages: [assistant('a'), assistant('b'), user('c')] },
      [assistant('a'), assistant('b'), user('c')],
    ],
    [
      'text parts',
      {
        messages: [
          {
            role: 'user',
            content: [
              { type: 'text', text: 'a' },
              { type: 'text', text: 'b' },
            ],
          },
        ],
      },
      [user('ab')],
    ],
    ['prompt and completion', { prompt: 'p', completion: 'c' }, [user('p'), assistant('c')]],
    [
      'conversational prompt and completion',
      { prompt: [system('s'), user('p')], completion: [assistant('c')] },
      [system('s'), user('p'), assistant('c')],
    ],
    [
      'conversations',
      {
        conversations: [
          { from: 'system', value: 's' },
          { from: 'human', value: 'h' },
          { from: 'gpt', value: 'g' },
          { from: 'User', value: 'u' },
          { from: 'Assistant', value: 'a' },
        ],
      },
      [system('s'), user('h'), assistant('g'), user('u'), assistant('a')],
    ],
    ['query and answer', { query: 'q', answer: 'a' }, [user('q'), assistant('a')]],
    ['query and response', { query: 'q', response: 'r', type: 'x' }, [user('q'), assistant('r')]],
    [
      'system_prompt, question, response',
      { system_prompt: 's', question: 'q', response: 'r' },
      [system('s'), user('q'), assistant('r')],
    ],
    ['empty system prompt', { system_prompt: '', question: 'q', response: 'r' }, [user('q'), assistant('r')]],
    [
      'null counts as missing',
      { messages: null, instruction: null, prompt: 'p', completion: 'c' },
      [user('p'), assistant('c')],
    ],
  ])('reads %s', (_, row, expected) => {
    expect(messagesOf(convertRow(row, place))).toEqual(expected)
  })

  it('writes the Alpaca prompt word for word, with and without input', () => {
    const withInput = convertRow({ instruction: 'Add.', input: '1 and 2', output: '3' }, place)
    const prompt =
      'Below is an instruction that describes a task, paired with an input that provides further context. ' +
      'Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:'
    expect(messagesOf(withInput)).toEqual([user(prompt), assistant('3')])
    const without =
      'Below is an instruction that describes a task. ' +
      'Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Response:'
    for (const input of ['', null, undefined]) {
      expect(messagesOf(convertRow({ instruction: 'Add.', input, output: '3' }, place))).toEqual([
        user(without),
        assistant('3'),
      ])
    }
  })

  it('reads text, and ids with labels, also as they come from parquet', () => {
    expect(convertRow({ text: 't' }, place)).toEqual({ kind: 'text', text: 't' })
    const expected = { kind: 'ids', inputIds: Int32Array.of(5, 6), labels: Int32Array.of(-100, 6) }
    expect(convertRow({ input_ids: [5, 6], labels: [-100, 6] }, place)).toEqual(expected)
    expect(convertRow({ input_ids: [5n, 6n], labels: [-100n, 6n] }, place)).toEqual(expected)
    expect(convertRow({ input_ids: Int32Array.of(5, 6), labels: BigInt64Array.of(-100n, 6n) }, place)).toEqual(expected)
  })

  it('takes other columns by a field map', () => {
    const map: FieldMap = { prompt: 'question', completion: 'answer' }
    expect(messagesOf(convertRow({ question: 'q', answer: 'a', text: 'no' }, place, map))).toEqual([
      user('q'),
      assistant('a'),
    ])
    const renamed = convertRow({ chat: [user('u')], messages: 'not these' }, place, { messages: 'chat' })
    expect(messagesOf(renamed)).toEqual([user('u')])
    const alpaca = convertRow({ task: 'T', output: 'O' }, place, { instruction: 'task' })
    expect(messagesOf(alpaca)).toMatchObject([
      { content: expect.stringContaining('T\n\n### Response:') },
      assistant('O'),
    ])
    const error = errorOf(() => convertRow({ question: 'q' }, place, map))
    expect(error.message).toContain('with the field map prompt=question, completion=answer')
  })

  it('names file, line, the fields seen and the shapes known, for an unknown shape', () => {
    const error = errorOf(() => convertRow({ promt: 'p', completion: 'c' }, place))
    expect(error).toMatchObject({ code: 'ERR_DATA', details: place })
    expect(error.message).toBe('data.jsonl:7: no known row shape has the fields ["promt","completion"]')
    expect(error.hint).toContain('prompt+completion')
    expect(error.hint).toContain('Is "promt" meant to be "prompt"?')
    expect(errorOf(() => convertRow({ chosen: [], rejected: [] }, place)).hint).toContain('preference pairs')
    expect(errorOf(() => convertRow({ question: 'q', answer: 'a' }, place)).hint).toContain('field map')
    expect(errorOf(() => convertRow({}, place)).message).toContain('[]')
  })

  it.each<[Record<string, unknown>, string]>([
    [{ messages: 'x' }, '`messages` must be a list of messages; got the string "x"'],
    [{ messages: [] }, '`messages` has no messages'],
    [{ messages: [user('a'), null] }, '`messages[1]` must be an object; got null'],
    [{ messages: [[1]] }, '`messages[0]` must be an object; got a list of 1'],
    [
      { messages: [{ role: 'asistant', content: 'x' }] },
      '`messages[0].role` must be one of system, user, assistant, tool; got the string "asistant"',
    ],
    [{ messages: [{ content: 'x' }] }, '`messages[0].role` must be one of system, user, assistant, tool; got nothing'],
    [{ messages: [{ role: 'user', content: 5 }] }, '`messages[0].content` must be a string; got the number 5'],
    [{ messages: [{ role: 'assistant', content: null }] }, '`messages[0].content` must be a string; got null'],
    [
      { messages: [{ role: 'user', content: [{ type: 'image' }] }] },
      '`messages[0].content[0]` must be a text part; got an object with ["type"]',
    ],
    [{ conversations: [{ from: 'bot', value: 'x' }] }, '`conversations[0].from` must be one of human'],
    [{ conversations: [{ from: 'constructor', value: 'x' }] }, '`conversations[0].from` must be one of human'],
    [{ conversations: [{ from: 'gpt', value: null }] }, '`conversations[0].value` must be a string; got null'],
    [{ prompt: 'p', completion: ['c'] }, '`completion` must be a string; got a list of 1'],
    [{ prompt: [user('p')], completion: 'c' }, '`completion` must be a list of messages; got the string "c"'],
    [{ instruction: 1, output: 'o' }, '`instruction` must be a string; got the number 1'],
    [{ query: true, answer: 'a' }, '`query` must be a string; got the boolean true'],
    [{ text: {} }, '`text` must be a string; got an object with []'],
    [{ input_ids: 'x', labels: [] }, '`input_ids` must be a list of integers; got the string "x"'],
    [{ input_ids: [1, -1], labels: [1, 1] }, '`input_ids[1]` must be an integer in [0, 2^31); got the number -1'],
    [{ input_ids: [1, 2.5], labels: [1, 1] }, '`input_ids[1]` must be an integer in [0, 2^31); got the number 2.5'],
    [
      { input_ids: [2 ** 31], labels: [1] },
      '`input_ids[0]` must be an integer in [0, 2^31); got the number 2147483648',
    ],
    [{ input_ids: [1], labels: [-101] }, '`labels[0]` must be an integer in [-100, 2^31)'],
    [{ input_ids: [1, 2], labels: [1] }, 'input_ids has 2 entries, labels 1'],
    [{ input_ids: [1, 2], labels: [1, 3] }, 'labels[1] must be -100 or input_ids[1]; got 3 beside 2'],
  ])('refuses %j', (row, says) => {
    const error = errorOf(() => convertRow(row, place))
    expect(error.code).toBe('ERR_DATA')
    expect(error.message).toContain(`data.jsonl:7: ${says}`)
    expect(error.details).toMatchObject(place)
    expect(error.details.field).toBeTypeOf('string')
  })

  it('suggests the role that was meant', () => {
    expect(errorOf(() => convertRow({ messages: [{ role: 'asistant', content: 'x' }] }, place)).hint).toContain(
      '"assistant"',
    )
  })
})

describe('checkFieldMap', () => {
  it('accepts maps that fit a shape', () => {
    for (const map of [{}, { prompt: 'q' }, { prompt: 'q', completion: 'a' }, { instruction: 'i', input: 'x' }])
      checkFieldMap(map)
  })

  it('refuses unknown fields, impossible sets and empty columns', () => {
    expect(errorOf(() => checkFieldMap({ promt: 'q' } as FieldMap))).toMatchObject({
      code: 'ERR_CONFIG',
      hint: 'did you mean "prompt"?',
    })
    expect(errorOf(() => checkFieldMap({ prompt: 'q', output: 'a' })).message).toContain('prompt, output')
    expect(errorOf(() => checkFieldMap({ prompt: '' })).message).toContain('column name')
  })
})
