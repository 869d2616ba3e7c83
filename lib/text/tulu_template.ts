// The two chat formats that Caravan writes itself: Tulu 3's, whose role tags are plain text and which has no beginning
// token, and the pocket run's, whose role tags are tokens. Each exists twice, as the Jinja text that is saved with a
// model and as a TypeScript renderer: training renders millions of rows and must not pay for an interpreter.

/** One message of a conversation. Other fields (tool calls, names) reach the template unchanged. */
export interface ChatMessage {
  role: string
  content: string
  [field: string]: unknown
}

/** A half-open range of UTF-16 positions in a rendered text. */
export type CharSpan = readonly [start: number, end: number]

/** A rendered conversation. `spans`: what the assistant wrote, end of turn included; undefined when it is not known. */
export interface RenderedChat {
  text: string
  spans: CharSpan[] | undefined
}

/** A template that is rendered by code of this library instead of the Jinja interpreter. */
export interface BuiltInTemplate {
  readonly name: string
  /** The Jinja source that transformers renders to the same bytes. */
  readonly source: string
  /** The roles that it can render, when others are an error; undefined: others print nothing, as in the original. */
  readonly roles?: readonly string[]
  render(messages: readonly ChatMessage[], tokens: TemplateTokens, addGenerationPrompt: boolean): RenderedChat
}

/** The special tokens that a template may name. */
export interface TemplateTokens {
  bosToken: string
  eosToken: string
}

// open_instruct/dataset_transformation.py, CHAT_TEMPLATES["tulu"] (allenai/open-instruct), byte for byte: the line
// breaks inside the quotes are real line feeds, not escapes.
const TULU_SOURCE =
  "{% for message in messages %}{% if message['role'] == 'system' %}" +
  "{{ '<|system|>\n' + message['content'] + '\n' }}" +
  "{% elif message['role'] == 'user' %}" +
  "{{ '<|user|>\n' + message['content'] + '\n' }}" +
  "{% elif message['role'] == 'assistant' %}" +
  '{% if not loop.last %}' +
  "{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}" +
  '{% else %}' +
  "{{ '<|assistant|>\n'  + message['content'] + eos_token }}" +
  '{% endif %}{% endif %}' +
  '{% if loop.last and add_generation_prompt %}' +
  "{{ '<|assistant|>\n' }}" +
  '{% endif %}{% endfor %}'

// The training copy of the pocket run marks what is trained, so that other libraries find the same mask.
const POCKET_SOURCE =
  "{{- '<|bos|>' -}}{%- for message in messages -%}" +
  "{%- if message['role'] == 'user' -%}{{- '<|user|>\\n' + message['content'] + '\\n' -}}" +
  "{%- elif message['role'] == 'assistant' -%}{{- '<|assistant|>\\n' -}}" +
  "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}" +
  "{%- else -%}{{- raise_exception('the roles are user and assistant') -}}{%- endif -%}" +
  "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"

function renderTulu(
  start: string,
  messages: readonly ChatMessage[],
  tokens: TemplateTokens,
  addGenerationPrompt: boolean,
): RenderedChat {
  let text = start
  const spans: CharSpan[] = []
  for (let i = 0; i < messages.length; i++) {
    const { role, content } = messages[i]!
    const last = i === messages.length - 1
    if (role === 'system' || role === 'user') {
      text += `<|${role}|>\n${content}\n`
    } else if (role === 'assistant') {
      text += '<|assistant|>\n'
      const from = text.length
      text += content + tokens.eosToken
      spans.push([from, text.length])
      if (!last) text += '\n'
    }
    if (last && addGenerationPrompt) text += '<|assistant|>\n'
  }
  return { text, spans }
}

/** Tulu 3's chat format as released: no beginning token; every assistant turn ends with the tokenizer's EOS. */
export const tuluTemplate: BuiltInTemplate = {
  name: 'tulu',
  source: TULU_SOURCE,
  render: (messages, tokens, addGenerationPrompt) => renderTulu('', messages, tokens, addGenerationPrompt),
}

/** Tulu 3's format after the beginning token (`add_bos` in open-instruct, mandatory for OLMo's tokenizers). */
export const tuluBosTemplate: BuiltInTemplate = {
  name: 'tulu_bos',
  source: `{{ bos_token }}${TULU_SOURCE}`,
  render: (messages, tokens, addGenerationPrompt) => renderTulu(tokens.bosToken, messages, tokens, addGenerationPrompt),
}

/** The pocket run's format: `<|bos|><|user|>\n{prompt}\n<|assistant|>\n{answer}<|end|>`, the tags being tokens. */
export const pocketTemplate: BuiltInTemplate = {
  name: 'pocket',
  source: POCKET_SOURCE,
  roles: ['user', 'assistant'],
  render: (messages, _tokens, addGenerationPrompt) => {
    let text = '<|bos|>'
    const spans: CharSpan[] = []
    for (const { role, content } of messages) {
      if (role === 'user') text += `<|user|>\n${content}\n`
      if (role !== 'assistant') continue
      text += '<|assistant|>\n'
      const from = text.length
      text += `${content}<|end|>`
      spans.push([from, text.length])
    }
    if (addGenerationPrompt) text += '<|assistant|>\n'
    return { text, spans }
  },
}

/** Every built-in template by name. */
export const builtInTemplates: ReadonlyMap<string, BuiltInTemplate> = new Map(
  [tuluTemplate, tuluBosTemplate, pocketTemplate].map((template) => [template.name, template]),
)

/** The special tokens of the pocket run, in the order of their ids 0-4. */
export const pocketSpecialTokens = ['<|pad|>', '<|bos|>', '<|user|>', '<|assistant|>', '<|end|>'] as const
