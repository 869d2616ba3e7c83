// `caravan inspect`: what training would see of some data. Faults that cost a whole run (nothing trained, no end of
// turn trained, rows cut off) are cheap to see here.
import { CaravanError } from '../base/errors.js'
import { type DatasetRow, openDataset } from '../data/dataset.js'
import { encodeChatBatch, endOfTurnIsTrained } from '../text/chat_encoding.js'
import type { ChatTemplate } from '../text/chat_template.js'
import { Tokenizer } from '../text/tokenizer.js'
import { exitCodes } from './failure.js'
import { InspectStatistics } from './inspect_statistics.js'
import { rowLines, tokenTexts } from './inspect_view.js'
import { chosenTemplate } from './template_choice.js'
import { Terminal } from './terminal.js'

export interface InspectFlags {
  data: string[]
  model?: string
  tokenizer?: string
  template?: string
  fields?: { [name: string]: string }
  rows: number
  maxTokens?: number
  trainOn: 'all' | 'last'
  json?: boolean
}

/** A row as it would be trained. */
export interface InspectedRow {
  file: string
  line: number
  ids: Int32Array
  mask: Uint8Array
  truncated: boolean
  untrainedReason: string | undefined
  /** For chat rows: whether the last trained token ends a turn. */
  endsTurn: boolean | undefined
}

const ROWS_AT_ONCE = 256

/** Shows rows and statistics; the value is the exit code. ERR_DATA when no row of a chat trains an end of turn. */
export async function inspect(flags: InspectFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const tokenizer = await Tokenizer.load(tokenizerFolder(flags))
  const dataset = await openDataset(flags.data, { fields: flags.fields })
  const statistics = new InspectStatistics()
  let shown = 0
  for await (const rows of inspectedRows(dataset.rows(), tokenizer, flags)) {
    for (const row of rows) {
      statistics.add(row)
      if (shown >= flags.rows) continue
      shown++
      await showRow(row, { tokenizer, terminal, json: flags.json })
    }
  }
  if (flags.json) terminal.line(JSON.stringify({ type: 'statistics', ...statistics.summary() }))
  else for (const line of statistics.lines(terminal)) terminal.line(line)
  statistics.check(flags.data)
  return exitCodes.done
}

function tokenizerFolder({ model, tokenizer }: InspectFlags): string {
  if (model !== undefined && tokenizer !== undefined) {
    throw new CaravanError('ERR_USAGE', '--model and --tokenizer both name a tokenizer', {
      hint: 'leave one of them out',
    })
  }
  const folder = tokenizer ?? model
  if (folder !== undefined) return folder
  throw new CaravanError('ERR_USAGE', 'inspect needs a tokenizer', { hint: 'give --model DIR or --tokenizer DIR' })
}

async function* inspectedRows(
  rows: AsyncIterable<DatasetRow>,
  tokenizer: Tokenizer,
  flags: InspectFlags,
): AsyncGenerator<InspectedRow[]> {
  let template: ChatTemplate | undefined
  const encode = async (chunk: DatasetRow[]) => {
    if (chunk.some(({ row }) => row.kind === 'messages')) template ??= await chosenTemplate(tokenizer, flags.template)
    return encodeChunk(chunk, { tokenizer, template, flags })
  }
  let chunk: DatasetRow[] = []
  for await (const row of rows) {
    chunk.push(row)
    if (chunk.length < ROWS_AT_ONCE) continue
    yield await encode(chunk)
    chunk = []
  }
  if (chunk.length > 0) yield await encode(chunk)
}

interface Encoding {
  tokenizer: Tokenizer
  template: ChatTemplate | undefined
  flags: InspectFlags
}

async function encodeChunk(chunk: DatasetRow[], { tokenizer, template, flags }: Encoding): Promise<InspectedRow[]> {
  const { maxTokens = Number.POSITIVE_INFINITY, trainOn } = flags
  const chats = chunk.filter(({ row }) => row.kind === 'messages')
  const conversations = chats.map(({ row }) => (row.kind === 'messages' ? row.messages.map((m) => ({ ...m })) : []))
  const encoded =
    template === undefined
      ? []
      : await encodeChatBatch(tokenizer, template, conversations, { maxTokens, trainOn }).catch((error) => {
          throw withPlace(error, chats)
        })
  const result: InspectedRow[] = []
  let chat = 0
  for (const { row, file, line } of chunk) {
    if (row.kind === 'messages') {
      const { ids, mask, truncated, untrainedReason } = encoded[chat]!
      result.push({
        file,
        line,
        ids,
        mask,
        truncated,
        untrainedReason,
        endsTurn: endOfTurnIsTrained(tokenizer, encoded[chat]!),
      })
      chat++
    } else result.push(plainRow({ row, file, line }, await idsAndMask(row, tokenizer), maxTokens))
  }
  return result
}

type PlainRow = Exclude<DatasetRow['row'], { kind: 'messages' }>

async function idsAndMask(row: PlainRow, tokenizer: Tokenizer): Promise<{ ids: Int32Array; mask: Uint8Array }> {
  if (row.kind === 'ids')
    return { ids: row.inputIds, mask: Uint8Array.from(row.labels, (label) => (label >= 0 ? 1 : 0)) }
  const encoded = await tokenizer.encode(row.text, { addSpecialTokens: true, offsets: false })
  // As in training, a text ends with the end token.
  const { eosId } = tokenizer
  const ids = eosId === undefined || encoded.ids.at(-1) === eosId ? encoded.ids : Int32Array.of(...encoded.ids, eosId)
  return { ids, mask: new Uint8Array(ids.length).fill(1) }
}

function plainRow(
  { file, line }: DatasetRow,
  { ids, mask }: { ids: Int32Array; mask: Uint8Array },
  maxTokens: number,
): InspectedRow {
  const kept = mask.subarray(0, maxTokens)
  const reason = mask.includes(1) ? 'cut_off' : 'no_label'
  return {
    file,
    line,
    ids: ids.subarray(0, maxTokens),
    mask: kept,
    truncated: ids.length > maxTokens,
    untrainedReason: kept.includes(1) ? undefined : reason,
    endsTurn: undefined,
  }
}

function withPlace(error: unknown, rows: DatasetRow[]): unknown {
  if (!(error instanceof CaravanError)) return error
  const place = typeof error.details.row === 'number' ? rows[error.details.row] : undefined
  if (!place) return error
  const { file, line } = place
  return new CaravanError(error.code, `${file}:${line}: ${error.message}`, {
    details: { ...error.details, file, line },
    hint: error.hint,
    cause: error,
  })
}

async function showRow(
  row: InspectedRow,
  { tokenizer, terminal, json }: { tokenizer: Tokenizer; terminal: Terminal; json?: boolean },
): Promise<void> {
  const texts = await tokenTexts(tokenizer, row.ids)
  if (json) {
    const { file, line, ids, mask, truncated, untrainedReason, endsTurn } = row
    const tokens = texts.map((text, i) => ({ id: ids[i], text, trained: mask[i] === 1 }))
    terminal.line(JSON.stringify({ type: 'row', file, line, truncated, untrainedReason, endsTurn, tokens }))
  } else for (const line of rowLines(row, texts, terminal)) terminal.line(line)
}
