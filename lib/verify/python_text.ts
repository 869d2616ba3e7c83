// Text operations with the meaning that they have in Python, where the published checkers were written: what counts as
// white space, as a word character and as upper case differs a little from JavaScript. All linear.

const SPACE = '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000'
/** For building patterns: one character of white space. */
export const SPACE_CLASS = `[${SPACE}]`
const SPACES = new RegExp(`[${SPACE}]+`, 'u')
const ONE_SPACE = new RegExp(`^[${SPACE}]$`, 'u')
const WORD = /[\p{L}\p{N}_]/u
const WORDS = /[\p{L}\p{N}_]+/gu

/** `str.isspace` of one character. */
export function isSpace(character: string | undefined): boolean {
  if (character === undefined || character === '') return false
  const code = character.charCodeAt(0)
  if (code < 0x80) return code === 32 || (code >= 9 && code <= 13) || (code >= 28 && code <= 31)
  return ONE_SPACE.test(character)
}

/** `str.strip()`. */
export function strip(text: string): string {
  let begin = 0
  let end = text.length
  while (begin < end && isSpace(text[begin])) begin++
  while (end > begin && isSpace(text[end - 1])) end--
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
  const stripped = strip(text)
  return stripped === '' ? [] : stripped.split(SPACES)
}

/** `re.findall(r'\w+', text)`. */
export function wordTokens(text: string): string[] {
  return text.match(WORDS) ?? []
}

/** Whether `\w` matches the character that ends at `at` (before) or begins there. */
export function isWordBefore(text: string, at: number): boolean {
  if (at <= 0) return false
  const unit = text.charCodeAt(at - 1)
  const isLow = unit >= 0xdc00 && unit <= 0xdfff
  return isWord(isLow ? text.slice(Math.max(0, at - 2), at) : text[at - 1]!)
}

export function isWordAt(text: string, at: number): boolean {
  if (at >= text.length) return false
  return isWord(String.fromCodePoint(text.codePointAt(at)!))
}

function isWord(character: string): boolean {
  const code = character.charCodeAt(0)
  if (code < 0x80) {
    return (code >= 97 && code <= 122) || (code >= 65 && code <= 90) || (code >= 48 && code <= 57) || code === 95
  }
  return WORD.test(character)
}

/** `str.isupper()`: some character has a case, and every one that has is upper. */
export function isUpper(text: string): boolean {
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
