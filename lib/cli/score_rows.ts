// The rows of `caravan score` as token ids. `input_ids` are taken as they are; text is encoded with the special tokens
// that the tokenizer adds; messages go through the chat template, which writes its own. The tokenizer is loaded for the
// first row that needs it: ids alone need none.
import { CaravanError } from '../base/errors.js'
import { type JsonRow, readJsonLines } from '../data/json_lines.js'
import { convertRow } from '../data/rows.js'
import { encodeChat } from '../text/chat_encoding.js'
import type { ChatTemplate } from '../text/chat_template.js'
import { Tokenizer } from '../text/tokenizer.js'
import { chosenTemplate } from './template_choice.js'

export interface ScoreRow {
  ids: Int32Array
  file: string
  line: number
}

export interface ScoreSource {
  /** Model folder, for its tokenizer. */
  model: string
  template?: string
  /** Rows of the model's embedding: ids must be below. */
  vocabularySize: number
}

/** Reads and encodes the rows of `file`. ERR_DATA with file:line for a row that is none, or has ids that the model
 *  lacks. */
export async function* scoreRows(file: string, source: ScoreSource): AsyncGenerator<ScoreRow> {
  const encoder = new LazyEncoder(source)
  for await (const row of readJsonLines(file)) {
    const ids = 'input_ids' in row.row ? givenIds(file, row) : await encoder.encode(file, row)
    checkIds(ids, { file, line: row.line, vocabularySize: source.vocabularySize })
    yield { ids, file, line: row.line }
  }
}

class LazyEncoder {
  #loaded: { tokenizer: Tokenizer; template?: ChatTemplate } | undefined

  constructor(private readonly source: ScoreSource) {}

  async encode(file: string, { row, line }: JsonRow): Promise<Int32Array> {
    const converted = convertRow(row, { file, line })
    this.#loaded ??= { tokenizer: await this.#tokenizer() }
    const { tokenizer } = this.#loaded
    try {
      if (converted.kind === 'text') {
        return (await tokenizer.encode(converted.text, { addSpecialTokens: true, offsets: false })).ids
      }
      if (converted.kind === 'ids') return converted.inputIds
      this.#loaded.template ??= await chosenTemplate(tokenizer, this.source.template)
      const messages = converted.messages.map(({ role, content }) => ({ role, content }))
      return (await encodeChat(tokenizer, this.#loaded.template, messages)).ids
    } catch (error) {
      throw withPlace(error, file, line)
    }
  }

  /** A tokenizer that can write ids which the model lacks does not belong to it. */
  async #tokenizer(): Promise<Tokenizer> {
    const { model, vocabularySize } = this.source
    const tokenizer = await Tokenizer.load(model)
    if (tokenizer.vocabularySize <= vocabularySize) return tokenizer
    throw new CaravanError(
      'ERR_TOKENIZER',
      `${model}: the tokenizer has ${tokenizer.vocabularySize} tokens, the model's embedding ${vocabularySize} rows`,
      {
        details: { directory: model, tokens: tokenizer.vocabularySize, rows: vocabularySize },
        hint: 'the tokenizer files are those of another model, or tokens were added without resizing the model',
      },
    )
  }
}

function givenIds(file: string, { row, line }: JsonRow): Int32Array {
  const values = row.input_ids
  const fault = (wanted: string, details: object) =>
    new CaravanError('ERR_DATA', `${file}:${line}: ${wanted}`, {
      details: { file, line, field: 'input_ids', ...details },
    })
  if (!Array.isArray(values)) throw fault(`\`input_ids\` must be a list of integers; got ${JSON.stringify(values)}`, {})
  return Int32Array.from(values, (value: unknown, i) => {
    if (Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 31) return value as number
    const got = JSON.stringify(value)?.slice(0, 40)
    throw fault(`\`input_ids[${i}]\` must be an integer >= 0; got ${got}`, { index: i })
  })
}

function checkIds(
  ids: Int32Array,
  { file, line, vocabularySize }: { file: string; line: number; vocabularySize: number },
) {
  const index = ids.findIndex((id) => id >= vocabularySize)
  if (index < 0) return
  const rows = `the model's embedding has ${vocabularySize} rows`
  const message = `${file}:${line}: token ${index} has id ${ids[index]}; ${rows}`
  throw new CaravanError('ERR_DATA', message, {
    details: { file, line, index, id: ids[index], vocabularySize },
    hint: 'the ids were made with the tokenizer of another model',
  })
}

function withPlace(error: unknown, file: string, line: number): unknown {
  if (!(error instanceof CaravanError) || error.details.file !== undefined) return error
  return new CaravanError(error.code, `${file}:${line}: ${error.message}`, {
    details: { ...error.details, file, line },
    hint: error.hint,
    cause: error,
  })
}
