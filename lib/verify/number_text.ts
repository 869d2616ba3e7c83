// Numbers as people write them inside prose, read to exact values. Decimals are compared as canonical text, so that a
// number of a million digits costs linear time and never rounds to the right value.

/** The exact value of a written number: a canonical decimal, or a fraction whose parts are short integers. */
export type NumberValue =
  | { kind: 'decimal'; text: string }
  | { kind: 'fraction'; numerator: bigint; denominator: bigint }

export interface FoundNumber {
  begin: number
  end: number
  value: NumberValue
}

/** Digits of a part of a fraction: longer ones are read as decimals with something behind them. */
const MAX_FRACTION_DIGITS = 18
/** Groups of two digits between separators (1,00,00,000) that are looked through for the last group of three. */
const MAX_SHORT_GROUPS = 4

/** The last number in text[from, to), or undefined. Linear time. */
export function lastNumber(text: string, from = 0, to = text.length): FoundNumber | undefined {
  let last: Span | undefined
  for (let at = from; at < to; ) {
    const span = spanFrom(text, at, to)
    if (span === undefined) break
    last = span
    at = span.end
  }
  return last && { begin: last.begin, end: last.end, value: readValue(text, last) }
}

/** The first number in text[from, to), or undefined. Linear time. */
export function firstNumber(text: string, from = 0, to = text.length): FoundNumber | undefined {
  const span = spanFrom(text, from, to)
  return span && { begin: span.begin, end: span.end, value: readValue(text, span) }
}

/** Exact equality. */
export function sameNumber(a: NumberValue, b: NumberValue): boolean {
  if (a.kind === 'decimal' && b.kind === 'decimal') return a.text === b.text
  const [x, y] = [asFraction(a), asFraction(b)]
  return x !== undefined && y !== undefined && x.numerator * y.denominator === y.numerator * x.denominator
}

export function numberText(value: NumberValue): string {
  return value.kind === 'decimal' ? value.text : `${value.numerator}/${value.denominator}`
}

/** Where the parts of a number stand. */
interface Span {
  begin: number
  end: number
  negative: boolean
  integerEnd: number
  decimalsEnd: number
  /** Of `a/b` and `w a/b`, where b is not 0. */
  denominatorBegin?: number
  numeratorBegin?: number
}

function isDigit(text: string, at: number): boolean {
  const code = text.charCodeAt(at)
  return code >= 48 && code <= 57
}

function digitsEnd(text: string, at: number, to: number): number {
  while (at < to && isDigit(text, at)) at++
  return at
}

function spanFrom(text: string, from: number, to: number): Span | undefined {
  for (let at = from; at < to; at++) {
    if (isDigit(text, at) || (text[at] === '.' && at + 1 < to && isDigit(text, at + 1))) return spanAt(text, at, to)
  }
  return undefined
}

function spanAt(text: string, at: number, to: number): Span {
  const integerEnd = groupedEnd(text, at, to)
  const hasDecimals = text[integerEnd] === '.' && integerEnd + 1 < to && isDigit(text, integerEnd + 1)
  const decimalsEnd = hasDecimals ? digitsEnd(text, integerEnd + 1, to) : integerEnd
  const { begin, negative } = signBefore(text, at)
  const span: Span = { begin, end: decimalsEnd, negative, integerEnd, decimalsEnd }
  if (hasDecimals) return span
  const denominator = denominatorAfter(text, at, { integerEnd, to })
  if (denominator !== undefined) return { ...span, ...denominator }
  const isMixed = text[integerEnd] === ' ' && integerEnd + 1 < to && isDigit(text, integerEnd + 1)
  if (!isMixed || integerEnd - at > MAX_FRACTION_DIGITS) return span
  const numeratorBegin = integerEnd + 1
  const numeratorEnd = digitsEnd(text, numeratorBegin, Math.min(to, numeratorBegin + MAX_FRACTION_DIGITS))
  const part = denominatorAfter(text, numeratorBegin, { integerEnd: numeratorEnd, to })
  if (part === undefined) return span
  const isProper =
    BigInt(text.slice(numeratorBegin, numeratorEnd)) < BigInt(text.slice(part.denominatorBegin, part.end))
  return isProper ? { ...span, ...part, numeratorBegin } : span
}

/** The end of digits with separators of thousands: `,` or `{,}` before groups of three (or two, then three). */
function groupedEnd(text: string, at: number, to: number): number {
  let end = digitsEnd(text, at, Math.min(to, at + 4))
  if (end - at > 3 || end === at) return digitsEnd(text, end, to)
  let shortGroups = 0
  for (let next = end; shortGroups <= MAX_SHORT_GROUPS; ) {
    const separator = text[next] === ',' ? 1 : text.startsWith('{,}', next) ? 3 : 0
    if (separator === 0) break
    const begin = next + separator
    next = digitsEnd(text, begin, Math.min(to, begin + 4))
    if (next - begin === 3) end = next
    else if (next - begin === 2) shortGroups++
    else break
  }
  return end
}

/** The `/b` of a fraction at `at`: not of a date (1/2/2020), a decimal (1/2.5) or zero. */
function denominatorAfter(
  text: string,
  at: number,
  { integerEnd, to }: { integerEnd: number; to: number },
): { denominatorBegin: number; end: number } | undefined {
  if (text[integerEnd] !== '/' || integerEnd - at > MAX_FRACTION_DIGITS) return undefined
  if (text[at - 1] === '/' && isDigit(text, at - 2)) return undefined
  const begin = integerEnd + 1
  const end = digitsEnd(text, begin, Math.min(to, begin + MAX_FRACTION_DIGITS + 1))
  const isLong = end - begin > MAX_FRACTION_DIGITS
  const goesOn = /^[/.,]\d/.test(text.slice(end, end + 2))
  if (end === begin || isLong || goesOn || !/[1-9]/.test(text.slice(begin, end))) return undefined
  return { denominatorBegin: begin, end }
}

/** A minus sign right before the number or its currency, unless something stands before it that it subtracts from. */
function signBefore(text: string, at: number): { begin: number; negative: boolean } {
  let begin = at
  if ('$£€¥'.includes(text[begin - 1] ?? ' ')) begin--
  if (begin < at && text[begin - 1] === '\\') begin--
  const sign = text[begin - 1]
  if (sign === '+') return { begin: begin - 1, negative: false }
  if (sign !== '-' && sign !== '\u2212') return { begin, negative: false }
  const subtracts = /[\p{L}\p{N})\]}%\-\u2212]/u.test(text[begin - 2] ?? ' ')
  return subtracts ? { begin, negative: false } : { begin: begin - 1, negative: true }
}

function readValue(text: string, span: Span): NumberValue {
  const first = digitsBegin(text, span)
  if (span.denominatorBegin === undefined) {
    const integer = text.slice(first, span.integerEnd)
    return decimalValue(plainDigits(integer), text.slice(span.integerEnd + 1, span.decimalsEnd), span.negative)
  }
  const denominator = BigInt(text.slice(span.denominatorBegin, span.end))
  const whole = plainDigits(text.slice(first, span.integerEnd))
  const numerator =
    span.numeratorBegin === undefined
      ? BigInt(whole)
      : BigInt(whole) * denominator + BigInt(text.slice(span.numeratorBegin, span.denominatorBegin - 1))
  return { kind: 'fraction', numerator: span.negative ? -numerator : numerator, denominator }
}

function digitsBegin(text: string, { begin, integerEnd }: Span): number {
  let at = begin
  while (at < integerEnd && !isDigit(text, at)) at++
  return at
}

function plainDigits(grouped: string): string {
  return grouped.includes(',') ? grouped.replace(/[^0-9]/g, '') : grouped
}

function decimalValue(integer: string, decimals: string, negative: boolean): NumberValue {
  let begin = 0
  while (begin < integer.length - 1 && integer[begin] === '0') begin++
  let end = decimals.length
  while (end > 0 && decimals[end - 1] === '0') end--
  const magnitude = `${integer.slice(begin) || '0'}${end > 0 ? '.' : ''}${decimals.slice(0, end)}`
  return { kind: 'decimal', text: negative && magnitude !== '0' ? `-${magnitude}` : magnitude }
}

function asFraction(value: NumberValue): { numerator: bigint; denominator: bigint } | undefined {
  if (value.kind === 'fraction') return value
  const [integer = '0', decimals = ''] = value.text.split('.')
  if (integer.length + decimals.length > 2 * MAX_FRACTION_DIGITS + 1) return undefined
  return { numerator: BigInt(integer + decimals), denominator: 10n ** BigInt(decimals.length) }
}
