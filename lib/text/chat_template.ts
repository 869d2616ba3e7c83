// A chat template, ready to render conversations: built-in ones by TypeScript code, all others by Jinja in a process
// with a budget. Rendering also tells which characters the assistant wrote, which is what training needs.
import { CaravanError } from '../base/errors.js'
import {
  type BlockMarks,
  hasGenerationBlocks,
  markGenerationBlocks,
  takeMarks,
  unusedMarks,
} from './generation_blocks.js'
import { defaultTemplateBudget, renderApart, renderPossibleApart, type TemplateBudget } from './template_process.js'
import type { Tokenizer } from './tokenizer.js'
import {
  type BuiltInTemplate,
  builtInTemplates,
  type CharSpan,
  type ChatMessage,
  type RenderedChat,
} from './tulu_template.js'

export interface ChatTemplateOptions {
  /** Values of `bos_token`, `eos_token`, `pad_token`. */
  tokens?: { bosToken?: string | undefined; eosToken?: string | undefined; padToken?: string | undefined }
  budget?: Partial<TemplateBudget>
}

export interface RenderOptions {
  /** End with the header of an assistant turn. Default false. */
  addGenerationPrompt?: boolean
  /** Function schemas, as transformers passes them. */
  tools?: readonly unknown[]
  documents?: readonly unknown[]
  /** Further variables that the template reads. */
  variables?: Record<string, unknown>
}

/** A chat template with its special tokens. */
export class ChatTemplate {
  /** True when `spans` come from the template itself: built in, or with `{% generation %}` blocks. */
  readonly givesSpans: boolean
  readonly #builtIn: BuiltInTemplate | undefined
  readonly #tokens: { bosToken: string; eosToken: string; padToken: string }
  readonly #budget: TemplateBudget

  /** `source` is Jinja, or the name of a built-in template: tulu, tulu_bos, pocket. */
  constructor(source: string, options: ChatTemplateOptions = {}) {
    this.#builtIn = findBuiltIn(source)
    this.source = this.#builtIn?.source ?? source
    this.#tokens = {
      bosToken: options.tokens?.bosToken ?? '',
      eosToken: options.tokens?.eosToken ?? '',
      padToken: options.tokens?.padToken ?? '',
    }
    this.#budget = { ...defaultTemplateBudget, ...options.budget }
    this.givesSpans = this.#builtIn !== undefined || hasGenerationBlocks(source)
  }

  /** The Jinja source, as it is saved with a model. */
  readonly source: string

  /** The template of a tokenizer, or `source` with that tokenizer's special tokens. Throws ERR_TEMPLATE if none. */
  static of(tokenizer: Tokenizer, source = tokenizer.chatTemplate, budget?: Partial<TemplateBudget>): ChatTemplate {
    if (source !== undefined) return new ChatTemplate(source, { tokens: tokenizer, budget })
    throw new CaravanError('ERR_TEMPLATE', 'the tokenizer has no chat template', {
      hint: `Name one: ${[...builtInTemplates.keys()].join(', ')}, or a Jinja text.`,
    })
  }

  /**
   * Renders one conversation. Throws ERR_TEMPLATE (invalid, or raised) or ERR_TEMPLATE_BUDGET (too long, too large).
   */
  async render(messages: readonly ChatMessage[], options: RenderOptions = {}): Promise<RenderedChat> {
    const [rendered] = await this.renderBatch([messages], options)
    return rendered!
  }

  /** `render` for many conversations at the cost of one message to the process; `details.row` names a faulty one. */
  async renderBatch(
    conversations: readonly (readonly ChatMessage[])[],
    options: RenderOptions = {},
  ): Promise<RenderedChat[]> {
    for (const [row, messages] of conversations.entries()) checkMessages(messages, row)
    const builtIn = this.#builtIn
    if (builtIn !== undefined) {
      const addGenerationPrompt = options.addGenerationPrompt ?? false
      return conversations.map((messages, row) => {
        if (builtIn.roles !== undefined) checkRoles(messages, builtIn.roles, row)
        return builtIn.render(messages, this.#tokens, addGenerationPrompt)
      })
    }
    const rows = conversations.map((messages) => this.#variables(messages, options))
    const texts = await renderApart(this.source, rows, this.#budget)
    if (!this.givesSpans) return texts.map((text) => ({ text, spans: undefined }))
    return this.#withSpans(texts, rows)
  }

  /** The texts of `renderBatch`, undefined for conversations at which the template raises. */
  async renderPossible(
    conversations: readonly (readonly ChatMessage[])[],
    options: RenderOptions = {},
  ): Promise<(string | undefined)[]> {
    if (this.#builtIn !== undefined) return (await this.renderBatch(conversations, options)).map(({ text }) => text)
    const rows = conversations.map((messages) => this.#variables(messages, options))
    return renderPossibleApart(this.source, rows, this.#budget)
  }

  /** Renders again with marks. Where a filter changed marked text, the renderings differ and no spans are given. */
  async #withSpans(texts: readonly string[], rows: Record<string, unknown>[]): Promise<RenderedChat[]> {
    const marks: BlockMarks = unusedMarks([this.source, ...texts])
    const marked = await renderApart(markGenerationBlocks(this.source, marks), rows, this.#budget)
    return texts.map((text, i) => {
      const taken = takeMarks(marked[i]!, marks)
      return { text, spans: taken.text === text ? taken.spans : undefined }
    })
  }

  #variables(messages: readonly ChatMessage[], options: RenderOptions): Record<string, unknown> {
    return {
      ...options.variables,
      messages,
      add_generation_prompt: options.addGenerationPrompt ?? false,
      bos_token: this.#tokens.bosToken,
      eos_token: this.#tokens.eosToken,
      pad_token: this.#tokens.padToken,
      ...(options.tools === undefined ? {} : { tools: options.tools }),
      ...(options.documents === undefined ? {} : { documents: options.documents }),
    }
  }
}

function findBuiltIn(source: string): BuiltInTemplate | undefined {
  const named = builtInTemplates.get(source)
  if (named !== undefined) return named
  for (const template of builtInTemplates.values()) if (template.source === source) return template
  return undefined
}

function checkMessages(messages: readonly ChatMessage[], row: number): void {
  if (!Array.isArray(messages)) {
    throw new CaravanError('ERR_DATA', `conversation ${row}: messages must be an array`, { details: { row } })
  }
  for (const [i, message] of messages.entries()) {
    if (typeof message?.role === 'string' && typeof message.content === 'string') continue
    throw new CaravanError(
      'ERR_DATA',
      `conversation ${row}: message ${i} must have a string role and a string content`,
      {
        details: { row, message: i },
      },
    )
  }
}

function checkRoles(messages: readonly ChatMessage[], roles: readonly string[], row: number): void {
  const odd = messages.findIndex(({ role }) => !roles.includes(role))
  if (odd < 0) return
  const message = `chat template: conversation ${row}, message ${odd}: the role must be ${roles.join(' or ')}`
  throw new CaravanError('ERR_TEMPLATE', `${message}; got ${JSON.stringify(messages[odd]!.role)}`, {
    details: { row, message: odd },
    hint: 'Put the text of other roles into a user message, or use the tulu template.',
  })
}

export type { CharSpan, ChatMessage, RenderedChat }
