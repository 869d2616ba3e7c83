// Cuts answers, in LaTeX or plain, into tokens: spacing, styles, currency and degree signs are gone, Unicode signs have
// become commands. Only for short texts; all patterns are bounded or single runs.

export type Token =
  | { kind: 'number'; text: string }
  | { kind: 'command'; name: string }
  | { kind: 'letter'; text: string }
  /** A run of at least two letters that is not one of the known names. */
  | { kind: 'word'; text: string }
  /** What `\text{...}` and its like hold. */
  | { kind: 'text'; text: string }
  | { kind: 'sign'; text: string }

/** Whether 1,234 is one number or two. */
export interface Reading {
  groupsThousands: boolean
}

const UNICODE: [from: RegExp, to: string][] = [
  [/[\u2212\u2013\u2010\u2011]/g, '-'],
  [/\u00d7/g, '\\times '],
  [/[\u00b7\u22c5\u2219]/g, '\\cdot '],
  [/\u00f7/g, '\\div '],
  [/\u03c0/g, '\\pi '],
  [/\u221a/g, '\\sqrt '],
  [/\u221e/g, '\\infty '],
  [/\u2264/g, '\\le '],
  [/\u2265/g, '\\ge '],
  [/\u2260/g, '\\ne '],
  [/\u222a/g, '\\cup '],
  [/\u2229/g, '\\cap '],
  [/\u2208/g, '\\in '],
  [/\u00b1/g, '\\pm '],
  [/!=|\\not\s?=/g, '\\ne '],
  [/\u00b2/g, '^2'],
  [/\u00b3/g, '^3'],
  [/\u00bd/g, '\\frac{1}{2}'],
  [/\u00bc/g, '\\frac{1}{4}'],
  [/\u00be/g, '\\frac{3}{4}'],
  [/[\u00b0\u20ac\u00a3]|\\?\$/g, ''],
  [/[\u00a0\u2009\u202f\u200b]/g, ' '],
]

const CLEANING: [from: RegExp, to: string][] = [
  [/\\[dtc]frac(?![a-zA-Z])/g, '\\frac'],
  [/\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?/g, ''],
  [/\\(?:displaystyle|textstyle|limits|quad|qquad|hspace\{[^{}]{0,20}\})(?![a-zA-Z])/g, ' '],
  [/\^\s?\{?\s?\\(?:circ|degree)\s?\}?|\\degree(?![a-zA-Z])/g, ''],
  // 10,000 written so that LaTeX sets it well.
  [/(\d)(?:\{,\}|,?\\!|\\[,;:])\s{0,2}(?=\d{3}(?!\d))/g, '$1'],
  [/(?<!\\)\\!/g, ''],
  [/(?<!\\)\\[,;:> ()[\]]|~/g, ' '],
  [/\\lvert|\\rvert|\\vert|\\mid(?![a-zA-Z])/g, '|'],
  [/\\(?:lbrace|rbrace|lbrack|rbrack)(?![a-zA-Z])/g, ' '],
]

/** Function and constant names that are understood without a backslash, too. */
const NAMES = new Set(
  'sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh ln log exp sqrt pi infty gcd lcm max min'.split(
    ' ',
  ),
)
const TEXT_COMMAND =
  /^\\(?:text|textnormal|mbox|textrm|textbf|textit|textsf|mathrm|mathbf|mathit|mathsf|mathbb|mathcal|operatorname)\*?\s?\{([^{}]*)\}/

/** The tokens, or undefined for a text with more than `most` of them. */
export function latexTokens(answer: string, { groupsThousands }: Reading, most: number): Token[] | undefined {
  const text = cleaned(answer)
  const tokens: Token[] = []
  let depth = 0
  for (let at = 0; at < text.length; ) {
    if (/\s/.test(text[at]!)) {
      at++
      continue
    }
    const { token, length } = tokenAt(text, at, groupsThousands && depth === 0)
    if (token.kind === 'sign' && '([{'.includes(token.text)) depth++
    else if (token.kind === 'sign' && ')]}'.includes(token.text)) depth--
    else if (token.kind === 'command' && token.name === '{') depth++
    else if (token.kind === 'command' && token.name === '}') depth--
    tokens.push(token)
    if (tokens.length > most) return undefined
    at += length
  }
  return tokens
}

function cleaned(answer: string): string {
  let text = answer
  for (const [from, to] of UNICODE) text = text.replace(from, to)
  for (const [from, to] of CLEANING) text = text.replace(from, to)
  return text
}

function tokenAt(text: string, at: number, groups: boolean): { token: Token; length: number } {
  const number = numberAt(text, at, groups)
  if (number !== '') return { token: { kind: 'number', text: number.replaceAll(',', '') }, length: number.length }
  if (text[at] === '\\') return commandAt(text, at)
  const [letters = ''] = /^[a-zA-Z]*/.exec(text.slice(at, at + 40)) ?? []
  if (letters.length > 1) {
    const token: Token = NAMES.has(letters) ? { kind: 'command', name: letters } : { kind: 'word', text: letters }
    return { token, length: letters.length }
  }
  if (letters !== '') return { token: { kind: 'letter', text: letters }, length: 1 }
  const character = String.fromCodePoint(text.codePointAt(at)!)
  return { token: { kind: 'sign', text: character }, length: character.length }
}

function numberAt(text: string, at: number, groups: boolean): string {
  const rest = text.slice(at, at + 1100)
  const pattern = groups ? /^(?:\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)/ : /^(?:\d+(?:\.\d*)?|\.\d+)/
  return pattern.exec(rest)?.[0] ?? ''
}

function commandAt(text: string, at: number): { token: Token; length: number } {
  const words = TEXT_COMMAND.exec(text.slice(at, at + 200))
  if (words !== null) return { token: { kind: 'text', text: words[1]! }, length: words[0].length }
  const [name = ''] = /^[a-zA-Z]+/.exec(text.slice(at + 1, at + 40)) ?? []
  if (name !== '') return { token: { kind: 'command', name }, length: name.length + 1 }
  const character = text[at + 1] ?? ''
  return { token: { kind: 'command', name: character }, length: 1 + character.length }
}
