// Reads the Python literals in which open-instruct's data sets write labels: lists, dicts, strings, numbers, True,
// False and None. Nothing is evaluated.

const MAX_DEPTH = 32
const ESCAPES: Readonly<Record<string, string>> = { n: '\n', t: '\t', r: '\r', '\\': '\\', "'": "'", '"': '"' }

/** The value of a literal; JSON is read as well. Throws a SyntaxError with the offset for anything else. */
export function parsePythonLiteral(text: string): unknown {
  const reader = new LiteralReader(text)
  const value = reader.value(0)
  reader.end()
  return value
}

class LiteralReader {
  #at = 0

  constructor(private readonly text: string) {}

  value(depth: number): unknown {
    if (depth > MAX_DEPTH) throw this.#fault(`nested deeper than ${MAX_DEPTH}`)
    this.#skip()
    const character = this.text[this.#at]
    if (character === '[') return this.#items(']', depth)
    if (character === '(') return this.#items(')', depth)
    if (character === '{') return this.#dict(depth)
    if (character === '"' || character === "'") return this.#string(character)
    return this.#word()
  }

  end(): void {
    this.#skip()
    if (this.#at < this.text.length) throw this.#fault('text after the value')
  }

  #items(close: string, depth: number): unknown[] {
    const items: unknown[] = []
    this.#at++
    while (!this.#takes(close)) {
      items.push(this.value(depth + 1))
      if (!this.#takes(',') && !this.#sees(close)) throw this.#fault(`expected , or ${close}`)
    }
    return items
  }

  #dict(depth: number): Record<string, unknown> {
    const entries: [string, unknown][] = []
    this.#at++
    while (!this.#takes('}')) {
      const key = this.value(depth + 1)
      if (typeof key !== 'string' || !this.#takes(':')) throw this.#fault('expected a text and a colon')
      entries.push([key, this.value(depth + 1)])
      if (!this.#takes(',') && !this.#sees('}')) throw this.#fault('expected , or }')
    }
    return Object.fromEntries(entries)
  }

  #string(quote: string): string {
    let result = ''
    for (this.#at++; this.#at < this.text.length; this.#at++) {
      const character = this.text[this.#at]!
      if (character === quote) {
        this.#at++
        return result
      }
      result += character === '\\' ? this.#escape() : character
    }
    throw this.#fault('the text has no end')
  }

  #escape(): string {
    const kind = this.text[++this.#at] ?? ''
    const width = { x: 2, u: 4, U: 8 }[kind]
    if (width === undefined) return ESCAPES[kind] ?? `\\${kind}`
    const digits = this.text.slice(this.#at + 1, this.#at + 1 + width)
    const code = /^[0-9a-fA-F]+$/.test(digits) ? Number.parseInt(digits, 16) : Number.NaN
    if (digits.length !== width || !(code <= 0x10ffff)) throw this.#fault('a broken escape')
    this.#at += width
    return String.fromCodePoint(code)
  }

  #word(): unknown {
    const [word = ''] = /^[\w.+-]*/.exec(this.text.slice(this.#at, this.#at + 400)) ?? []
    const constants = new Map<string, unknown>([
      ['None', null],
      ['null', null],
      ['True', true],
      ['true', true],
      ['False', false],
      ['false', false],
    ])
    const value = constants.has(word) ? constants.get(word) : Number(word)
    if (word === '' || Number.isNaN(value)) throw this.#fault('expected a value')
    this.#at += word.length
    return value
  }

  #sees(character: string): boolean {
    this.#skip()
    return this.text[this.#at] === character
  }

  #takes(character: string): boolean {
    const sees = this.#sees(character)
    if (sees) this.#at++
    return sees
  }

  #skip(): void {
    while (' \t\r\n'.includes(this.text[this.#at] ?? 'x')) this.#at++
  }

  #fault(what: string): SyntaxError {
    return new SyntaxError(`${what} at offset ${this.#at}`)
  }
}
