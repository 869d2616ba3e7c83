// What is known of a response while it is judged: its eight readings differ in a line or two and in asterisks, so that
// six of them are parts of the other two. For one verdict only, as it keeps the texts.

import type { PunktText } from './punkt_sentences.js'
import { isSpaceAt } from './python_text.js'
import type { SplitText } from './sentence_split.js'

export class ReadingMemo {
  /** Texts of which the sentences are known, by either way of finding them. */
  readonly punktTexts: PunktText[] = []
  readonly splitTexts: SplitText[] = []
  /** The tokens of short sentences. */
  readonly tokens = new Map<string, readonly string[]>()
  /** The language of the beginning of a text. */
  readonly languages = new Map<string, string | undefined>()
}

/** Whole lines of a known text, maybe without white space around them. */
export interface KnownPart<T> {
  whole: T
  begin: number
  end: number
}

/** A known text that `text` is a part of: between blanks or line breaks, from the first line on or from the second. */
export function knownPart<T extends { text: string }>(texts: readonly T[], text: string): KnownPart<T> | undefined {
  for (const whole of texts) {
    const line = whole.text.indexOf('\n') + 1
    for (const begin of [0, line, spaceEnd(whole.text, 0), spaceEnd(whole.text, line)]) {
      const end = begin + text.length
      if (!isBorder(whole.text[begin - 1]) || !isBorder(whole.text[end])) continue
      if (whole.text.startsWith(text, begin)) return { whole, begin, end }
    }
  }
  return undefined
}

function isBorder(character: string | undefined): boolean {
  return character === undefined || character === ' ' || character === '\n'
}

function spaceEnd(text: string, from: number): number {
  let at = from
  while (isSpaceAt(text, at)) at++
  return at
}

/** How many of a rising list of numbers are at most `limit`. */
export function countUpTo(list: readonly number[], limit: number): number {
  let [low, high] = [0, list.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if (list[middle]! <= limit) low = middle + 1
    else high = middle
  }
  return low
}
