// Rows of prompts: the columns of Tulu's RLVR data, GSM8K and IFEval, and what is refused.
import { expect, it } from 'vitest'
import { promptRows } from '../../lib/data/prompt_rows.js'

const place = { file: 'rows.jsonl', line: 7 }
const convert = (row: Record<string, unknown>, map = {}) => promptRows.convert(row, place, map)[0]

it('reads the form of Tulu 3, and leaves an answer out', () => {
  const messages = [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Two and two?' },
  ]
  const row = { messages: [...messages, { role: 'assistant', content: '4' }], ground_truth: '4', dataset: 'MATH' }
  expect(convert(row)).toEqual({ kind: 'messages', messages, label: { groundTruth: '4', verifier: 'math', row } })
})

it('reads GSM8K and IFEval as they are published', () => {
  const school = { question: 'How many?', answer: 'Two.\n#### 2' }
  expect(convert(school)).toMatchObject({
    messages: [{ role: 'user', content: 'How many?' }],
    label: { groundTruth: 'Two.\n#### 2', verifier: undefined },
  })
  const ifeval = { key: 1, prompt: 'Write.', instruction_id_list: ['punctuation:no_comma'], kwargs: [{}] }
  expect(convert(ifeval)).toMatchObject({ label: { groundTruth: undefined, row: ifeval } })
})

it('tells the instructions of the paper from those of IFEval by the label', () => {
  const row = { prompt: 'Write.', dataset: 'ifeval' }
  const paper = JSON.stringify({ func_name: 'validate_lowercase' })
  expect(convert({ ...row, ground_truth: paper })).toMatchObject({ label: { verifier: 'ifeval_paper' } })
  expect(convert({ ...row, ground_truth: '[{"instruction_id": []}]' })).toMatchObject({ label: { verifier: 'ifeval' } })
})

it('takes other columns by a field map, and a verifier by name', () => {
  const row = { task: 'Say x.', wanted: 'x', verifier: 'string_match' }
  expect(convert(row, { prompt: 'task', ground_truth: 'wanted' })).toMatchObject({
    messages: [{ role: 'user', content: 'Say x.' }],
    label: { groundTruth: 'x', verifier: 'string_match' },
  })
})

it('refuses a row without a prompt, or one that ends with the system', () => {
  expect(() => convert({ ground_truth: '4' })).toThrowError(
    expect.objectContaining({ code: 'ERR_DATA', message: expect.stringMatching(/^rows.jsonl:7: no known row shape/) }),
  )
  expect(() => convert({ messages: [{ role: 'system', content: 'x' }] })).toThrowError(/must end with the user/)
})
