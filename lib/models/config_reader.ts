// Typed reading of a model's config.json. Every fault names file, key, what was expected and what was found; keys with
// the value null count as absent, as Hugging Face writes many of them.
import { CaravanError } from '../base/errors.js'

export type JsonObject = { [key: string]: unknown }

export class ConfigReader {
  constructor(
    /** For messages. */
    readonly path: string,
    readonly json: JsonObject,
    private readonly prefix = '',
  ) {}

  has(key: string): boolean {
    return Object.hasOwn(this.json, key) && this.json[key] !== null && this.json[key] !== undefined
  }

  /** An integer from `minimum` (default 1) to `maximum`. Without `fallback` the key must be there. */
  integer(key: string, options: { fallback?: number; minimum?: number; maximum?: number } = {}): number {
    const { minimum = 1, maximum } = options
    const expected = maximum === undefined ? `an integer >= ${minimum}` : `an integer from ${minimum} to ${maximum}`
    if (!this.has(key)) return this.absent(key, options.fallback, expected)
    const value = this.json[key]
    const inside = typeof value === 'number' && value >= minimum && value <= (maximum ?? 2 ** 31 - 1)
    if (inside && Number.isSafeInteger(value)) return value
    throw this.fault(key, expected)
  }

  /** A finite number > 0. */
  positive(key: string, fallback?: number): number {
    if (!this.has(key)) return this.absent(key, fallback, 'a number > 0')
    const value = this.json[key]
    if (typeof value === 'number' && Number.isFinite(value) && value > 0) return value
    throw this.fault(key, 'a number > 0')
  }

  boolean(key: string, fallback: boolean): boolean {
    if (!this.has(key)) return fallback
    const value = this.json[key]
    if (typeof value === 'boolean') return value
    throw this.fault(key, 'true or false')
  }

  string(key: string, fallback?: string): string {
    if (!this.has(key)) return this.absent(key, fallback, 'a string')
    const value = this.json[key]
    if (typeof value === 'string') return value
    throw this.fault(key, 'a string')
  }

  strings(key: string): string[] {
    const value = this.has(key) ? this.json[key] : []
    if (Array.isArray(value) && value.every((item): item is string => typeof item === 'string')) return value
    throw this.fault(key, 'a list of strings')
  }

  /** The reader of a nested object, or undefined when the key is absent. */
  object(key: string): ConfigReader | undefined {
    if (!this.has(key)) return undefined
    const value = this.json[key]
    if (isJsonObject(value)) return new ConfigReader(this.path, value, `${this.prefix}${key}.`)
    throw this.fault(key, 'an object')
  }

  /** Token ids: one integer >= 0, a list of them, or none. */
  tokenIds(key: string): number[] {
    if (!this.has(key)) return []
    const value = this.json[key]
    const ids: unknown[] = Array.isArray(value) ? value : [value]
    // Some published files say -1 for "no such token".
    if (ids.length === 1 && ids[0] === -1) return []
    const valid = (id: unknown): id is number => typeof id === 'number' && Number.isSafeInteger(id) && id >= 0
    if (ids.every(valid)) return ids
    throw this.fault(key, 'a token id (an integer >= 0) or a list of them')
  }

  /** ERR_MODEL for `key`, whose value is not what was `expected`. */
  fault(key: string, expected: string, hint?: string): CaravanError {
    const received = this.has(key) ? shortJson(this.json[key]) : 'nothing'
    const name = `${this.prefix}${key}`
    return new CaravanError('ERR_MODEL', `${this.path}: ${name} must be ${expected}; got ${received}`, {
      details: { file: this.path, key: name, expected, received: this.json[key] },
      hint,
    })
  }

  private absent<T>(key: string, fallback: T | undefined, expected: string): T {
    if (fallback !== undefined) return fallback
    throw this.fault(key, expected, 'the file is incomplete, or it is not the configuration of a language model')
  }
}

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function shortJson(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value)
  return text.length > 80 ? `${text.slice(0, 77)}...` : text
}
