// Which characters of a rendered conversation the assistant wrote, for templates that do not say: by rendering the
// conversation up to each turn (open-instruct's rule: from the generation prompt's end to the turn's end).
import type { ChatTemplate, RenderOptions } from './chat_template.js'
import type { CharSpan, ChatMessage } from './tulu_template.js'

/** The renderings around one assistant turn: up to and with its header, and up to its end. */
export interface TurnRenderings {
  before: string
  through: string
}

/** For each conversation the renderings around its assistant turns, or undefined where the template refuses one. */
export async function renderTurns(
  template: ChatTemplate,
  conversations: readonly (readonly ChatMessage[])[],
  options: RenderOptions = {},
): Promise<(TurnRenderings[] | undefined)[]> {
  const before: (readonly ChatMessage[])[] = []
  const through: (readonly ChatMessage[])[] = []
  const counts = conversations.map((messages) => {
    const turns = messages.flatMap(({ role }, i) => (role === 'assistant' ? [i] : []))
    for (const turn of turns) {
      before.push(messages.slice(0, turn))
      through.push(messages.slice(0, turn + 1))
    }
    return turns.length
  })
  const beforeTexts = await template.renderPossible(before, { ...options, addGenerationPrompt: true })
  const throughTexts = await template.renderPossible(through, options)
  let next = 0
  return counts.map((count) => {
    const turns: TurnRenderings[] = []
    for (const end = next + count; next < end; next++) {
      const texts = [beforeTexts[next], throughTexts[next]]
      if (texts[0] !== undefined && texts[1] !== undefined) turns.push({ before: texts[0], through: texts[1] })
    }
    return turns.length === count ? turns : undefined
  })
}

/** Spans of the assistant's turns in `text`, or undefined when a rendering is not a literal prefix of it. */
export function spansByPrefix(text: string, turns: readonly TurnRenderings[], header: string): CharSpan[] | undefined {
  const spans: CharSpan[] = []
  for (const { before, through } of turns) {
    if (!text.startsWith(before) || !text.startsWith(through) || through.length < before.length) return undefined
    // Templates that loop over messages print no generation prompt before the first one; then its header is skipped
    // here.
    const missing = header !== '' && !before.endsWith(header) && text.startsWith(header, before.length)
    spans.push([before.length + (missing ? header.length : 0), through.length])
  }
  return spans
}

/** What the template prints as the header of an assistant turn, found by asking for one after a user's message. */
export async function assistantHeader(template: ChatTemplate, options: RenderOptions = {}): Promise<string> {
  const probe = [{ role: 'user', content: 'x' }]
  const [without] = await template.renderPossible([probe], options)
  const [withHeader] = await template.renderPossible([probe], { ...options, addGenerationPrompt: true })
  if (without === undefined || withHeader === undefined || !withHeader.startsWith(without)) return ''
  return withHeader.slice(without.length)
}
