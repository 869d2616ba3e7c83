// A row on the screen: what is trained in green, the rest dim; without colour what is trained stands between ⟦ and ⟧.
// A character that spans several tokens is shown with the last of them.
import { CaravanError } from '../base/errors.js'
import type { Tokenizer } from '../text/tokenizer.js'
import { grouped } from './format.js'
import type { InspectedRow } from './inspect.js'
import { printable, type Terminal } from './terminal.js'

/** The text of each token, such that they give the decoded text when joined. Ids that the tokenizer lacks are shown. */
export async function tokenTexts(tokenizer: Tokenizer, ids: Int32Array): Promise<string[]> {
  const outside = ids.find((id) => id >= tokenizer.vocabularySize)
  if (outside !== undefined) {
    throw new CaravanError(
      'ERR_DATA',
      `token id ${outside} is outside the tokenizer's vocabulary of ${tokenizer.vocabularySize}`,
      {
        hint: 'the ids were made with another tokenizer',
      },
    )
  }
  // The text that a token adds is the difference between two decoded prefixes; a window keeps that linear. U+FFFD at
  // the end is a character whose last bytes are still to come: it is shown with the token that completes it.
  const texts: string[] = []
  let start = 0
  let before = ''
  for (let end = 1; end <= ids.length; end++) {
    const now = await tokenizer.decode(ids.subarray(start, end))
    const complete = end === ids.length ? now : now.replace(/\ufffd+$/, '')
    const grew = complete.startsWith(before)
    texts.push(grew ? complete.slice(before.length) : '')
    if (grew) before = complete
    if (end - start >= WINDOW && complete === now) {
      start = end - OVERLAP
      before = await tokenizer.decode(ids.subarray(start, end))
    }
  }
  return texts
}

const WINDOW = 48
const OVERLAP = 8

/** Head line and text of a row. */
export function rowLines(row: InspectedRow, texts: readonly string[], terminal: Terminal): string[] {
  const { bold, dim, yellow } = terminal.color
  const trained = row.mask.reduce((sum, flag) => sum + flag, 0)
  const marks = [
    row.truncated ? yellow('cut off') : '',
    row.untrainedReason ? yellow(`not trained: ${row.untrainedReason}`) : '',
    row.endsTurn === false && !row.untrainedReason ? yellow('its end of turn is not trained') : '',
  ].filter((mark) => mark !== '')
  const counts = dim(`${grouped(row.ids.length)} tokens, ${grouped(trained)} trained`)
  const head = [bold(`${row.file}:${row.line}`), counts, ...marks].join('  ')
  return [head, ...maskedText(row, texts, terminal).split('\n'), '']
}

function maskedText({ mask }: InspectedRow, texts: readonly string[], terminal: Terminal): string {
  const { green, dim } = terminal.color
  let result = ''
  for (let start = 0; start < texts.length; ) {
    let end = start
    while (end < texts.length && mask[end] === mask[start]) end++
    const text = printable(texts.slice(start, end).join(''))
    if (terminal.colored) result += linewise(text, mask[start] === 1 ? green : dim)
    else result += mask[start] === 1 ? `⟦${text}⟧` : text
    start = end
  }
  return result
}

/** Colours each line by itself, so that a pager or a cut line does not lose the colour. */
function linewise(text: string, color: (text: string) => string): string {
  return text
    .split('\n')
    .map((line) => (line === '' ? line : color(line)))
    .join('\n')
}
