// One form for the many shapes of training rows. The shape is found by the fields that are there, in the order in which
// Tulu's `get_datasets` looks for them; a field that is null counts as missing, because columnar files fill gaps with
// it.
import { CaravanError, nearestName } from '../base/errors.js'
import { NO_TARGET } from './pack.js'

export const ROLES = ['system', 'user', 'assistant', 'tool'] as const
export type Role = (typeof ROLES)[number]

export interface Message {
  role: Role
  content: string
}

/** A training row, whatever its file looked like. */
export type Row =
  | { kind: 'messages'; messages: Message[]; label?: RowLabel }
  | { kind: 'text'; text: string }
  /** labels[t] is inputIds[t] where token t is predicted, else -100. */
  | { kind: 'ids'; inputIds: Int32Array; labels: Int32Array }

/** What an answer to the row is judged by. */
export interface RowLabel {
  groundTruth: unknown
  /** Name of the verifier, where the row gives one. */
  verifier: string | undefined
  /** All columns of the row. */
  row: Readonly<Record<string, unknown>>
}

/** Which column to take for a field, e.g. `{ prompt: 'question', completion: 'answer' }`. */
export type FieldMap = Partial<Record<FieldName, string>>

/** Where a row comes from, for messages. */
export interface RowPlace {
  file: string
  line: number
}

const FIELD_NAMES = [
  'messages',
  'instruction',
  'input',
  'output',
  'prompt',
  'completion',
  'conversations',
  'system_prompt',
  'question',
  'response',
  'query',
  'answer',
  'text',
  'input_ids',
  'labels',
  'chosen',
  'rejected',
  'ground_truth',
  'dataset',
  'verifier',
] as const
export type FieldName = (typeof FIELD_NAMES)[number]

/** How the rows of a file are read: which fields they may have, and what a row of them becomes. */
export interface RowForm {
  /** Part of the key of what is cached. */
  readonly name: string
  readonly shapes: readonly Shape[]
  /** Rows of the common form for one row of the file; none when it is to be left out and counted. */
  convert(row: Record<string, unknown>, place: RowPlace, map?: FieldMap): Row[]
}

/** Fields that rows have together. */
export interface Shape {
  fields: FieldName[]
  optional?: FieldName[]
}

/** Reads fields of one row through the field map. */
export class Fields {
  constructor(
    readonly row: Record<string, unknown>,
    readonly place: RowPlace,
    readonly map: FieldMap,
  ) {}

  column(field: FieldName): string {
    return this.map[field] ?? field
  }

  has(field: FieldName): boolean {
    const column = this.column(field)
    return Object.hasOwn(this.row, column) && this.row[column] !== null && this.row[column] !== undefined
  }

  value(field: FieldName): unknown {
    return this.has(field) ? this.row[this.column(field)] : undefined
  }

  text(field: FieldName): string {
    const value = this.value(field)
    if (typeof value === 'string') return value
    throw this.fault(`\`${this.column(field)}\` must be a string; got ${describe(value)}`, this.column(field))
  }

  fault(message: string, field?: string, hint?: string): CaravanError {
    const { file, line } = this.place
    return new CaravanError('ERR_DATA', `${file}:${line}: ${message}`, { details: { file, line, field }, hint })
  }
}

interface ConvertedShape extends Shape {
  convert: (fields: Fields) => Row
}

const SHAPES: ConvertedShape[] = [
  { fields: ['messages'], convert: (fields) => chat(parseMessages(fields, 'messages')) },
  { fields: ['input_ids', 'labels'], convert: convertIds },
  {
    fields: ['instruction', 'output'],
    optional: ['input'],
    convert: (fields) => exchange(alpacaPrompt(fields), fields.text('output')),
  },
  { fields: ['prompt', 'completion'], optional: ['system_prompt'], convert: convertPromptCompletion },
  { fields: ['conversations'], convert: (fields) => chat(parseConversations(fields)) },
  {
    fields: ['question', 'response'],
    optional: ['system_prompt'],
    convert: (fields) => exchange(fields.text('question'), fields.text('response'), systemPrompt(fields)),
  },
  { fields: ['query', 'answer'], convert: (fields) => exchange(fields.text('query'), fields.text('answer')) },
  { fields: ['query', 'response'], convert: (fields) => exchange(fields.text('query'), fields.text('response')) },
  { fields: ['text'], convert: (fields) => ({ kind: 'text', text: fields.text('text') }) },
]

/**
 * Converts one row of a data file to the common form. ERR_DATA (file, line, field) when its fields fit no known
 * shape, or a field has the wrong type, an unknown role, or nothing in it.
 */
export function convertRow(row: Record<string, unknown>, place: RowPlace, map: FieldMap = {}): Row {
  const fields = new Fields(row, place, map)
  return shapeOf(fields, SHAPES).convert(fields)
}

/** Rows to be trained on one by one. */
export const singleRows: RowForm = {
  name: 'single',
  shapes: SHAPES,
  convert: (row, place, map) => [convertRow(row, place, map)],
}

/** The first of `shapes` that a row has, in keeping with its field map. ERR_DATA when there is none. */
export function shapeOf<S extends Shape>(fields: Fields, shapes: readonly S[]): S {
  const mapped = Object.keys(fields.map) as FieldName[]
  const shape = shapes.find((candidate) => fits(candidate, fields, mapped))
  if (shape === undefined) throw unknownShape(fields, shapes)
  return shape
}

/**
 * Checks a field map before any row is read: ERR_CONFIG for a field that does not exist or a set that fits no shape.
 */
export function checkFieldMap(map: FieldMap, shapes: readonly Shape[] = SHAPES): void {
  for (const [field, column] of Object.entries(map)) {
    if (!(FIELD_NAMES as readonly string[]).includes(field)) {
      const near = nearestName(field, FIELD_NAMES)
      throw new CaravanError('ERR_CONFIG', `the field map names an unknown field "${field}"`, {
        details: { field },
        hint: near === undefined ? `known fields: ${FIELD_NAMES.join(', ')}` : `did you mean "${near}"?`,
      })
    }
    if (typeof column !== 'string' || column === '') {
      throw new CaravanError('ERR_CONFIG', `the field map must give a column name for "${field}"`, {
        details: { field },
      })
    }
  }
  const mapped = Object.keys(map) as FieldName[]
  if (shapes.some((shape) => holdsAll(shape, mapped))) return
  throw new CaravanError('ERR_CONFIG', `no row shape has the mapped fields together: ${mapped.join(', ')}`, {
    details: { fields: mapped },
    hint: `known shapes: ${shapeList(shapes)}`,
  })
}

function fits(shape: Shape, fields: Fields, mapped: FieldName[]): boolean {
  return holdsAll(shape, mapped) && shape.fields.every((field) => fields.has(field))
}

function holdsAll(shape: Shape, mapped: FieldName[]): boolean {
  return mapped.every((field) => shape.fields.includes(field) || shape.optional?.includes(field))
}

function shapeList(shapes: readonly Shape[]): string {
  return shapes
    .map(({ fields, optional = [] }) => [...fields, ...optional.map((name) => `${name}?`)].join('+'))
    .join(', ')
}

function unknownShape(fields: Fields, shapes: readonly Shape[]): CaravanError {
  const seen = Object.keys(fields.row)
  const map = Object.entries(fields.map).map(([field, column]) => `${field}=${column}`)
  const mapNote = map.length > 0 ? ` with the field map ${map.join(', ')}` : ''
  const message = `no known row shape has the fields ${JSON.stringify(seen.slice(0, 20))}${mapNote}`
  const wanted = map.length > 0 ? Object.values(fields.map) : shapes.flatMap((shape) => shape.fields)
  return fields.fault(message, undefined, `known shapes: ${shapeList(shapes)}.${suggestion(seen, wanted)}`)
}

function suggestion(seen: string[], wanted: readonly string[]): string {
  if (seen.includes('chosen') && seen.includes('rejected')) {
    return ' These are preference pairs: they are for the stages dpo and reward_model.'
  }
  for (const name of seen) {
    const near = nearestName(name, wanted)
    if (near !== undefined && near !== name && !seen.includes(near)) return ` Is "${name}" meant to be "${near}"?`
  }
  return ' Other column names can be given by a field map, e.g. { prompt: "question", completion: "answer" }.'
}

function chat(messages: Message[]): Row {
  return { kind: 'messages', messages }
}

function exchange(prompt: string, answer: string, system?: string): Row {
  const messages: Message[] = [
    { role: 'user', content: prompt },
    { role: 'assistant', content: answer },
  ]
  if (system !== undefined && system !== '') messages.unshift({ role: 'system', content: system })
  return chat(messages)
}

function systemPrompt(fields: Fields): string | undefined {
  return fields.has('system_prompt') ? fields.text('system_prompt') : undefined
}

/** Strings, or message lists on both sides (TRL's conversational prompt-completion form). */
function convertPromptCompletion(fields: Fields): Row {
  if (!Array.isArray(fields.value('prompt'))) {
    return exchange(fields.text('prompt'), fields.text('completion'), systemPrompt(fields))
  }
  const messages = [...parseMessages(fields, 'prompt'), ...parseMessages(fields, 'completion')]
  const system = systemPrompt(fields)
  if (system !== undefined && system !== '') messages.unshift({ role: 'system', content: system })
  return chat(messages)
}

/** The prompt texts of Stanford Alpaca, with and without an input, as Tulu uses them. */
function alpacaPrompt(fields: Fields): string {
  const instruction = fields.text('instruction')
  const input = fields.has('input') ? fields.text('input') : ''
  const ending = '### Response:'
  const request = 'Write a response that appropriately completes the request.\n\n'
  if (input === '') {
    return `Below is an instruction that describes a task. ${request}### Instruction:\n${instruction}\n\n${ending}`
  }
  const opening = `Below is an instruction that describes a task, paired with an input that provides further context. `
  return `${opening}${request}### Instruction:\n${instruction}\n\n### Input:\n${input}\n\n${ending}`
}

const SHAREGPT_ROLES = new Map<string, Role>([
  ['human', 'user'],
  ['user', 'user'],
  ['gpt', 'assistant'],
  ['chatgpt', 'assistant'],
  ['assistant', 'assistant'],
  ['system', 'system'],
  ['tool', 'tool'],
])

function parseConversations(fields: Fields): Message[] {
  return parseTurns(fields, 'conversations', (turn, where) => {
    const speaker = 'from' in turn ? turn.from : turn.role
    const role = typeof speaker === 'string' ? SHAREGPT_ROLES.get(speaker.toLowerCase()) : undefined
    if (role === undefined) throw unknownRole(fields, `${where}.from`, speaker, [...SHAREGPT_ROLES.keys()])
    return { role, content: parseContent(fields, `${where}.value`, 'value' in turn ? turn.value : turn.content) }
  })
}

/** A field that is a list of messages. ERR_DATA for anything else. */
export function parseMessages(fields: Fields, field: FieldName): Message[] {
  return parseTurns(fields, field, (turn, where) => {
    const role = ROLES.find((known) => known === turn.role)
    if (role === undefined) throw unknownRole(fields, `${where}.role`, turn.role, ROLES)
    return { role, content: parseContent(fields, `${where}.content`, turn.content) }
  })
}

function parseTurns(
  fields: Fields,
  field: FieldName,
  parse: (turn: Record<string, unknown>, where: string) => Message,
): Message[] {
  const column = fields.column(field)
  const turns = fields.value(field)
  if (!Array.isArray(turns)) {
    throw fields.fault(`\`${column}\` must be a list of messages; got ${describe(turns)}`, column)
  }
  if (turns.length === 0) throw fields.fault(`\`${column}\` has no messages`, column)
  return turns.map((turn: unknown, i) => {
    const where = `${column}[${i}]`
    if (typeof turn === 'object' && turn !== null && !Array.isArray(turn)) {
      return parse(turn as Record<string, unknown>, where)
    }
    throw fields.fault(`\`${where}\` must be an object; got ${describe(turn)}`, where)
  })
}

/** A string, or a list of text parts; other parts (images, audio) cannot be trained on. */
function parseContent(fields: Fields, where: string, content: unknown): string {
  if (typeof content === 'string') return content
  if (!Array.isArray(content)) {
    const hint = content === null || content === undefined ? 'tool calls without text are not supported' : undefined
    throw fields.fault(`\`${where}\` must be a string; got ${describe(content)}`, where, hint)
  }
  return content
    .map((part: unknown, i) => {
      const text = typeof part === 'object' && part !== null ? (part as { type?: unknown; text?: unknown }) : {}
      if (text.type === 'text' && typeof text.text === 'string') return text.text
      throw fields.fault(`\`${where}[${i}]\` must be a text part; got ${describe(part)}`, where)
    })
    .join('')
}

function unknownRole(fields: Fields, where: string, got: unknown, known: readonly string[]): CaravanError {
  const near = typeof got === 'string' ? nearestName(got.slice(0, 50), known) : undefined
  const hint = near === undefined ? undefined : `did you mean "${near}"?`
  return fields.fault(`\`${where}\` must be one of ${known.join(', ')}; got ${describe(got)}`, where, hint)
}

function convertIds(fields: Fields): Row {
  const inputIds = parseIntegers(fields, 'input_ids', 0)
  const labels = parseIntegers(fields, 'labels', NO_TARGET)
  if (labels.length !== inputIds.length) {
    throw fields.fault(`input_ids has ${inputIds.length} entries, labels ${labels.length}`, fields.column('labels'))
  }
  const wrong = labels.findIndex((label, t) => label !== NO_TARGET && label !== inputIds[t])
  if (wrong >= 0) {
    const got = `got ${labels[wrong]} beside ${inputIds[wrong]}`
    const hint = 'labels are not shifted: position t holds the id of token t where it is trained, else -100'
    throw fields.fault(`labels[${wrong}] must be -100 or input_ids[${wrong}]; ${got}`, fields.column('labels'), hint)
  }
  return { kind: 'ids', inputIds, labels }
}

function parseIntegers(fields: Fields, field: FieldName, least: number): Int32Array {
  const column = fields.column(field)
  const values = fields.value(field)
  if (!Array.isArray(values) && !ArrayBuffer.isView(values)) {
    throw fields.fault(`\`${column}\` must be a list of integers; got ${describe(values)}`, column)
  }
  const list = values as ArrayLike<unknown>
  return Int32Array.from({ length: list.length }, (_, i) => {
    const value = typeof list[i] === 'bigint' ? Number(list[i]) : list[i]
    const inRange = Number.isInteger(value) && (value as number) >= least && (value as number) < 2 ** 31
    if (inRange) return value as number
    throw fields.fault(`\`${column}[${i}]\` must be an integer in [${least}, 2^31); got ${describe(list[i])}`, column)
  })
}

/** A value for a message: its type, and its text when that is short. */
function describe(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (value === null) return 'null'
  if (Array.isArray(value)) return `a list of ${value.length}`
  if (typeof value === 'object') return `an object with ${JSON.stringify(Object.keys(value).slice(0, 8))}`
  const text = typeof value === 'string' ? JSON.stringify(value.slice(0, 40)) : String(value)
  return `the ${typeof value} ${text}`
}
