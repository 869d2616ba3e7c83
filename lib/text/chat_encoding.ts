// Conversations as training rows: token ids and which of them are trained. A conversation is rendered once and
// tokenised once as a whole, because tokenising parts gives other tokens at the seams; the mask follows from character
// offsets.
import { throwIfAborted } from '../base/errors.js'
import { assistantHeader, renderTurns, spansByPrefix, type TurnRenderings } from './assistant_spans.js'
import type { ChatTemplate, RenderOptions } from './chat_template.js'
import type { Encoded, Tokenizer } from './tokenizer.js'
import type { CharSpan, ChatMessage } from './tulu_template.js'

const BATCH_ROWS = 512

export interface ChatEncodingOptions {
  /** Rows are cut on the right to this many tokens. Default: not cut. */
  maxTokens?: number
  /** Train every assistant turn, or the last one alone. Default all. */
  trainOn?: 'all' | 'last'
  /** Tools, documents and further variables for the template. */
  render?: Omit<RenderOptions, 'addGenerationPrompt'>
  signal?: AbortSignal
}

/** Why a row trains nothing. */
export type UntrainedReason =
  | 'no_assistant_turn' // there is no assistant message, or the template prints nothing for it
  | 'cut_off' //           the first assistant turn begins after maxTokens
  | 'spans_unknown' //     it cannot be told which tokens the assistant wrote

/** One conversation, n tokens. */
export interface EncodedChat {
  /** [n] */
  ids: Int32Array
  /** [n]: 1 where the token is trained, that is where it overlaps what the assistant wrote, end of turn included. */
  mask: Uint8Array
  trainedTokens: number
  /** True when maxTokens cut something off. */
  truncated: boolean
  /** Set exactly when trainedTokens is 0. */
  untrainedReason: UntrainedReason | undefined
}

/** Encodes one conversation; see `encodeChatBatch`. */
export async function encodeChat(
  tokenizer: Tokenizer,
  template: ChatTemplate,
  messages: readonly ChatMessage[],
  options: ChatEncodingOptions = {},
): Promise<EncodedChat> {
  const [row] = await encodeChatBatch(tokenizer, template, [messages], options)
  return row!
}

/**
 * Encodes conversations. Trained are the tokens that overlap an assistant turn's content and its end-of-turn token;
 * headers and the line break after an end of turn are not (open-instruct, `sft_tulu_tokenize_and_truncate`). The spans
 * come from the template where it gives them, else from renderings of prefixes. Throws ERR_TEMPLATE,
 * ERR_TEMPLATE_BUDGET or ERR_DATA; a row that trains nothing is returned with its reason.
 */
export async function encodeChatBatch(
  tokenizer: Tokenizer,
  template: ChatTemplate,
  conversations: readonly (readonly ChatMessage[])[],
  options: ChatEncodingOptions = {},
): Promise<EncodedChat[]> {
  const rows: EncodedChat[] = []
  for (let from = 0; from < conversations.length; from += BATCH_ROWS) {
    throwIfAborted(options.signal)
    const batch = conversations.slice(from, from + BATCH_ROWS)
    rows.push(...(await encodeRows(tokenizer, template, batch, options)))
  }
  return rows
}

/** Token ids of conversations that end with the header of an assistant turn, ready for generation. */
export async function encodePromptBatch(
  tokenizer: Tokenizer,
  template: ChatTemplate,
  conversations: readonly (readonly ChatMessage[])[],
  options: Pick<ChatEncodingOptions, 'render' | 'signal'> = {},
): Promise<Int32Array[]> {
  const rendered = await template.renderBatch(conversations, { ...options.render, addGenerationPrompt: true })
  const texts = rendered.map(({ text }) => text)
  const encoded = await tokenizer.encodeBatch(texts, { offsets: false, signal: options.signal })
  return encoded.map(({ ids }) => ids)
}

/**
 * True when the last trained token ends a turn. Without that a model never learns to stop. False for untrained rows.
 */
export function endOfTurnIsTrained(tokenizer: Tokenizer, row: EncodedChat): boolean {
  const last = row.mask.lastIndexOf(1)
  if (last < 0) return false
  const id = row.ids[last]!
  return id === tokenizer.eosId || tokenizer.specialIds.has(id)
}

async function encodeRows(
  tokenizer: Tokenizer,
  template: ChatTemplate,
  conversations: readonly (readonly ChatMessage[])[],
  options: ChatEncodingOptions,
): Promise<EncodedChat[]> {
  const rendered = await template.renderBatch(conversations, options.render)
  const texts = rendered.map(({ text }) => text)
  const encoded = await tokenizer.encodeBatch(texts, { signal: options.signal })
  const unknown = rendered.flatMap(({ spans }, row) => (spans === undefined ? [row] : []))
  const masks: (Uint8Array | undefined)[] = rendered.map(({ spans }, row) => {
    return spans === undefined ? undefined : maskOfSpans(encoded[row]!, chosen(spans, options))
  })
  if (unknown.length > 0) {
    const turns = await renderTurns(
      template,
      unknown.map((row) => conversations[row]!),
      options.render,
    )
    const header = await assistantHeader(template, options.render)
    for (const [i, row] of unknown.entries()) {
      const spans = turns[i] === undefined ? undefined : spansByPrefix(texts[row]!, turns[i], header)
      if (spans !== undefined) masks[row] = maskOfSpans(encoded[row]!, chosen(spans, options))
      else if (turns[i] !== undefined)
        masks[row] = await maskByCounts(tokenizer, encoded[row]!, chosen(turns[i], options))
    }
  }
  return encoded.map(({ ids }, row) => finishRow(ids, masks[row], options.maxTokens ?? Number.POSITIVE_INFINITY))
}

function chosen<T>(turns: readonly T[], options: ChatEncodingOptions): readonly T[] {
  return options.trainOn === 'last' ? turns.slice(-1) : turns
}

function maskOfSpans({ ids, offsets }: Encoded, spans: readonly CharSpan[]): Uint8Array {
  const mask = new Uint8Array(ids.length)
  let span = 0
  for (let token = 0; token < ids.length; token++) {
    const start = offsets[2 * token]!
    const end = offsets[2 * token + 1]!
    while (span < spans.length && spans[span]![1] <= start) span++
    if (span === spans.length) break
    if (end > spans[span]![0]) mask[token] = 1
  }
  return mask
}

/**
 * For renderings that are not literal prefixes: token counts of the prefixes, if the turn has the same tokens there.
 */
async function maskByCounts(
  tokenizer: Tokenizer,
  { ids }: Encoded,
  turns: readonly TurnRenderings[],
): Promise<Uint8Array | undefined> {
  const mask = new Uint8Array(ids.length)
  const texts = turns.flatMap(({ before, through }) => [before, through])
  const prefixes = await tokenizer.encodeBatch(texts, { offsets: false })
  for (let turn = 0; turn < turns.length; turn++) {
    const from = prefixes[2 * turn]!.ids.length
    const through = prefixes[2 * turn + 1]!.ids
    if (from > through.length || through.length > ids.length) return undefined
    for (let token = from; token < through.length; token++) {
      if (ids[token] !== through[token]) return undefined
      mask[token] = 1
    }
  }
  return mask
}

function finishRow(ids: Int32Array, mask: Uint8Array | undefined, maxTokens: number): EncodedChat {
  const kept = Math.min(ids.length, maxTokens)
  const keptMask = mask === undefined ? new Uint8Array(kept) : mask.slice(0, kept)
  let trainedTokens = 0
  for (const trained of keptMask) trainedTokens += trained
  let untrainedReason: UntrainedReason | undefined
  if (mask === undefined) untrainedReason = 'spans_unknown'
  else if (trainedTokens === 0) untrainedReason = mask.includes(1) ? 'cut_off' : 'no_assistant_turn'
  return { ids: ids.slice(0, kept), mask: keptMask, trainedTokens, truncated: kept < ids.length, untrainedReason }
}
