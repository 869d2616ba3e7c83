// Which language a text is in: the n-gram naive Bayes of Nakatani Shuyo's language-detection, on which the published
// verdicts of IFEval rest (its Python port is `langdetect`). Other detectors disagree with those on short, mixed or
// capitalised texts, and several know no Swahili or Nepali, which IFEval asks for. The n-gram counts of 55 languages
// are that project's. It judges by a few random n-grams, so that a mixed text gets another verdict at each call; here
// all n-grams count, and a text has one verdict.

import { readFileSync } from 'node:fs'
import { gunzipSync } from 'node:zlib'
import { CaravanError } from '../base/errors.js'
import { ReadingMemo } from './reading_memo.js'

const MAX_CHARACTERS = 10_000
/** Looked at before addresses are taken out. */
const MAX_UNITS = 3 * MAX_CHARACTERS
/** Added to every relative frequency, so that an n-gram that a language lacks does not rule it out. */
const SMOOTHING = 0.5 / 10_000

const ADDRESS = /https?:\/\/[-_.?&~;+=/#0-9A-Za-z]{1,2076}/g
const MAIL = /[-_.0-9A-Za-z]{1,64}@[-_0-9A-Za-z]{1,255}[-_.0-9A-Za-z]{1,255}/g

/** The file: per n-gram, one after another, how many languages have it, which, and how often. */
interface Profiles {
  languages: string[]
  /** Per language the number of all 1-, 2- and 3-grams. */
  totals: [number, number, number][]
  vietnamese: { letters: string; marks: string; combined: string[] }
  /** Classes of Chinese characters that count as their first one. */
  hanzi: string[]
  /** The n-grams, each on a line. */
  grams: string
  sizes: number[]
  spoken: number[]
  counts: number[]
}

interface Model {
  languages: readonly string[]
  /** n-gram -> its number. */
  gramNumber: ReadonlyMap<string, number>
  /** The entries of n-gram g are begins[g] to begins[g + 1]: a language, and what the n-gram adds to its logarithm. */
  begins: Uint32Array
  spoken: Uint8Array
  gains: Float32Array
  hanziClass: ReadonlyMap<string, string>
  vietnameseLetter: ReadonlyMap<string, string>
}

let loaded: Model | undefined

function model(): Model {
  loaded ??= modelOf(readProfiles())
  return loaded
}

function readProfiles(): Profiles {
  // The same address from lib/ and from dist/: the package ships both.
  const file = new URL('../../lib/verify/language_profiles.json.gz', import.meta.url)
  try {
    return JSON.parse(gunzipSync(readFileSync(file)).toString('utf8')) as Profiles
  } catch (cause) {
    throw new CaravanError('ERR_FILE', `${file.pathname}: the language profiles cannot be read`, {
      details: { path: file.pathname, operation: 'read' },
      hint: 'the package is incomplete: install it again',
      cause,
    })
  }
}

function modelOf(profiles: Profiles): Model {
  const { languages, totals, sizes, counts } = profiles
  const grams = profiles.grams.split('\n')
  const spoken = Uint8Array.from(profiles.spoken)
  const begins = new Uint32Array(grams.length + 1)
  const gains = new Float32Array(counts.length)
  for (const [g, gram] of grams.entries()) {
    const end = begins[g]! + sizes[g]!
    for (let i = begins[g]!; i < end; i++) {
      gains[i] = Math.log1p(counts[i]! / totals[spoken[i]!]![gram.length - 1]! / SMOOTHING)
    }
    begins[g + 1] = end
  }
  const gramNumber = new Map(grams.map((gram, g) => [gram, g]))
  return { languages, gramNumber, begins, spoken, gains, ...characterClasses(profiles) }
}

function characterClasses({ hanzi, vietnamese }: Profiles): Pick<Model, 'hanziClass' | 'vietnameseLetter'> {
  const hanziClass = new Map<string, string>()
  for (const characters of hanzi) {
    const [representative, ...others] = characters
    for (const other of others) hanziClass.set(other, representative!)
  }
  const { letters, marks, combined } = vietnamese
  const vietnameseLetter = new Map<string, string>()
  for (const [m, mark] of [...marks].entries()) {
    for (const [l, letter] of [...letters].entries()) vietnameseLetter.set(letter + mark, combined[m]![l]!)
  }
  return { hanziClass, vietnameseLetter }
}

/** Codes of the languages that can be told apart (ISO 639-1, with zh-cn and zh-tw). */
export function knownLanguages(): readonly string[] {
  return model().languages
}

/**
 * The code of the most probable language of `text`, or undefined when nothing in it tells anything (no letters, or
 * words of capitals alone). Only its first 10 000 characters count.
 */
export function detectLanguage(text: string, memo = new ReadingMemo()): string | undefined {
  const beginning = text.slice(0, MAX_UNITS)
  if (!memo.languages.has(beginning)) memo.languages.set(beginning, languageOf(beginning))
  return memo.languages.get(beginning)
}

function languageOf(text: string): string | undefined {
  const profiles = model()
  const counts = gramCounts(foreignLettersOnly(cleaned(text, profiles)), profiles)
  if (counts.size === 0) return undefined
  const likelihoods = logLikelihoods(counts, profiles)
  return profiles.languages[likelihoods.indexOf(Math.max(...likelihoods))]!
}

/** The first characters without addresses and doubled blanks, Vietnamese letters composed. */
function cleaned(text: string, { vietnameseLetter }: Model): string[] {
  const characters: string[] = []
  let plain = text.slice(0, MAX_UNITS)
  if (plain.includes('://')) plain = plain.replace(ADDRESS, ' ')
  if (plain.includes('@')) plain = plain.replace(MAIL, ' ')
  let previous = ''
  let seen = 0
  for (const character of plain) {
    if (++seen > MAX_CHARACTERS) break
    const composed = character >= '\u0300' ? vietnameseLetter.get(previous + character) : undefined
    if (composed !== undefined) characters[characters.length - 1] = composed
    else if (character !== ' ' || previous !== ' ') characters.push(character)
    previous = character
  }
  return characters
}

/** Without Latin letters where they are few: a text in Hindi that quotes English is in Hindi. */
function foreignLettersOnly(characters: string[]): string[] {
  let [latin, foreign] = [0, 0]
  for (const character of characters) {
    if (character >= 'A' && character <= 'z') latin++
    else if (character >= '\u0300' && !(character >= '\u1e00' && character <= '\u1eff')) foreign++
  }
  return latin * 2 < foreign ? characters.filter((one) => one < 'A' || one > 'z') : characters
}

const UPPER = /^\p{Lu}$/u

function isUpperCase(character: string): boolean {
  const code = character.charCodeAt(0)
  return code < 0x80 ? code >= 65 && code <= 90 : UPPER.test(character)
}

/** How often each known 1-, 2- and 3-gram is in the words, those of capitals left out. */
function gramCounts(characters: readonly string[], profiles: Model): Map<number, number> {
  const counts = new Map<number, number>()
  const add = (gram: string) => {
    const number = profiles.gramNumber.get(gram)
    if (number !== undefined) counts.set(number, (counts.get(number) ?? 0) + 1)
  }
  let [before, last, isCapitals] = ['', ' ', false]
  for (const raw of characters) {
    const character = normalized(raw, profiles)
    const isNewWord = last === ' '
    if (isNewWord && character === ' ') {
      before = ''
      continue
    }
    isCapitals = isUpperCase(character) && ((isCapitals && !isNewWord) || isUpperCase(last))
    if (!isCapitals) {
      if (character !== ' ') add(character)
      add(last + character)
      if (!isNewWord) add(before + last + character)
    }
    before = last
    last = character
  }
  return counts
}

/** A character as the profiles count it: punctuation is a blank, and some scripts are one class each. */
function normalized(character: string, { hanziClass }: Model): string {
  const code = character.codePointAt(0)!
  if (code < 0x80) return (code >= 65 && code <= 90) || (code >= 97 && code <= 122) ? character : ' '
  if (code <= 0xff) return '\u00a0\u00ab\u00b0\u00bb'.includes(character) ? ' ' : character
  if (code === 0x219) return '\u015f'
  if (code === 0x21b) return '\u0163'
  if (code === 0x6cc) return '\u064a'
  if (code >= 0x1ea0 && code <= 0x1eff) return '\u1ec3'
  if (code >= 0x2000 && code <= 0x206f) return ' '
  if (code >= 0x3040 && code <= 0x309f) return '\u3042'
  if (code >= 0x30a0 && code <= 0x30ff) return '\u30a2'
  if ((code >= 0x3100 && code <= 0x312f) || (code >= 0x31a0 && code <= 0x31bf)) return '\u3105'
  if (code >= 0x4e00 && code <= 0x9fff) return hanziClass.get(character) ?? character
  return code >= 0xac00 && code <= 0xd7af ? '\uac00' : character
}

/** log P(n-grams | language) for each language, up to a constant. */
function logLikelihoods(
  counts: ReadonlyMap<number, number>,
  { languages, begins, spoken, gains }: Model,
): Float64Array {
  const sums = new Float64Array(languages.length)
  for (const [gram, count] of counts) {
    for (let i = begins[gram]!, end = begins[gram + 1]!; i < end; i++) sums[spoken[i]!]! += count * gains[i]!
  }
  return sums
}
