// HTML that cannot be injected into: everything put into the template literal is escaped unless it is Html already.

export class Html {
  constructor(readonly text: string) {}
}

type Part = Html | string | number | readonly Part[]

/** Builds HTML; strings and numbers are escaped, lists are joined. */
export function html(literal: TemplateStringsArray, ...parts: readonly Part[]): Html {
  return new Html(literal.reduce((text, piece, i) => text + partText(parts[i - 1]!) + piece))
}

function partText(part: Part): string {
  if (part instanceof Html) return part.text
  if (typeof part === 'string') return escapeText(part)
  if (typeof part === 'number') return String(part)
  return part.map(partText).join('')
}

const escapes: { [character: string]: string } = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }

function escapeText(text: string): string {
  return text.replace(/[&<>"']/g, (character) => escapes[character]!)
}
