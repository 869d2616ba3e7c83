// The rows of `caravan generate` as prompts. `input_ids` are taken as they are; `prompt` is encoded with the special
// tokens that the tokenizer adds; `messages` go through the chat template up to where the assistant's turn begins.
import { CaravanError } from '../base/errors.js'
import { type JsonRow, readJsonLines } from '../data/json_lines.js'
import { ROLES } from '../data/rows.js'
import { encodePromptBatch } from '../text/chat_encoding.js'
import type { ChatMessage, ChatTemplate } from '../text/chat_template.js'
import type { Tokenizer } from '../text/tokenizer.js'
import { chosenTemplate } from './template_choice.js'

export interface PromptRow {
  ids: Int32Array
  line: number
}

export interface PromptSource {
  tokenizer: Tokenizer
  /** Chat template: built in, or a file; default the tokenizer's own. */
  template?: string
}

/** Reads and encodes the rows of `file`. ERR_DATA with file:line for a row that is no prompt. */
export async function* promptRows(file: string, source: PromptSource): AsyncGenerator<PromptRow> {
  let template: ChatTemplate | undefined
  for await (const row of readJsonLines(file)) {
    const { line } = row
    if (row.row.input_ids !== undefined) yield { ids: givenIds(file, row), line }
    else if (row.row.messages !== undefined) {
      const messages = givenMessages(file, row)
      template ??= await chosenTemplate(source.tokenizer, source.template)
      const [ids] = await atPlace(encodePromptBatch(source.tokenizer, template, [messages]), file, line)
      yield { ids: ids!, line }
    } else {
      const encoding = source.tokenizer.encode(givenPrompt(file, row), { addSpecialTokens: true, offsets: false })
      yield { ids: (await atPlace(encoding, file, line)).ids, line }
    }
  }
}

function fault(file: string, line: number, what: string, hint?: string): CaravanError {
  return new CaravanError('ERR_DATA', `${file}:${line}: ${what}`, { details: { file, line }, hint })
}

function shown(value: unknown): string {
  return JSON.stringify(value)?.slice(0, 40) ?? 'nothing'
}

function givenPrompt(file: string, { row, line }: JsonRow): string {
  if (typeof row.prompt === 'string') return row.prompt
  if (row.prompt !== undefined) throw fault(file, line, `\`prompt\` must be a text; got ${shown(row.prompt)}`)
  const fields = Object.keys(row).slice(0, 8).join(', ')
  throw fault(file, line, `a row must have prompt, messages or input_ids; it has ${fields || 'no field'}`)
}

function givenIds(file: string, { row, line }: JsonRow): Int32Array {
  const values = row.input_ids
  if (!Array.isArray(values)) throw fault(file, line, `\`input_ids\` must be a list of integers; got ${shown(values)}`)
  return Int32Array.from(values, (value: unknown, i) => {
    if (Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 31) return value as number
    throw fault(file, line, `\`input_ids[${i}]\` must be an integer >= 0; got ${shown(value)}`)
  })
}

function givenMessages(file: string, { row, line }: JsonRow): ChatMessage[] {
  const { messages } = row
  if (!Array.isArray(messages) || messages.length === 0) {
    throw fault(file, line, `\`messages\` must be a list of at least one message; got ${shown(messages)}`)
  }
  return messages.map((message: unknown, i) => {
    const { role, content } = (message ?? {}) as { role?: unknown; content?: unknown }
    const known = ROLES.find((one) => one === role)
    if (!known)
      throw fault(file, line, `\`messages[${i}].role\` must be one of ${ROLES.join(', ')}; got ${shown(role)}`)
    if (typeof content !== 'string') {
      throw fault(file, line, `\`messages[${i}].content\` must be a text; got ${shown(content)}`)
    }
    return { role: known, content }
  })
}

async function atPlace<T>(running: Promise<T>, file: string, line: number): Promise<T> {
  try {
    return await running
  } catch (error) {
    throw withPlace(error, file, line)
  }
}

/** The error with file and line in front, unless it has a place already. */
export function withPlace(error: unknown, file: string, line: number): unknown {
  if (!(error instanceof CaravanError) || error.details.file !== undefined) return error
  return new CaravanError(error.code, `${file}:${line}: ${error.message}`, {
    details: { ...error.details, file, line },
    hint: error.hint,
    cause: error,
  })
}
