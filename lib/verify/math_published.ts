// Rules for final answers that were published as code: the last box, the "Final Answer" line, Minerva's normalisation
// (Lewkowycz et al. 2022, appendix D) and the string equality of the MATH data set (Hendrycks et al. 2021). Their
// quirks are kept (removing "ft" breaks `\left`), for labels and figures were made with them.

const BOXED = '\\boxed'
const BOXED_BLANK = '\\boxed '
const FINAL_BEGIN = 'Final Answer: The final answer is'
const FINAL_END = '. I hope it is correct.'

/** The last `\boxed{...}` (or `\boxed x`, up to a dollar; or `\fbox{...}`) with its command, or undefined. Linear. */
export function lastBoxed(text: string): string | undefined {
  const blank = text.lastIndexOf(BOXED_BLANK)
  if (blank >= 0) {
    const dollar = text.indexOf('$', blank)
    return text.slice(blank, dollar < 0 ? undefined : dollar)
  }
  const begin = text.includes(BOXED) ? text.lastIndexOf(BOXED) : text.lastIndexOf('\\fbox')
  if (begin < 0) return undefined
  const end = braceEnd(text, begin)
  return end === undefined ? undefined : text.slice(begin, end)
}

/** The place after the brace that closes the first one from `begin` on. */
function braceEnd(text: string, begin: number): number | undefined {
  let depth = 0
  for (let at = begin; at < text.length; at++) {
    const character = text[at]
    if (character === '{') depth++
    else if (character === '}' && --depth === 0) return at + 1
  }
  return undefined
}

/** What is in a box, or undefined for something that is none (an `\fbox`). */
export function unboxed(box: string): string | undefined {
  if (box.includes(BOXED_BLANK)) return box.startsWith(BOXED_BLANK) ? box.slice(BOXED_BLANK.length) : undefined
  return box.startsWith(`${BOXED}{`) && box.endsWith('}') ? box.slice(BOXED.length + 1, -1) : undefined
}

/** The answer of the line "Final Answer: The final answer is ... . I hope it is correct.", or undefined. Linear. */
export function minervaAnswer(text: string): string | undefined {
  for (let begin = text.indexOf(FINAL_BEGIN); begin >= 0; ) {
    const from = begin + FINAL_BEGIN.length
    const newline = text.indexOf('\n', from)
    // The last line may break off after ". ": the published pattern sees the rest of the ending behind it.
    const line = newline < 0 ? `${text.slice(from)}${FINAL_END.slice(2)}` : text.slice(from, newline)
    // Any character may stand for the first full stop of the ending.
    const end = line.indexOf(FINAL_END.slice(1), 1)
    if (end > 0) return line.slice(0, end - 1).trim()
    if (newline < 0) break
    begin = text.indexOf(FINAL_BEGIN, newline)
  }
  return undefined
}

const SUBSTITUTIONS: [from: string, to: string][] = [
  ['an ', ''],
  ['a ', ''],
  ['.$', '$'],
  ['\\$', ''],
  ['\\ ', ''],
  [' ', ''],
  ['mbox', 'text'],
  [',\\text{and}', ','],
  ['\\text{and}', ','],
  ['\\text{m}', '\\text{}'],
]
const REMOVED = [
  ...'square ways integers dollars mph inches ft hours km units \\ldots sue points feet minutes digits cents'.split(
    ' ',
  ),
  ...'degrees cm gm pounds meters meals edges students childrentickets multiples \\text{s} \\text{.}'.split(' '),
  ...['\\text{\ns}', '\\text{}^2', '\\text{}^3', '\\text{\n}', '\\text{}', '\\mathrm{th}', '^\\circ', '^{\\circ}'],
  ...['\\;', ',\\!', '{,}', '"', '\\dots'],
]

/** Minerva's normal form of a final answer. For short texts: quadratic at worst. */
export function normalizeFinalAnswer(answer: string): string {
  let text = answer.slice(answer.lastIndexOf('=') + 1)
  for (const [from, to] of SUBSTITUTIONS) text = text.replaceAll(from, to)
  for (const word of REMOVED) text = text.replaceAll(word, '')
  text = mathOnly(text)
  for (const command of ['\\text{', '\\textbf{', '\\overline{']) text = unwrapped(text, command)
  text = text.replace(/\\boxed\{(.*)\}/g, '$1')
  text = text
    .replace(/frac([^{])(.)/g, 'frac{$1}{$2}')
    .replace(/sqrt([^{])/g, 'sqrt{$1}')
    .replaceAll('$', '')
  return /^[\d,]*\d[\d,]*$/.test(text) ? text.replaceAll(',', '') : text
}

/** Lines with two dollars become the first formula of theirs. */
function mathOnly(text: string): string {
  if (!text.includes('$')) return text
  const lines = text.split('\n').map((line) => {
    const open = line.indexOf('$')
    const close = line.indexOf('$', open + 1)
    return open >= 0 && close >= 0 ? line.slice(open, close + 1) : line
  })
  return lines.join('\n')
}

/** `\text{x}` becomes `x`: up to the first closing brace on the line. */
function unwrapped(text: string, command: string): string {
  let result = ''
  let from = 0
  for (let open = text.indexOf(command); open >= 0; open = text.indexOf(command, from)) {
    const begin = open + command.length
    const close = text.indexOf('}', begin)
    if (close < 0) break
    const hasNewline = text.slice(begin, close).includes('\n')
    result += text.slice(from, open) + (hasNewline ? command : text.slice(begin, close))
    from = hasNewline ? begin : close + 1
  }
  return result + text.slice(from)
}

/**
 * The MATH data set's normal form, or undefined where its code raises an exception (a command without its argument, two
 * units, a/b of something else than integers).
 */
export function stripString(answer: string): string | undefined {
  let text = answer.replaceAll('\n', '').replaceAll('\\!', '').replaceAll('\\\\', '\\')
  text = text.replaceAll('tfrac', 'frac').replaceAll('dfrac', 'frac').replaceAll('\\left', '').replaceAll('\\right', '')
  text = text.replaceAll('^{\\circ}', '').replaceAll('^\\circ', '').replaceAll('\\$', '')
  const [beforeUnit, ...units] = text.split('\\text{ ')
  if (units.length > 1) return undefined
  text = beforeUnit!.replaceAll('\\%', '').replaceAll(' .', ' 0.').replaceAll('{.', '{0.')
  if (text === '') return text
  if (text.startsWith('.')) text = `0${text}`
  const sides = text.split('=')
  if (sides.length === 2 && sides[0]!.length <= 2) text = sides[1]!
  const rooted = withArguments(text, '\\sqrt', 1)
  const fractioned = rooted && withFractions(rooted.replaceAll(' ', ''))
  if (fractioned === undefined) return undefined
  return withSlash(fractioned === '0.5' ? '\\frac{1}{2}' : fractioned)
}

/** `\sqrt3` becomes `\sqrt{3}`. */
function withArguments(text: string, command: string, width: number): string | undefined {
  const [first, ...rest] = text.split(command)
  let result = first!
  for (const part of rest) {
    if (part === '') return undefined
    result += part.startsWith('{') ? command + part : `${command}{${part.slice(0, width)}}${part.slice(width)}`
  }
  return result
}

/** `\frac12` becomes `\frac{1}{2}`, `\frac1{72}` becomes `\frac{1}{72}`; one that is cut off leaves all as it was. */
function withFractions(text: string): string | undefined {
  const [first, ...rest] = text.split('\\frac')
  let result = first!
  for (const part of rest) {
    if (part === '') return undefined
    if (part.startsWith('{')) result += `\\frac${part}`
    else if (part.length < 2) return text
    else result += `\\frac{${part[0]}}${part[1] === '{' ? '{' : `{${part[1]}}`}${part.slice(2)}`
  }
  return result
}

const INTEGER = /^\s*[+-]?\d+(?:_\d+)*\s*$/

/** `3/4` becomes `\frac{3}{4}`. */
function withSlash(text: string): string | undefined {
  const [a, b, ...more] = text.split('/')
  if (b === undefined || more.length > 0) return text
  if (!INTEGER.test(a!) || !INTEGER.test(b)) return undefined
  const isPlain = /^(0|-?[1-9]\d*)\/(0|-?[1-9]\d*)$/.test(text)
  return isPlain ? `\\frac{${a}}{${b}}` : text
}

/** The equality of the MATH data set: of normal forms, or of the texts where one has none. Undefined equals itself. */
export function hendrycksEqual(a: string | undefined, b: string | undefined): boolean {
  if (a === undefined || b === undefined) return a === b
  const [x, y] = [stripString(a), stripString(b)]
  return x === undefined || y === undefined ? a === b : x === y
}
