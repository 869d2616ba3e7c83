// Rows of unpaired feedback: a chat, and whether its last answer is good. A pair counts as two of them.
import { CaravanError } from '../base/errors.js'
import { pairRows } from './pair_rows.js'
import { convertRow, type FieldMap, type Row, type RowForm, type RowPlace, singleRows } from './rows.js'

/** Where feedback is kept, in the order in which it is looked for. */
const LABELS = ['label', 'desirable', 'completion_label'] as const

/** Chats with a verdict: `label` true or false beside any shape of chat; or pairs, whose chosen side is good. */
export const feedbackRows: RowForm = {
  name: 'feedback',
  shapes: [...singleRows.shapes, ...pairRows.shapes],
  convert: (row: Record<string, unknown>, place: RowPlace, map: FieldMap = {}): Row[] =>
    isPair(row, map) ? pairRows.convert(row, place, map) : [chatOf(row, place, map)],
}

/** Whether the chats that `convert` makes of a row are good, in their order. ERR_DATA for a row that does not say. */
export function feedbackLabels(row: Record<string, unknown>, place: RowPlace, map: FieldMap = {}): boolean[] {
  if (isPair(row, map)) return [true, false]
  const column = LABELS.find((name) => row[name] !== undefined && row[name] !== null)
  const value = column === undefined ? undefined : row[column]
  if (typeof value === 'boolean') return [value]
  if (value === 0 || value === 1) return [value === 1]
  const { file, line } = place
  throw new CaravanError('ERR_DATA', `${file}:${line}: \`label\` must be true or false; got ${JSON.stringify(value)}`, {
    details: { file, line, field: column ?? 'label' },
    hint: 'unpaired feedback says for each answer whether it is good; pairs have `chosen` and `rejected`',
  })
}

const isPair = (row: Record<string, unknown>, map: FieldMap): boolean =>
  (map.chosen ?? 'chosen') in row || (map.rejected ?? 'rejected') in row

function chatOf(row: Record<string, unknown>, place: RowPlace, map: FieldMap): Row {
  feedbackLabels(row, place, map)
  return convertRow(row, place, map)
}
