// Reading the values of command-line options. A value that does not fit is ERR_USAGE, and the message shows one that
// does.
import { CaravanError, nearestName } from '../base/errors.js'

function misfit(option: string, wanted: string, got: string, hint?: string): CaravanError {
  return new CaravanError('ERR_USAGE', `${option} must be ${wanted}; got "${got}"`, {
    details: { option, value: got },
    hint,
  })
}

/** A parser for whole numbers from `least` on. */
export function wholeNumber(option: string, least: number): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (text.trim() !== '' && Number.isSafeInteger(value) && value >= least) return value
    throw misfit(option, `a whole number >= ${least}`, text)
  }
}

/** A parser for numbers within bounds. */
export function decimal(
  option: string,
  bounds: { least?: number; above?: number; most: number },
): (text: string) => number {
  const { least, above, most } = bounds
  return (text) => {
    const value = Number(text)
    const high = above === undefined ? value >= least! : value > above
    if (text.trim() !== '' && high && value <= most) return value
    throw misfit(option, above === undefined ? `from ${least} to ${most}` : `above ${above}, at most ${most}`, text)
  }
}

/** A parser for whole numbers from `least` on, separated by commas. */
export function wholeNumbers(option: string, least: number): (text: string) => number[] {
  return (text) => text.split(',').map(wholeNumber(option, least))
}

/** A parser for one of a few words. */
export function oneOf<const T extends string>(option: string, words: readonly T[]): (text: string) => T {
  return (text) => {
    const word = words.find((known) => known === text)
    if (word !== undefined) return word
    const nearest = nearestName(text, words)
    throw misfit(option, `one of ${words.join(', ')}`, text, nearest && `did you mean "${nearest}"?`)
  }
}

const byteUnits: { [unit: string]: number } = {
  '': 1,
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
  k: 2 ** 10,
  m: 2 ** 20,
  g: 2 ** 30,
  t: 2 ** 40,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
}

/** A parser for sizes such as 8GiB, 500MB or a plain number of bytes. */
export function byteSize(option: string): (text: string) => number {
  return (text) => {
    const match = /^\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*$/i.exec(text)
    const unit = match ? byteUnits[match[2]!.toLowerCase()] : undefined
    const bytes = match && unit !== undefined ? Math.floor(Number(match[1]) * unit) : 0
    if (bytes > 0) return bytes
    throw misfit(option, 'a size such as 8GiB, 500MB or a number of bytes', text)
  }
}

/** A parser for `a=b,c=d`. */
export function pairs(option: string): (text: string) => { [name: string]: string } {
  return (text) => {
    const result: { [name: string]: string } = {}
    for (const part of text.split(',')) {
      const [name, value, ...rest] = part.split('=')
      if (!name?.trim() || !value?.trim() || rest.length > 0) {
        throw misfit(option, 'name=column pairs such as prompt=question,completion=answer', text)
      }
      result[name.trim()] = value.trim()
    }
    return result
  }
}

/** A parser for lists separated by commas. */
export function commaList(option: string): (text: string) => string[] {
  return (text) => {
    const items = text.split(',').map((item) => item.trim())
    if (items.every((item) => item !== '')) return items
    throw misfit(option, 'names separated by commas', text)
  }
}

/** Collects `a.b=c` options, each given with an option of its own. */
export function collectAssignment(option: string) {
  return (text: string, before: { [path: string]: string } = {}): { [path: string]: string } => {
    const equals = text.indexOf('=')
    const path = text.slice(0, Math.max(0, equals)).trim()
    if (path === '') throw misfit(option, 'written stage.setting=value, as in sft.lr=1e-5', text)
    return { ...before, [path]: text.slice(equals + 1) }
  }
}
