// Checked access to parsed JSON for tokenizer files: every fault names the file and the JSON path of the value.
import { CaravanError } from '../base/errors.js'

export type JsonObject = Record<string, unknown>

/** Reads values of known types out of one file's JSON; throws ERR_TOKENIZER with file and path otherwise. */
export class JsonChecker {
  constructor(readonly file: string) {}

  fail(path: string, message: string, hint?: string): never {
    throw new CaravanError('ERR_TOKENIZER', `${this.file}: ${path}: ${message}`, {
      details: { file: this.file, path },
      hint,
    })
  }

  /** An object with no fields but `known` (any field when omitted). */
  object(value: unknown, path: string, known?: readonly string[]): JsonObject {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) this.#wrong(value, path, 'an object')
    if (known !== undefined) {
      const unknown = Object.keys(value as JsonObject).find((key) => !known.includes(key))
      if (unknown !== undefined) this.fail(`${path}.${unknown}`, `unknown field; known are ${known.join(', ')}`)
    }
    return value as JsonObject
  }

  array(value: unknown, path: string, maximum: number): unknown[] {
    if (!Array.isArray(value)) this.#wrong(value, path, 'an array')
    if (value.length > maximum) this.fail(path, `has ${value.length} entries; the limit is ${maximum}`)
    return value
  }

  /** A well-formed string (no lone surrogates, which have no UTF-8 form) of at most `maximum` UTF-16 units. */
  string(value: unknown, path: string, maximum = 4096): string {
    if (typeof value !== 'string') this.#wrong(value, path, 'a string')
    if (value.length > maximum) this.fail(path, `has ${value.length} characters; the limit is ${maximum}`)
    if (/[\ud800-\udfff]/.test(value) && hasLoneSurrogate(value)) this.fail(path, 'contains a lone surrogate')
    return value
  }

  /** One code point. */
  character(value: unknown, path: string): string {
    const text = this.string(value, path)
    if ([...text].length !== 1) this.fail(path, `expected one character; got ${JSON.stringify(text)}`)
    return text
  }

  boolean(value: unknown, path: string): boolean {
    if (typeof value !== 'boolean') this.#wrong(value, path, 'true or false')
    return value
  }

  integer(value: unknown, path: string, minimum: number, maximum: number): number {
    if (typeof value !== 'number' || !Number.isInteger(value) || value < minimum || value > maximum) {
      this.#wrong(value, path, `an integer from ${minimum} to ${maximum}`)
    }
    return value
  }

  oneOf<T extends string>(value: unknown, path: string, allowed: readonly T[]): T {
    if (!allowed.includes(value as T)) this.#wrong(value, path, `one of ${allowed.join(', ')}`)
    return value as T
  }

  #wrong(value: unknown, path: string, expected: string): never {
    return this.fail(path, `expected ${expected}; got ${describe(value)}`)
  }
}

function hasLoneSurrogate(text: string): boolean {
  for (const character of text) {
    if (character.length === 1 && character >= '\ud800' && character <= '\udfff') return true
  }
  return false
}

function describe(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (Array.isArray(value)) return 'an array'
  if (typeof value === 'object' && value !== null) return 'an object'
  return String(JSON.stringify(value)).slice(0, 60)
}

/** Position of the first character of `text` that no JSON text can have there; for error messages only. */
export function jsonErrorOffset(text: string): number {
  const scanner = /[ \t\r\n]*(?:[{}[\],:]|"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)/y
  const open: string[] = []
  let expected: 'value' | 'key' | 'colon' | 'after' = 'value'
  let mayClose = false
  let at = 0
  for (;;) {
    scanner.lastIndex = at
    const match = scanner.exec(text)
    const start = match === null ? skipSpace(text, at) : scanner.lastIndex - match[0].trimStart().length
    if (match === null) return start
    const token = text[start]!
    const container = open.at(-1)
    at = scanner.lastIndex
    if (token === '}' || token === ']') {
      const matches = container === (token === '}' ? '{' : '[') && (expected === 'after' || mayClose)
      if (!matches) return start
      open.pop()
      expected = 'after'
    } else if (token === ',') {
      if (expected !== 'after' || container === undefined) return start
      expected = container === '{' ? 'key' : 'value'
    } else if (token === ':') {
      if (expected !== 'colon') return start
      expected = 'value'
    } else if (token === '"') {
      if (expected !== 'value' && expected !== 'key') return start
      const end = stringEnd(text, at)
      if (end.fault) return end.at
      at = end.at
      expected = expected === 'key' ? 'colon' : 'after'
    } else {
      if (expected !== 'value') return start
      if (token === '{' || token === '[') {
        open.push(token)
        expected = token === '{' ? 'key' : 'value'
        mayClose = true
        continue
      }
      expected = 'after'
    }
    mayClose = false
  }
}

function skipSpace(text: string, from: number): number {
  let at = from
  while (at < text.length && ' \t\r\n'.includes(text[at]!)) at++
  return at
}

/** The position after the closing quote of the string whose content starts at `from`, or that of its first fault. */
function stringEnd(text: string, from: number): { at: number; fault: boolean } {
  for (let at = from; at < text.length; at++) {
    const character = text[at]!
    if (character === '"') return { at: at + 1, fault: false }
    if (character < ' ') return { at, fault: true }
    if (character !== '\\') continue
    const escaped = /^(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/.exec(text.slice(at + 1, at + 6))
    if (escaped === null) return { at, fault: true }
    at += escaped[0].length
  }
  return { at: text.length, fault: true }
}
