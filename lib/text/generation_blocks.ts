// `{% generation %} ... {% endgeneration %}` marks what the assistant writes. The Jinja library drops these tags before
// it parses; here they become expressions that print a mark, so that a rendering tells where the blocks begin and end.
import type { CharSpan } from './tulu_template.js'

/** Marks that stand in a rendering for the start and end of a block. */
export interface BlockMarks {
  start: string
  end: string
}

/** Finds the tags of a template: `{% ... %}`, skipping comments and raw blocks. */
const TAG =
  /\{#[\s\S]*?#\}|\{%[-+]?\s*raw\s*[-+]?%\}[\s\S]*?\{%[-+]?\s*endraw\s*[-+]?%\}|\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}/g

/** True when the template has a generation block. */
export function hasGenerationBlocks(source: string): boolean {
  return source.includes('generation') && replaceTags(source, () => '') !== source
}

/** The template with an expression that prints a mark in place of each tag, whitespace around it treated as before. */
export function markGenerationBlocks(source: string, marks: BlockMarks): string {
  return replaceTags(source, (isEnd) => `'${isEnd ? marks.end : marks.start}'`)
}

function replaceTags(source: string, expression: (isEnd: boolean) => string): string {
  let result = ''
  let copied = 0
  for (const match of source.matchAll(TAG)) {
    const [tag, before, end, after] = match
    if (before === undefined) continue
    let text = source.slice(copied, match.index)
    // Statements lose the indent before them and the line end after them (lstrip_blocks, trim_blocks); expressions do
    // not, so that has to be done here.
    if (before === '') text = text.replace(/(^|\n)[ \t]+$/, '$1')
    copied = match.index + tag.length
    if (after === '' && source[copied] === '\n') copied++
    const printed = expression(end !== undefined)
    result += `${text}{{${before === '-' ? '-' : ''} ${printed} ${after === '-' ? '-' : ''}}}`
  }
  return result + source.slice(copied)
}

/** Two marks that occur in none of `texts`. */
export function unusedMarks(texts: readonly string[]): BlockMarks {
  for (let nonce = 0; ; nonce++) {
    const marks = { start: `\ufdd0${nonce}\ufdd1`, end: `\ufdd2${nonce}\ufdd3` }
    if (!texts.some((text) => text.includes(marks.start) || text.includes(marks.end))) return marks
  }
}

/** A rendering without its marks, and the spans between them; spans are undefined when the marks do not pair up. */
export function takeMarks(rendered: string, marks: BlockMarks): { text: string; spans: CharSpan[] | undefined } {
  let text = ''
  let spans: CharSpan[] | undefined = []
  let open = -1
  let copied = 0
  const pattern = new RegExp(`${marks.start}|${marks.end}`, 'g')
  for (const match of rendered.matchAll(pattern)) {
    text += rendered.slice(copied, match.index)
    copied = match.index + match[0].length
    const isStart = match[0] === marks.start
    if (isStart === open >= 0) spans = undefined
    if (!isStart) spans?.push([open, text.length])
    open = isStart ? text.length : -1
  }
  return { text: text + rendered.slice(copied), spans: open >= 0 ? undefined : spans }
}
