// Rows of prompts with what their answers are judged by: a conversation that waits for an answer, a label, and the name
// of the verifier that reads it (the form of Tulu 3's RLVR data; the columns of GSM8K and IFEval as published).
import {
  type FieldMap,
  type FieldName,
  Fields,
  type Message,
  parseMessages,
  type Row,
  type RowForm,
  type RowPlace,
  type Shape,
  shapeOf,
} from './rows.js'

const PROMPTS = ['messages', 'prompt', 'question'] as const
const LABELS: FieldName[] = ['ground_truth', 'answer', 'dataset', 'verifier', 'system_prompt']

const SHAPES: readonly Shape[] = PROMPTS.map((prompt) => ({ fields: [prompt], optional: LABELS }))

/** A row becomes the messages that the answer follows, with `label`: its columns, the label and the verifier's name. An
 *  answer at the end of `messages` is left out. ERR_DATA for a row without a prompt. */
export const promptRows: RowForm = {
  name: 'prompts',
  shapes: SHAPES,
  convert(row: Record<string, unknown>, place: RowPlace, map: FieldMap = {}): Row[] {
    const fields = new Fields(row, place, map)
    const { fields: names } = shapeOf(fields, SHAPES)
    const messages = conversation(fields, names[0]!)
    if (messages.at(-1)?.role !== 'user') {
      throw fields.fault(`\`${fields.column(names[0]!)}\` must end with the user, whom the answer is for`, names[0])
    }
    const groundTruth = fields.value('ground_truth') ?? fields.value('answer')
    return [{ kind: 'messages', messages, label: { groundTruth, verifier: verifierOf(fields, groundTruth), row } }]
  },
}

function conversation(fields: Fields, field: FieldName): Message[] {
  const given: Message[] = Array.isArray(fields.value(field))
    ? parseMessages(fields, field)
    : [{ role: 'user', content: fields.text(field) }]
  const messages = given.length > 1 && given.at(-1)!.role === 'assistant' ? given.slice(0, -1) : given
  const system = fields.has('system_prompt') ? fields.text('system_prompt') : ''
  return system === '' ? messages : [{ role: 'system', content: system }, ...messages]
}

/** `verifier`, or `dataset` in lower case, as open-instruct dispatches. Its `ifeval` is that of the paper where the
 *  label names one of the paper's functions. */
function verifierOf(fields: Fields, groundTruth: unknown): string | undefined {
  if (fields.has('verifier')) return fields.text('verifier')
  if (!fields.has('dataset')) return undefined
  const name = fields.text('dataset').toLowerCase()
  const isOfPaper = /['"]func_name['"]/.test(
    typeof groundTruth === 'string' ? groundTruth : JSON.stringify(groundTruth ?? ''),
  )
  return name === 'ifeval' && isOfPaper ? 'ifeval_paper' : name
}
