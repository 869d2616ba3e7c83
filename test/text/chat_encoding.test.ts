import { describe, expect, it } from 'vitest'
import { encodeChat, encodeChatBatch, encodePromptBatch, endOfTurnIsTrained } from '../../lib/text/chat_encoding.js'
import { ChatTemplate } from '../../lib/text/chat_template.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import type { ChatMessage } from '../../lib/text/tulu_template.js'
import { chats, tokenizerFolder, tokenizerNames } from './golden_files.js'

describe.each(tokenizerNames)('chat format %s against the reference', (name) => {
  const { cases } = chats[name]!
  const load = async () => {
    const tokenizer = await Tokenizer.load(tokenizerFolder(name))
    return { tokenizer, template: ChatTemplate.of(tokenizer) }
  }

  it('renders the same texts', async () => {
    const { template } = await load()
    const conversations = cases.map(({ messages }) => messages)
    const plain = await template.renderBatch(conversations)
    const prompts = await template.renderBatch(conversations, { addGenerationPrompt: true })
    expect(plain.map(({ text }) => text)).toEqual(cases.map(({ text }) => text))
    expect(prompts.map(({ text }) => text)).toEqual(cases.map((each) => each.text_generation_prompt))
  })

  it('gives the same ids and generation prompts', async () => {
    const { tokenizer, template } = await load()
    const conversations = cases.map(({ messages }) => messages)
    const rows = await encodeChatBatch(tokenizer, template, conversations)
    const prompts = await encodePromptBatch(tokenizer, template, conversations)
    expect(rows.map(({ ids }) => Array.from(ids))).toEqual(cases.map(({ ids }) => ids))
    expect(prompts.map((ids) => Array.from(ids))).toEqual(cases.map((each) => each.generation_prompt_ids))
  })

  it('trains the same tokens', async () => {
    const { tokenizer, template } = await load()
    for (const each of cases) {
      const row = await encodeChat(tokenizer, template, each.messages)
      // Where a token straddles the header's end the reference's token counts are approximate and its spans exact.
      const wanted =
        each.prefix_consistent === false
          ? await maskOfCodePointSpans(tokenizer, each.text, each.assistant_char_spans!)
          : each.assistant_mask
      expect(Array.from(row.mask), each.id).toEqual(wanted)
      expect(row.untrainedReason, each.id).toBe(wanted.includes(1) ? undefined : 'no_assistant_turn')
      expect(endOfTurnIsTrained(tokenizer, row), each.id).toBe(wanted.includes(1))
    }
  })
})

async function maskOfCodePointSpans(tokenizer: Tokenizer, text: string, spans: [number, number][]): Promise<number[]> {
  expect([...text].length).toBe(text.length)
  const { ids, offsets } = await tokenizer.encode(text)
  return Array.from(ids, (_, i) => {
    return spans.some(([from, to]) => offsets[2 * i]! < to && offsets[2 * i + 1]! > from) ? 1 : 0
  })
}

const user = (content: string): ChatMessage => ({ role: 'user', content })
const assistant = (content: string): ChatMessage => ({ role: 'assistant', content })

/** The text of the trained tokens, runs separated by `|`. */
async function trainedText(tokenizer: Tokenizer, row: { ids: Int32Array; mask: Uint8Array }): Promise<string> {
  const runs: number[][] = []
  for (let i = 0; i < row.ids.length; i++) {
    if (row.mask[i] === 0) continue
    if (i === 0 || row.mask[i - 1] === 0) runs.push([])
    runs.at(-1)!.push(row.ids[i]!)
  }
  return (await Promise.all(runs.map((ids) => tokenizer.decode(ids)))).join('|')
}

describe('what is trained', () => {
  const jinjaOnly = (source: string) => `${source}{# not built in #}`

  it.each(['built in', 'interpreted'])(
    'tulu, %s: every end of turn, no header, no line break after it',
    async (kind) => {
      const tokenizer = await Tokenizer.load(tokenizerFolder('tulu'))
      const builtIn = new ChatTemplate('tulu', { tokens: tokenizer })
      const template =
        kind === 'built in' ? builtIn : new ChatTemplate(jinjaOnly(builtIn.source), { tokens: tokenizer })
      expect(template.givesSpans).toBe(kind === 'built in')
      const eos = '<|end_of_text|>'
      const table: [ChatMessage[], string][] = [
        [[user('Hi'), assistant('Hello'), user('Bye'), assistant('See you')], `Hello${eos}|See you${eos}`],
        [[{ role: 'system', content: 'Be kind.' }, user('Hi'), assistant('Yes')], `Yes${eos}`],
        [[assistant('First'), user('Hi'), assistant('Two')], `First${eos}|Two${eos}`],
        [[user('Hi'), assistant('Yes'), user('And?')], `Yes${eos}`],
        [[user('Hi'), assistant('')], eos],
      ]
      for (const [messages, wanted] of table) {
        const row = await encodeChat(tokenizer, template, messages)
        expect(await trainedText(tokenizer, row)).toBe(wanted)
        expect(endOfTurnIsTrained(tokenizer, row)).toBe(true)
      }
      const last = await encodeChat(tokenizer, template, table[0]![0], { trainOn: 'last' })
      expect(await trainedText(tokenizer, last)).toBe(`See you${eos}`)
    },
  )

  it('reports rows that train nothing, and cuts inside an assistant turn', async () => {
    const tokenizer = await Tokenizer.load(tokenizerFolder('tulu'))
    const template = new ChatTemplate('tulu', { tokens: tokenizer })
    const none = await encodeChat(tokenizer, template, [user('Hi')])
    expect([none.trainedTokens, none.untrainedReason]).toEqual([0, 'no_assistant_turn'])
    const whole = await encodeChat(tokenizer, template, [user('Hi'), assistant('one two three four')])
    const first = whole.mask.indexOf(1)
    const cut = await encodeChat(tokenizer, template, [user('Hi'), assistant('one two three four')], {
      maxTokens: first + 2,
    })
    expect(Array.from(cut.ids)).toEqual(Array.from(whole.ids.slice(0, first + 2)))
    expect([cut.trainedTokens, cut.truncated, cut.untrainedReason]).toEqual([2, true, undefined])
    expect(endOfTurnIsTrained(tokenizer, cut)).toBe(false)
    const before = await encodeChat(tokenizer, template, [user('Hi'), assistant('one')], { maxTokens: first })
    expect([before.trainedTokens, before.untrainedReason]).toEqual([0, 'cut_off'])
  })

  it('finds a template that never trains its end of turn', async () => {
    const tokenizer = await Tokenizer.load(tokenizerFolder('chatml'))
    const source =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}" +
      '{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}'
    const row = await encodeChat(tokenizer, new ChatTemplate(source), [user('Hi'), assistant('Yes')])
    expect(await trainedText(tokenizer, row)).toBe('Yes')
    expect(endOfTurnIsTrained(tokenizer, row)).toBe(false)
  })

  it('falls back to token counts when earlier turns are rendered differently, and gives up when they disagree', async () => {
    const tokenizer = await Tokenizer.load(tokenizerFolder('chatml'))
    // Like templates that drop the reasoning of earlier turns: a turn is longer while it is the last one.
    const dropping =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}(thought){% endif %}" +
      '{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
    const twoTurns = [user('Hi'), assistant('Yes'), user('Why'), assistant('So')]
    const unknown = await encodeChat(tokenizer, new ChatTemplate(dropping), twoTurns)
    expect([unknown.trainedTokens, unknown.untrainedReason]).toEqual([0, 'spans_unknown'])
    // The prefix renders differ from the whole in the header only, by as many tokens.
    const counting =
      "{{ '<|im_start|>' if messages | length == 4 else '<|im_end|>' }}{% for m in messages %}<|im_start|>{{ m.role }}\n" +
      '{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
    const counted = await encodeChat(tokenizer, new ChatTemplate(counting), twoTurns)
    expect(await trainedText(tokenizer, counted)).toBe('Yes<|im_end|>|So<|im_end|>')
  })

  it('encodes batches of mixed rows in order', async () => {
    const tokenizer = await Tokenizer.load(tokenizerFolder('spm'))
    const template = ChatTemplate.of(tokenizer)
    const conversations = Array.from({ length: 1100 }, (_, i) => [user(`question ${i}`), assistant(`answer ${i}`)])
    const rows = await encodeChatBatch(tokenizer, template, conversations)
    expect(rows).toHaveLength(1100)
    for (const i of [0, 511, 512, 1099]) {
      expect(await trainedText(tokenizer, rows[i]!)).toBe(`answer ${i}</s>`)
    }
  })
})
