// Keywords of instruction data. The published checkers use a keyword as a regular expression as it stands, so "a.c"
// finds "abc". That is kept for patterns that take linear time (no repetition); any other keyword is looked for as
// the text that it is, because a pattern such as (a+)+ could stop a run.

import { isWordAt, isWordBefore } from './python_text.js'

const REPETITION = /[*+{]/
/** What makes a keyword more than text: without one of these a search for the text itself is all there is to do. */
const SPECIAL = /[\\^$.|?*+()[\]{}]/
const ESCAPABLE = /[\\^$.|?*+()[\]{}/-]/g

const cache = new Map<string, RegExp>()
const MAX_CACHED = 1000

/** The keyword as a pattern that ignores case. */
function patternOf(keyword: string): RegExp {
  const known = cache.get(keyword)
  if (known !== undefined) return known
  const pattern = compile(keyword)
  if (cache.size >= MAX_CACHED) cache.clear()
  cache.set(keyword, pattern)
  return pattern
}

function compile(keyword: string): RegExp {
  if (SPECIAL.test(keyword) && !REPETITION.test(keyword)) {
    try {
      return new RegExp(keyword.replace(/\\w/g, '[\\p{L}\\p{N}_]').replace(/\\d/g, '\\p{Nd}'), 'giu')
    } catch {
      // Not a pattern at all: the text is meant.
    }
  }
  return new RegExp(keyword.replace(ESCAPABLE, '\\$&'), 'giu')
}

/** Number of places where the keyword is found, in any case, none overlapping. */
export function countMatches(text: string, keyword: string): number {
  const pattern = patternOf(keyword)
  let count = 0
  // A pattern may match nothing at all, behind which only matchAll goes on; text does not, and is found faster.
  if (SPECIAL.test(keyword) || keyword === '') for (const _ of text.matchAll(pattern)) count++
  else while (pattern.test(text)) count++
  return count
}

/** Whether the keyword is found anywhere, in any case. */
export function hasMatch(text: string, keyword: string): boolean {
  return text.search(patternOf(keyword)) >= 0
}

/** Whether the keyword is found between two word boundaries (`\b`), in any case. */
export function hasWholeMatch(text: string, keyword: string): boolean {
  for (const match of text.matchAll(patternOf(keyword))) {
    const end = match.index + match[0].length
    if (isBoundary(text, match.index) && isBoundary(text, end)) return true
  }
  return false
}

function isBoundary(text: string, at: number): boolean {
  return isWordBefore(text, at) !== isWordAt(text, at)
}
