// Text operations with the meaning that they have in Python, where the published checkers were written: what counts as
// white space, as a word character and as upper case differs a little from JavaScript. All linear.

const SPACE = '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000'
/** For building patterns: one character of white space. */
export const SPACE_CLASS = `[${SPACE}]`
const WORD = /[\p{L}\p{N}_]/u

/** `str.isspace` of one character. */
export function isSpace(character: string | undefined): boolean {
  return character !== undefined && isSpaceCode(character.charCodeAt(0))
}

/** `str.isspace` of the character at a place; false behind the end. */
export function isSpaceAt(text: string, at: number): boolean {
  return isSpaceCode(text.charCodeAt(at))
}

/** `str.isspace` of a UTF-16 unit. NaN, which stands for no character, is no white space. */
export function isSpaceCode(code: number): boolean {
  if (code < 0x80) return code === 32 || (code >= 9 && code <= 13) || (code >= 28 && code <= 31)
  if (code < 0x2000) return code === 0x85 || code === 0xa0 || code === 0x1680
  return code <= 0x200a || code === 0x2028 || code === 0x2029 || code === 0x202f || code === 0x205f || code === 0x3000
}

/** `str.strip()`. */
export function strip(text: string): string {
  let begin = 0
  let end = text.length
  while (begin < end && isSpaceAt(text, begin)) begin++
  while (end > begin && isSpaceAt(text, end - 1)) end--
  return text.slice(begin, end)
}

/** `str.strip(characters)`. */
export function stripOf(text: string, characters: string): string {
  let begin = 0
  let end = text.length
  while (begin < end && characters.includes(text[begin]!)) begin++
  while (end > begin && characters.includes(text[end - 1]!)) end--
  return text.slice(begin, end)
}

/** `str.split()`: the words between white space. */
export function splitWords(text: string): string[] {
  const words: string[] = []
  for (let at = 0; at < text.length; at++) {
    if (isSpaceAt(text, at)) continue
    const begin = at
    while (at < text.length && !isSpaceAt(text, at)) at++
    words.push(text.slice(begin, at))
  }
  return words
}

/** `re.findall(r'\w+', text)`. */
export function wordTokens(text: string): string[] {
  const words: string[] = []
  eachWord(text, (begin, end) => words.push(text.slice(begin, end)))
  return words
}

/** The number of `wordTokens`. */
export function countWords(text: string): number {
  let count = 0
  eachWord(text, () => count++)
  return count
}

function eachWord(text: string, found: (begin: number, end: number) => void): void {
  let begin = -1
  for (let at = 0; at < text.length; ) {
    const width = wordWidth(text, at)
    if (width > 0 && begin < 0) begin = at
    if (width === 0 && begin >= 0) {
      found(begin, at)
      begin = -1
    }
    at += width || 1
  }
  if (begin >= 0) found(begin, text.length)
}

/** Of each UTF-16 unit that was asked for: 1 for a word character, 2 for another one, 3 for half of a pair. */
const kinds = new Uint8Array(0x10000)

/** UTF-16 units of the word character (`\w`) at a place, 0 where there is none. */
export function wordWidth(text: string, at: number): number {
  if (at >= text.length) return 0
  const code = text.charCodeAt(at)
  if (kinds[code] === 0) {
    const isHalf = code >= 0xd800 && code <= 0xdfff
    kinds[code] = isHalf ? 3 : WORD.test(text[at]!) ? 1 : 2
  }
  if (kinds[code] !== 3) return kinds[code] === 1 ? 1 : 0
  const pair = String.fromCodePoint(text.codePointAt(at)!)
  return pair.length === 2 && WORD.test(pair) ? 2 : 0
}

const DIGIT = /^\p{Nd}/u

/** Whether the character at a place is a decimal digit (`\d`); false behind the end. */
export function isDigitAt(text: string, at: number): boolean {
  const code = text.charCodeAt(at)
  if (code < 128) return code >= 48 && code <= 57
  return at < text.length && DIGIT.test(String.fromCodePoint(text.codePointAt(at)!))
}

function isAsciiWord(code: number): boolean {
  return (code >= 97 && code <= 122) || (code >= 65 && code <= 90) || (code >= 48 && code <= 57) || code === 95
}

/** Whether `\w` matches the character that ends at `at` (before) or begins there. */
export function isWordBefore(text: string, at: number): boolean {
  if (at <= 0) return false
  const pair = String.fromCodePoint(text.codePointAt(Math.max(0, at - 2))!)
  return isWord(at > 1 && pair.length === 2 ? pair : text[at - 1]!)
}

export function isWordAt(text: string, at: number): boolean {
  if (at >= text.length) return false
  return isWord(String.fromCodePoint(text.codePointAt(at)!))
}

function isWord(character: string): boolean {
  const code = character.charCodeAt(0)
  return code < 0x80 ? isAsciiWord(code) : WORD.test(character)
}

/** `str.isupper()` of what lies between two places: some character has a case, and every one that has is upper. */
export function isUpper(text: string, begin = 0, end = text.length): boolean {
  let isCased = false
  for (let at = begin; at < end; at++) {
    const code = text.charCodeAt(at)
    if (code >= 97 && code <= 122) return false
    if (code > 127) return isUpperByProperties(text.slice(begin, end))
    if (code >= 65 && code <= 90) isCased = true
  }
  return isCased
}

function isUpperByProperties(text: string): boolean {
  return /\p{Uppercase}/u.test(text) && !/[\p{Lowercase}\p{Lt}]/u.test(text)
}

/** `str.islower()`. */
export function isLower(text: string): boolean {
  return /\p{Lowercase}/u.test(text) && !/[\p{Uppercase}\p{Lt}]/u.test(text)
}

/** Number of occurrences of `part`, none overlapping: `str.count`. */
export function countOf(text: string, part: string): number {
  let count = 0
  for (let at = text.indexOf(part); at >= 0; at = text.indexOf(part, at + part.length)) count++
  return count
}

/** `round()` to an integer: halves go to the even neighbour. */
export function roundHalfEven(value: number): number {
  const floor = Math.floor(value)
  const rest = value - floor
  if (rest !== 0.5) return Math.round(value)
  return floor % 2 === 0 ? floor : floor + 1
}

/** Whether `json.loads` takes the text: JSON, and NaN and the infinities, which Python allows. */
export function isPythonJson(text: string): boolean {
  if (isJson(text)) return true
  if (!/NaN|Infinity/.test(text)) return false
  return isJson(withoutSpecialNumbers(text))
}

function isJson(text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

/** NaN, Infinity and -Infinity outside strings become 0. */
function withoutSpecialNumbers(text: string): string {
  // A string literal is taken whole; each alternative begins with another character.
  return text.replace(/"(?:[^"\\]|\\.)*"|-?Infinity|NaN/gs, (found) => (found.startsWith('"') ? found : '0'))
}
