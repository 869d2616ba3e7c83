// Words and punctuation as NLTK's `word_tokenize` cuts them (its Penn Treebank rules), for instructions that count
// tokens. The rules are applied to one sentence at a time, as there.

import { isSpace, SPACE_CLASS, splitWords } from './python_text.js'
import { punktSentences } from './sentence_split.js'

const W = '[\\p{L}\\p{N}_]'
const NOT_W = `(?!${W})`

/** A pattern, what it becomes, and characters of which a text must have one for the pattern to be tried at all. */
type Rule = [pattern: RegExp, replacement: string, needs: string]

// Bounded patterns and runs of one character: linear time. The rule for the last full stop is not: it is a function.
const OPENING: Rule[] = [
  [/([\u00ab\u201c\u2018\u201e]|`+)/g, ' $1 ', '\u00ab\u201c\u2018\u201e`'],
  [/^"/g, '``', '"'],
  [/(``)/g, ' $1 ', '`'],
  [/([ ([{<])("|'{2})/g, '$1 `` ', '"\''],
  [new RegExp(`(')(?!re|ve|ll|m|t|s|d|n)(${W})${NOT_W}`, 'giu'), '$1 $2', "'"],
]
const PUNCTUATION: Rule[] = [
  [/([:,])([^\p{Nd}])/gu, ' $1 $2', ':,'],
  [/([:,])(?=\n?$)/g, ' $1 ', ':,'],
  [/\.{2,}/g, ' $& ', '.'],
  [/[;@#$%&]/g, ' $& ', ';@#$%&'],
]
const CLOSING: Rule[] = [
  [/[?!]/g, ' $& ', '?!'],
  [/([^'])' /g, "$1 ' ", "'"],
  [/[*]/g, ' $& ', '*'],
  [/[\][(){}<>]/g, ' $& ', '][(){}<>'],
  [/--/g, ' -- ', '-'],
]
const CLITICS: Rule[] = [
  [/([\u00bb\u201d\u2019])/g, ' $1 ', '\u00bb\u201d\u2019'],
  [/''/g, " '' ", "'"],
  [/"/g, " '' ", '"'],
  [/([^' ])('[sS]|'[mM]|'[dD]|') /g, '$1 $2 ', "'"],
  [/([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) /g, '$1 $2 ', "'"],
  [new RegExp(`(?<!${W})(d)('ye)${NOT_W}`, 'giu'), ' $1 $2 ', "'"],
  [new RegExp(`(?<!${W})(more)('n)${NOT_W}`, 'giu'), ' $1 $2 ', "'"],
  [new RegExp(` ('t)(is|was)${NOT_W}`, 'giu'), ' $1 $2 ', "'"],
]
const CONTRACTION = new RegExp(`(?<!${W})(?:(can)(not)|(gim|lem)(me)|(gon)(na)|(got)(ta))${NOT_W}`, 'giu')
const WANNA = new RegExp(`(?<!${W})(wan)(na)(?=${SPACE_CLASS})`, 'giu')

/** The tokens of a text. Linear time. */
export function tokenizeWords(text: string): string[] {
  // Texts that repeat one sentence without end are cut once.
  const known = new Map<string, string[]>()
  const tokens: string[] = []
  for (const sentence of punktSentences(text)) {
    const own = known.get(sentence) ?? sentenceTokens(sentence)
    known.set(sentence, own)
    for (const token of own) tokens.push(token)
  }
  return tokens
}

function sentenceTokens(sentence: string): string[] {
  let text = applied(sentence, OPENING)
  text = parted(text, ']})>"\'\u00bb\u201d\u2019 ')
  text = applied(text, PUNCTUATION)
  text = parted(text, ']})>"\'')
  text = applied(` ${applied(text, CLOSING)} `, CLITICS)
  return splitWords(text.replace(CONTRACTION, parts).replace(WANNA, parts))
}

/** The two parts of a contraction, apart. */
function parts(_: string, ...groups: (string | number | undefined)[]): string {
  const [first, second] = groups.slice(0, -2).filter((group) => group !== undefined)
  return ` ${first} ${second} `
}

function applied(text: string, rules: readonly Rule[]): string {
  let result = text
  for (const [pattern, replacement, needs] of rules) {
    if (hasAny(result, needs)) result = result.replace(pattern, replacement)
  }
  return result
}

function hasAny(text: string, characters: string): boolean {
  for (const character of characters) if (text.includes(character)) return true
  return false
}

/** Sets the full stop at the end of the text, before any `closers` and white space, apart from its word. */
function parted(text: string, closers: string): string {
  let end = text.length
  while (end > 0 && isSpace(text[end - 1])) end--
  let at = end
  while (at > 0 && closers.includes(text[at - 1]!)) at--
  if (text[at - 1] !== '.' || at < 2 || text[at - 2] === '.') return text
  return `${text.slice(0, at - 1)} . ${text.slice(at, end)} `
}
