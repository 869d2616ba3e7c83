// Prompts as tokens, short enough for the model. One that is too long loses worked examples, the last ones first, and
// only without any is it cut on the left; both are counted, since such an answer says less than it should.

import { encodePromptBatch } from '../text/chat_encoding.js'
import type { ChatMessage, ChatTemplate } from '../text/chat_template.js'
import type { Tokenizer } from '../text/tokenizer.js'

/** A prompt as it is shown to the model: text, or a conversation that the template renders. */
export type Prompt = string | readonly ChatMessage[]

export interface TokenPrompt {
  prompt: Prompt
  ids: Int32Array
  /** Worked examples that it has. */
  shots: number
  isCut: boolean
}

export interface PromptEncoder {
  encode(prompts: readonly Prompt[]): Promise<Int32Array[]>
}

/** Encodes prompts: text with the tokens that the tokenizer puts before it, conversations through `template`. */
export async function promptEncoder(
  tokenizer: Tokenizer,
  { template, signal }: { template?: ChatTemplate; signal?: AbortSignal },
): Promise<PromptEncoder> {
  const leading = await leadingIds(tokenizer)
  return {
    async encode(prompts) {
      const texts = prompts.filter((one) => typeof one === 'string')
      const chats = prompts.filter((one) => typeof one !== 'string')
      const encodedTexts = await tokenizer.encodeBatch(texts, { offsets: false, signal })
      const encodedChats = template ? await encodePromptBatch(tokenizer, template, chats, { signal }) : []
      const [text, chat] = [encodedTexts.values(), encodedChats.values()]
      return prompts.map((one) => {
        return typeof one === 'string' ? Int32Array.from([...leading, ...text.next().value!.ids]) : chat.next().value!
      })
    },
  }
}

/** The tokens that the tokenizer puts before a text (a beginning-of-text token, or none); what it puts behind one has
 *  no place in a prompt. */
export async function leadingIds(tokenizer: Tokenizer): Promise<number[]> {
  const [bare, whole] = await Promise.all([
    tokenizer.encode('a', { offsets: false }),
    tokenizer.encode('a', { addSpecialTokens: true, offsets: false }),
  ])
  const most = whole.ids.length - bare.ids.length
  for (let start = 0; start <= most; start++) {
    if (bare.ids.every((id, i) => whole.ids[start + i] === id)) return Array.from(whole.ids.subarray(0, start))
  }
  return []
}

/**
 * Encodes one prompt a row in at most `tokens` tokens. `promptOf(row, shots)` is the prompt with so many examples;
 * `shots` are wanted.
 */
export async function fittingPrompts(
  encoder: PromptEncoder,
  promptOf: (row: number, shots: number) => Prompt,
  { rows, shots, tokens }: { rows: number; shots: number; tokens: number },
): Promise<TokenPrompt[]> {
  const result: TokenPrompt[] = []
  let waiting = Array.from({ length: rows }, (_, row) => row)
  for (let have = shots; waiting.length > 0; have--) {
    const prompts = waiting.map((row) => promptOf(row, have))
    const encoded = await encoder.encode(prompts)
    const tooLong: number[] = []
    for (const [i, row] of waiting.entries()) {
      const ids = encoded[i]!
      const fits = ids.length <= tokens
      if (!fits && have > 0) tooLong.push(row)
      else {
        const kept = fits ? ids : ids.slice(ids.length - tokens)
        result[row] = { prompt: prompts[i]!, ids: kept, shots: have, isCut: !fits }
      }
    }
    waiting = tooLong
  }
  return result
}
