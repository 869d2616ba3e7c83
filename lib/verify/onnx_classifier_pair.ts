// How a tokenizer joins a prompt and an answer into one row: its post-processor says where special tokens stand and
// which segment each token belongs to. The library does not offer it for pairs, so it is read from tokenizer.json.
import { CaravanError } from '../base/errors.js'
import type { Tokenizer } from '../text/tokenizer.js'

/** Tokens of a row, in order: special ones, the first text (0) or the second (1), each with its segment. */
type Piece = { segment: number } & ({ ids: number[] } | { text: 0 | 1 })

export interface RowTemplate {
  single: Piece[]
  pair: Piece[]
}

export interface TokenRow {
  ids: Int32Array
  /** Segment of each token: `token_type_ids`. */
  segments: Int32Array
}

type Json = Record<string, unknown>

const BARE: RowTemplate = {
  single: [{ segment: 0, text: 0 }],
  pair: [
    { segment: 0, text: 0 },
    { segment: 1, text: 1 },
  ],
}

/** What the post-processor of `tokenizer` does with one text and with two. */
export function rowTemplate(tokenizer: Tokenizer): RowTemplate {
  const json = JSON.parse(tokenizer.files.get('tokenizer.json')!.toString('utf8')) as Json
  return templateOf(json.post_processor as Json | null | undefined) ?? BARE
}

function templateOf(processor: Json | null | undefined): RowTemplate | undefined {
  switch (processor?.type) {
    case 'Sequence':
      for (const one of processor.processors as Json[]) {
        const found = templateOf(one)
        if (found !== undefined) return found
      }
      return undefined
    case 'TemplateProcessing': {
      const special = processor.special_tokens as Record<string, { ids: number[] }>
      const pieces = (list: unknown) => (list as Json[]).map((one) => pieceOf(one, special))
      return { single: pieces(processor.single), pair: pieces(processor.pair) }
    }
    case 'BertProcessing':
      return separated(processor, (sep) => [{ segment: 0, ids: [sep] }], 1)
    case 'RobertaProcessing':
      return separated(processor, (sep) => [{ segment: 0, ids: [sep, sep] }], 0)
    default:
      return undefined
  }
}

function pieceOf(piece: Json, special: Record<string, { ids: number[] }>): Piece {
  const [kind, { id, type_id: segment }] = Object.entries(piece)[0] as [string, { id: string; type_id: number }]
  if (kind === 'Sequence') return { segment, text: id === 'A' ? 0 : 1 }
  return { segment, ids: special[id]!.ids }
}

function separated({ cls, sep }: Json, between: (sep: number) => Piece[], second: number): RowTemplate {
  const begin: Piece = { segment: 0, ids: [(cls as [string, number])[1]] }
  const end = (sep as [string, number])[1]
  const first: Piece = { segment: 0, text: 0 }
  return {
    single: [begin, first, { segment: 0, ids: [end] }],
    pair: [begin, first, ...between(end), { segment: second, text: 1 }, { segment: second, ids: [end] }],
  }
}

/**
 * One row of at most `maxTokens` tokens. What is too long loses the beginning of the prompt, and only when that is not
 * enough the end of the answer: a judge of answers must see them.
 */
export function joinRow(
  template: RowTemplate,
  { prompt, answer }: { prompt: Int32Array | undefined; answer: Int32Array },
  maxTokens: number,
): TokenRow {
  const pieces = prompt === undefined ? template.single : template.pair
  const extra = pieces.reduce((sum, piece) => sum + ('ids' in piece ? piece.ids.length : 0), 0)
  const room = maxTokens - extra
  if (room < 1) {
    throw new CaravanError('ERR_CONFIG', `maxTokens must leave room beside ${extra} special tokens; got ${maxTokens}`, {
      details: { maxTokens, specialTokens: extra },
    })
  }
  const keptAnswer = answer.subarray(0, room)
  const keptPrompt = prompt?.subarray(prompt.length - Math.min(prompt.length, room - keptAnswer.length))
  const texts = keptPrompt === undefined ? [keptAnswer] : [keptPrompt, keptAnswer]
  const ids: number[] = []
  const segments: number[] = []
  for (const piece of pieces) {
    const own = 'ids' in piece ? piece.ids : texts[piece.text]!
    for (const id of own) {
      ids.push(id)
      segments.push(piece.segment)
    }
  }
  return { ids: Int32Array.from(ids), segments: Int32Array.from(segments) }
}
