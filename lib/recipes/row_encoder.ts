// Rows to tokens: the module that data/encode loads, in worker threads too. Chat rows by the template with their
// assistant turns as targets; text rows whole, ended by the end token.
import type { RowEncoder } from '../data/encoder.js'
import type { Row } from '../data/rows.js'
import { encodeChatBatch } from '../text/chat_encoding.js'
import { ChatTemplate } from '../text/chat_template.js'
import { Tokenizer } from '../text/tokenizer.js'

export interface RowEncoderOptions {
  /** Folder with tokenizer.json. */
  tokenizer: string
  /** Name or Jinja text of the chat template; undefined = the tokenizer's own. */
  template: string | undefined
  maxTokens: number
  trainOn: 'all' | 'last'
}

/** Makes the encoder; see data/encoder.ts. */
export async function createEncoder(options: RowEncoderOptions): Promise<RowEncoder> {
  const tokenizer = await Tokenizer.load(options.tokenizer)
  let template: ChatTemplate | undefined
  return async (rows: Row[]) => {
    const texts = rows.flatMap((row) => (row.kind === 'text' ? [row.text] : []))
    const chats = rows.flatMap((row) =>
      row.kind === 'messages' ? [row.messages.map((message) => ({ ...message }))] : [],
    )
    if (chats.length > 0) template ??= ChatTemplate.of(tokenizer, options.template ?? tokenizer.chatTemplate)
    const { maxTokens, trainOn } = options
    const encodedChats =
      chats.length > 0 ? await encodeChatBatch(tokenizer, template!, chats, { maxTokens, trainOn }) : []
    const encodedTexts = await tokenizer.encodeBatch(texts, { offsets: false, addSpecialTokens: true })
    let [chat, text] = [0, 0]
    return rows.map((row) => {
      if (row.kind === 'messages') {
        const { ids, mask } = encodedChats[chat++]!
        return { ids, mask }
      }
      const ids = withEnd(encodedTexts[text++]!.ids, tokenizer.eosId).subarray(0, maxTokens)
      return { ids, mask: new Uint8Array(ids.length).fill(1) }
    })
  }
}

function withEnd(ids: Int32Array, eosId: number | undefined): Int32Array {
  if (eosId === undefined || ids.at(-1) === eosId) return ids
  const longer = new Int32Array(ids.length + 1)
  longer.set(ids)
  longer[ids.length] = eosId
  return longer
}
