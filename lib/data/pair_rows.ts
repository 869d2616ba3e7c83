// Rows of preference data: two answers to one conversation, each as a whole chat. A pair whose sides say the same is a
// fault of the data; one with an empty side is left out and counted, as upstream does.
import { isDeepStrictEqual } from 'node:util'
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

/** Tried in order: a prompt of its own first, because `chosen` may then be the answer alone. */
const SHAPES: readonly Shape[] = [
  { fields: ['prompt', 'chosen', 'rejected'], optional: ['system_prompt'] },
  { fields: ['question', 'chosen', 'rejected'], optional: ['system_prompt'] },
  { fields: ['chosen', 'rejected'] },
]

const PROMPTS: readonly FieldName[] = ['prompt', 'question']
const SIDES = ['chosen', 'rejected'] as const

/** Pairs: a row becomes its chosen chat followed by its rejected one. ERR_DATA for a missing side, roles out of order,
 *  prompts that differ, or two equal sides. */
export const pairRows: RowForm = {
  name: 'pairs',
  shapes: SHAPES,
  convert(row: Record<string, unknown>, place: RowPlace, map: FieldMap = {}): Row[] {
    const fields = new Fields(row, place, map)
    requireSides(fields)
    const shape = shapeOf(fields, SHAPES)
    const promptField = PROMPTS.find((name) => shape.fields.includes(name))
    const prompt = promptField === undefined ? [] : promptOf(fields, promptField)
    const sides = SIDES.map((side) => sideOf(fields, side, prompt))
    if (sides.some((messages) => messages === undefined)) return []
    const [chosen, rejected] = sides as [Message[], Message[]]
    checkOrder(fields, 'chosen', chosen)
    checkOrder(fields, 'rejected', rejected)
    if (!isDeepStrictEqual(chosen.slice(0, -1), rejected.slice(0, -1))) {
      throw fields.fault('the messages before the last one must be the same in `chosen` and `rejected`', 'rejected')
    }
    if (isDeepStrictEqual(chosen, rejected)) {
      throw fields.fault('`chosen` and `rejected` are identical, so there is nothing to prefer', 'rejected')
    }
    return [chosen, rejected].map((messages) => ({ kind: 'messages', messages }))
  },
}

/** A side that is null or absent is named: "no known shape" would not say which one. */
function requireSides(fields: Fields): void {
  const [missing, ...more] = SIDES.filter((side) => !fields.has(side))
  if (missing === undefined || more.length > 0) return
  const column = fields.column(missing)
  throw fields.fault(`\`${column}\` is missing from a pair that has \`${fields.column(otherSide(missing))}\``, column)
}

const otherSide = (side: FieldName): FieldName => (side === 'chosen' ? 'rejected' : 'chosen')

/** The prompt as messages; a string is a user turn. */
function promptOf(fields: Fields, field: FieldName): Message[] {
  const messages: Message[] = Array.isArray(fields.value(field))
    ? parseMessages(fields, field)
    : [{ role: 'user', content: fields.text(field) }]
  const system = fields.has('system_prompt') ? fields.text('system_prompt') : ''
  return system === '' ? messages : [{ role: 'system', content: system }, ...messages]
}

/** The whole chat of one side, or undefined when its answer is empty. */
function sideOf(fields: Fields, side: FieldName, prompt: readonly Message[]): Message[] | undefined {
  const value = fields.value(side)
  if (Array.isArray(value) && value.length === 0) return undefined
  const own: Message[] = Array.isArray(value)
    ? parseMessages(fields, side)
    : [{ role: 'assistant', content: fields.text(side) }]
  if (own.at(-1)!.role === 'assistant' && own.at(-1)!.content === '') return undefined
  if (prompt.length === 0 || own.length === 1) return [...prompt, ...own]
  return withPrompt(fields, { side, prompt, own })
}

/** A side that repeats the prompt must repeat this prompt (the columns of UltraFeedback). */
function withPrompt(
  fields: Fields,
  { side, prompt, own }: { side: FieldName; prompt: readonly Message[]; own: Message[] },
): Message[] {
  const users = (messages: readonly Message[]) => messages.filter(({ role }) => role !== 'system')
  const repeated = users(own).slice(0, users(prompt).length)
  if (isDeepStrictEqual(repeated, users(prompt))) return own
  const column = fields.column(side)
  throw fields.fault(`\`${column}\` starts with another prompt than the row's own prompt column`, column)
}

/** A system turn may come first, user and assistant take turns, the assistant has the last word. */
function checkOrder(fields: Fields, side: FieldName, messages: readonly Message[]): void {
  const column = fields.column(side)
  let before = 'system'
  for (const [i, { role }] of messages.entries()) {
    const allowed =
      role === 'system'
        ? i === 0
        : role === 'user'
          ? before !== 'user'
          : role === 'tool'
            ? i > 1
            : before !== 'assistant'
    const opens = i > 0 || role === 'system' || role === 'user'
    if (!allowed || !opens) {
      throw fields.fault(`\`${column}[${i}]\` is ${role} after ${i === 0 ? 'nothing' : before}`, column, ORDER)
    }
    before = role
  }
  if (before === 'assistant') return
  throw fields.fault(`\`${column}\` must end with the assistant; got ${before}`, column, ORDER)
}

const ORDER = 'a pair is an optional system message, then user and assistant in turn, ended by the assistant'
