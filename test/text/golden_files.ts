// Reference data for the text tests: test/golden/tokenizers and test/golden/chat, made with transformers 5.18.0.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { ChatMessage } from '../../lib/text/tulu_template.js'

const golden = fileURLToPath(new URL('../golden/', import.meta.url))

export const tokenizerNames = ['tulu', 'llama3', 'chatml', 'spm'] as const

export interface EncodingCase {
  text: string
  ids: number[]
  offsets: [number, number][]
  ids_with_special: number[]
  tokens: string[]
  decoded: string
  decoded_skip_special: string
}

export interface ChatCase {
  id: string
  messages: ChatMessage[]
  text: string
  text_generation_prompt: string
  ids: number[]
  generation_prompt_ids: number[]
  assistant_mask: number[]
  mask_source: string
  prefix_consistent?: boolean
  assistant_char_spans?: [number, number][]
}

export function tokenizerFolder(name: string): string {
  return `${golden}tokenizers/${name}`
}

export function readGolden<T>(path: string): T {
  return JSON.parse(readFileSync(golden + path, 'utf8')) as T
}

export const encodings = readGolden<{
  tokenizers: Record<string, { vocab_size: number; bos: number; eos: number; pad: number; cases: EncodingCase[] }>
}>('tokenizers/encodings.json').tokenizers

export const chats = readGolden<{ templates: Record<string, { chat_template: string; cases: ChatCase[] }> }>(
  'chat/chat.json',
).templates
