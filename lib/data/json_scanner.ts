// Reads JSON from bytes as the caller's schema asks for it, with the byte offset of every fault. A general tree is not
// built: a hostile 100 MB header of "1,1,1,..." would cost gigabytes, and JSON.parse keeps the last of duplicate keys.
import { CaravanError } from '../base/errors.js'

const QUOTE = 0x22
const BACKSLASH = 0x5c
const MAX_DEPTH = 64

/** Makes the error for a fault at byte `offset`. */
export type FaultAt = (message: string, offset: number, details: Record<string, unknown>) => CaravanError

/** A cursor over the JSON text in `bytes`; `base` is where `bytes` begins in the file, for error offsets. */
export class JsonScanner {
  #position = 0
  readonly #decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

  constructor(
    readonly file: string,
    readonly bytes: Uint8Array,
    readonly base = 0,
    private readonly faultAt: FaultAt = (message, offset, details) =>
      new CaravanError('ERR_FORMAT', `${file}: byte ${offset}: ${message}`, { details: { file, offset, ...details } }),
  ) {}

  /** Byte offset in the file of the next unread byte. */
  get offset(): number {
    return this.base + this.#position
  }

  /** An error at `offset` (default: the cursor). */
  fault(message: string, offset = this.offset, details: Record<string, unknown> = {}): CaravanError {
    return this.faultAt(message, offset, details)
  }

  /**
   * Reads an object, calling `visit` with each key and its offset; `visit` must consume the value. Duplicates throw.
   */
  object(visit: (key: string, offset: number) => void): void {
    this.expect('{')
    if (this.#accept('}')) return
    const seen = new Set<string>()
    do {
      this.skipWhitespace()
      const offset = this.offset
      const key = this.string()
      if (seen.has(key)) throw this.fault(`the key ${quote(key)} occurs twice`, offset, { key })
      seen.add(key)
      this.expect(':')
      visit(key, offset)
    } while (this.#accept(','))
    this.expect('}')
  }

  /** Reads an array, calling `visit` for each element; `visit` must consume it. */
  array(visit: (index: number) => void): void {
    this.expect('[')
    if (this.#accept(']')) return
    let index = 0
    do visit(index++)
    while (this.#accept(','))
    this.expect(']')
  }

  /** Reads a string of well-formed Unicode. */
  string(): string {
    this.skipWhitespace()
    const start = this.#position
    if (this.bytes[start] !== QUOTE) throw this.fault(`expected a string, got ${this.#describe()}`)
    let at = start + 1
    let escaped = false
    for (; this.bytes[at] !== QUOTE; at++) {
      if (at >= this.bytes.length) throw this.fault('the string is not closed', this.base + this.bytes.length)
      if (this.bytes[at]! < 0x20) throw this.fault('a control character inside a string', this.base + at)
      if (this.bytes[at] === BACKSLASH) {
        escaped = true
        at++
      }
    }
    this.#position = at + 1
    let text: string
    try {
      text = this.#decoder.decode(this.bytes.subarray(start + 1, at))
      if (escaped) text = JSON.parse(`"${text}"`) as string
    } catch {
      throw this.fault('the string is not valid UTF-8 with valid escapes', this.base + start)
    }
    if (/\p{Surrogate}/u.test(text)) throw this.fault('the string has half a surrogate pair', this.base + start)
    return text
  }

  /** Reads an integer in 0 .. 2^53-1, written without sign, point, exponent or leading zeros. */
  unsignedInteger(what: string): number {
    this.skipWhitespace()
    const start = this.#position
    while (isDigit(this.bytes[this.#position])) this.#position++
    const digits = this.#position - start
    const next = this.bytes[this.#position]
    const partOfNumber = next === 0x2e || next === 0x65 || next === 0x45
    const text = digits <= 16 ? Buffer.from(this.bytes.subarray(start, this.#position)).toString('latin1') : ''
    const value = Number(text)
    if (digits === 0 || partOfNumber || digits > 16 || !Number.isSafeInteger(value)) {
      this.#position = start
      throw this.fault(`${what} must be an integer in [0, 2^53), got ${this.#describe()}`)
    }
    if (digits > 1 && this.bytes[start] === 0x30) throw this.fault(`${what} has a leading zero`, this.base + start)
    return value
  }

  /** Passes over any one value, however long, without keeping it. */
  skipValue(depth = 0): void {
    this.skipWhitespace()
    if (depth > MAX_DEPTH) throw this.fault(`nested deeper than ${MAX_DEPTH} levels`)
    switch (this.bytes[this.#position]) {
      case 0x7b:
        this.object(() => this.skipValue(depth + 1))
        return
      case 0x5b:
        this.array(() => this.skipValue(depth + 1))
        return
      case QUOTE:
        this.string()
        return
      default:
        this.#skipScalar()
    }
  }

  /** Throws unless only whitespace is left. */
  end(): void {
    this.skipWhitespace()
    if (this.#position < this.bytes.length) throw this.fault(`expected the end, got ${this.#describe()}`)
  }

  expect(character: string): void {
    if (!this.#accept(character)) throw this.fault(`expected \`${character}\`, got ${this.#describe()}`)
  }

  skipWhitespace(): void {
    for (;;) {
      const byte = this.bytes[this.#position]
      if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) return
      this.#position++
    }
  }

  #accept(character: string): boolean {
    this.skipWhitespace()
    if (this.bytes[this.#position] !== character.charCodeAt(0)) return false
    this.#position++
    return true
  }

  #skipScalar(): void {
    const start = this.#position
    while (this.#position < this.bytes.length && isScalarByte(this.bytes[this.#position]!)) this.#position++
    const text = Buffer.from(this.bytes.subarray(start, Math.min(this.#position, start + 400))).toString('latin1')
    if (/^(?:true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)$/.test(text)) return
    this.#position = start
    throw this.fault(`expected a value, got ${this.#describe()}`)
  }

  #describe(): string {
    if (this.#position >= this.bytes.length) return 'the end'
    const tail = this.bytes.subarray(this.#position, this.#position + 16)
    return `\`${Buffer.from(tail)
      .toString('latin1')
      .replace(/[^\x20-\x7e]/g, '?')}\``
  }
}

/** `text` in JSON quotes, shortened to fit a message. */
export function quote(text: string): string {
  return JSON.stringify(text.length > 100 ? `${text.slice(0, 97)}...` : text)
}

function isDigit(byte: number | undefined): boolean {
  return byte !== undefined && byte >= 0x30 && byte <= 0x39
}

/** Letters, digits, sign, point: everything that a number or a word is made of. */
function isScalarByte(byte: number): boolean {
  return (
    isDigit(byte) || (byte >= 0x61 && byte <= 0x7a) || byte === 0x45 || byte === 0x2b || byte === 0x2d || byte === 0x2e
  )
}
