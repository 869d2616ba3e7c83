// Judges the regular expressions of a tokenizer file. The engine behind the native library (Oniguruma) backtracks, and
// the library ends the process when a match takes more than 10 million steps. So only a subset of the syntax is let
// through, in which the work of one match is at most proportional to the text; what is left can still be quadratic over
// all starting points, and for such patterns the text length is limited.

/** `maximumUnits`: longest text that is safe to split by the pattern; `minimumLength`: fewest characters of a match. */
export interface PatternVerdict {
  maximumUnits: number
  minimumLength: number
}

/** Longest text, in UTF-16 units, for patterns that split in linear time: 1/4 of what the engine's limit allows. */
export const LINEAR_TEXT_UNITS = 2_500_000
/** For the others: some seconds at worst. */
const QUADRATIC_TEXT_UNITS = 8192
const MAX_PATTERN_LENGTH = 4096
const MAX_REPEAT = 1000
const MAX_CHOICES = 4096
const MAX_QUADRATIC_CHOICES = 4

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
const NOT_LOWER = '[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]'
const NOT_UPPER = '[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]'
const WORD_START = '[^\\r\\n\\p{L}\\p{N}]?'
const SPACES_BUT_LAST = '\\s+(?!\\S)'
const ALL_SPACES = ['\\s+', SPACES_BUT_LAST]

/**
 * Alternatives of published patterns that may run through the text and fail, with the alternatives that then take all
 * of what they ran through, so that the whole stays linear: line ends (all families), words in capitals (o200k).
 */
const COVERED_BY: ReadonlyMap<string, readonly string[]> = new Map<string, readonly string[]>([
  [SPACES_BUT_LAST, [SPACES_BUT_LAST]],
  ...['\\s*[\\r\\n]+', '\\s*[\\r\\n]', '\\s+$', '\\s++$'].map((branch) => [branch, ALL_SPACES] as const),
  ...['', `${CONTRACTIONS}?`].map((suffix) => {
    return [
      `${WORD_START}${NOT_LOWER}*${NOT_UPPER}+${suffix}`,
      [`${WORD_START}${NOT_LOWER}+${NOT_UPPER}*${suffix}`],
    ] as const
  }),
])

/** Split pattern of Llama 3, and with `maximumDigits` 1 of Qwen 2: words, groups of digits, punctuation, spaces. */
export function wordSplitPattern(maximumDigits: number): string {
  const digits = `\\p{N}{1,${maximumDigits}}`
  const spaces = `\\s*[\\r\\n]+|${SPACES_BUT_LAST}|\\s+`
  return `${CONTRACTIONS}|${WORD_START}\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${spaces}`
}

/** Judges `pattern`, or gives the reason to refuse it as a string. */
export function judgePattern(pattern: string): PatternVerdict | string {
  if (pattern.length > MAX_PATTERN_LENGTH) return `the pattern is longer than ${MAX_PATTERN_LENGTH} characters`
  const parser = new PatternParser(pattern)
  const branches = parser.parse()
  if (typeof branches === 'string') return branches
  let linear = true
  for (const [i, branch] of branches.entries()) {
    const work = branchWork(branch, false)
    if (typeof work === 'string') return work
    const covers = COVERED_BY.get(parser.sources[i]!)
    if (work.scans === 0 || covers?.some((cover) => parser.sources.includes(cover))) continue
    linear = false
    if (work.retries > 1) {
      return 'two unbounded repeats in one alternative can both be retried, which is quadratic in the text'
    }
    if (work.choices > MAX_QUADRATIC_CHOICES) return 'an unbounded repeat can be retried in too many ways'
  }
  return {
    maximumUnits: linear ? LINEAR_TEXT_UNITS : QUADRATIC_TEXT_UNITS,
    minimumLength: Math.min(...branches.map((branch) => branch.reduce((sum, part) => sum + shortest(part), 0))),
  }
}

/** One element of a branch with its repeat. `inner`: the alternatives of a group; `look`: it consumes nothing. */
interface Part {
  inner: Part[][] | undefined
  look: boolean
  minimum: number
  maximum: number
  possessive: boolean
}

/** `retries`: how many unbounded repeats can be retried; `scans`: how many can run through the text and then fail. */
interface Work {
  retries: number
  scans: number
  choices: number
}

function alternativesWork(branches: Part[][], failsLater: boolean): Work | string {
  const total: Work = { retries: 0, scans: 0, choices: 0 }
  for (const branch of branches) {
    const work = branchWork(branch, failsLater)
    if (typeof work === 'string') return work
    total.retries = Math.max(total.retries, work.retries)
    total.scans = Math.max(total.scans, work.scans)
    total.choices += work.choices
  }
  return total
}

function branchWork(branch: Part[], failsAfterBranch: boolean): Work | string {
  const total: Work = { retries: 0, scans: 0, choices: 1 }
  let failsLater = failsAfterBranch
  for (const part of [...branch].reverse()) {
    const unbounded = part.maximum === Number.POSITIVE_INFINITY
    if (part.inner !== undefined) {
      if (part.maximum > 1 && !isSinglePath(part.inner)) return 'a group that can match in several ways is repeated'
      const inner = alternativesWork(part.inner, part.look ? false : failsLater)
      if (typeof inner === 'string') return inner
      total.retries += inner.retries
      total.scans += inner.scans
      total.choices *= inner.choices
    }
    if (unbounded && failsLater) {
      total.scans++
      if (!part.possessive) total.retries++
    }
    if (!unbounded && !part.possessive) total.choices *= part.maximum - part.minimum + 1
    if (total.choices > MAX_CHOICES) return `one alternative can match in more than ${MAX_CHOICES} ways`
    failsLater ||= part.look || part.minimum > 0
  }
  return total
}

function isSinglePath(inner: Part[][]): boolean {
  return (
    inner.length === 1 &&
    inner[0]!.some((part) => !part.look) &&
    inner[0]!.every((part) => part.minimum === part.maximum && (part.inner === undefined || isSinglePath(part.inner)))
  )
}

function shortest(part: Part): number {
  if (part.look) return 0
  if (part.inner === undefined) return part.minimum
  return part.minimum * Math.min(...part.inner.map((branch) => branch.reduce((sum, each) => sum + shortest(each), 0)))
}

const GROUP_OPENINGS = ['(?:', '(?i:', '(?=', '(?!', '(?<=', '(?<!', '(?>'] as const
const PROPERTY = /^\\[pP]\{\^?[A-Za-z_]{1,40}\}/
const ESCAPE = /^\\(?:[sSdDwWrntfv]|x[0-9A-Fa-f]{2}|x\{[0-9A-Fa-f]{1,6}\}|u[0-9A-Fa-f]{4}|[^A-Za-z0-9\s])/
const ANCHOR = /^(?:\^|\$|\\[bBAzZ])/
const REPEAT = /^(?:[*+?]|\{(\d{1,4})(,(\d{0,4}))?\})/

/** Recursive descent over the accepted subset of Oniguruma's syntax; the reason for a refusal comes out as a string. */
class PatternParser {
  /** The alternatives of the whole pattern as they are written. */
  readonly sources: string[] = []
  #at = 0
  #depth = 0

  constructor(readonly pattern: string) {}

  parse(): Part[][] | string {
    const branches = this.#alternatives()
    if (typeof branches === 'string') return branches
    return this.#at === this.pattern.length ? branches : `unmatched ) at character ${this.#at}`
  }

  #alternatives(): Part[][] | string {
    const branches: Part[][] = [[]]
    let start = this.#at
    while (this.#at < this.pattern.length && this.pattern[this.#at] !== ')') {
      if (this.pattern[this.#at] === '|') {
        if (this.#depth === 0) this.sources.push(this.pattern.slice(start, this.#at))
        start = ++this.#at
        branches.push([])
        continue
      }
      const part = this.#part()
      if (typeof part === 'string') return part
      branches.at(-1)!.push(part)
    }
    if (this.#depth === 0) this.sources.push(this.pattern.slice(start, this.#at))
    return branches
  }

  #part(): Part | string {
    const rest = this.pattern.slice(this.#at, this.#at + 64)
    const part: Part = { inner: undefined, look: false, minimum: 1, maximum: 1, possessive: false }
    const anchor = ANCHOR.exec(rest)
    if (anchor !== null) {
      this.#at += anchor[0].length
      return { ...part, look: true }
    }
    if (rest[0] === '(') {
      const refusal = this.#group(rest, part)
      if (refusal !== undefined) return refusal
    } else {
      const refusal = rest[0] === '[' ? this.#characterClass() : this.#character(rest)
      if (refusal !== undefined) return refusal
    }
    return this.#repeat(part)
  }

  #group(rest: string, part: Part): string | undefined {
    const opening = GROUP_OPENINGS.find((text) => rest.startsWith(text)) ?? (rest[1] === '?' ? undefined : '(')
    if (opening === undefined) return `unsupported kind of group at character ${this.#at}`
    if (++this.#depth > 16) return 'groups are nested deeper than 16'
    this.#at += opening.length
    const inner = this.#alternatives()
    if (typeof inner === 'string') return inner
    if (this.pattern[this.#at] !== ')') return 'a group is not closed'
    this.#at++
    this.#depth--
    part.inner = inner
    part.look = /[=!]$/.test(opening)
    return undefined
  }

  #character(rest: string): string | undefined {
    const escaped = PROPERTY.exec(rest) ?? ESCAPE.exec(rest)
    if (escaped !== null) {
      this.#at += escaped[0].length
      return undefined
    }
    if (/^[\\*+?{}\]]/.test(rest)) return `unsupported ${JSON.stringify(rest.slice(0, 2))} at character ${this.#at}`
    this.#at += rest.codePointAt(0)! > 0xffff ? 2 : 1
    return undefined
  }

  #characterClass(): string | undefined {
    const start = this.#at
    let open = 0
    do {
      const rest = this.pattern.slice(this.#at, this.#at + 64)
      const escaped = PROPERTY.exec(rest) ?? ESCAPE.exec(rest)
      if (rest === '') return `the class at character ${start} is not closed`
      if (rest[0] === '\\' && escaped === null) return `unsupported escape at character ${this.#at}`
      if (/^\[\^?\]/.test(rest)) return `the class at character ${this.#at} is empty`
      if (rest[0] === '[' && ++open > 4) return `classes are nested deeper than 4 at character ${this.#at}`
      if (rest[0] === ']') open--
      this.#at += escaped?.[0].length ?? 1
    } while (open > 0)
    return undefined
  }

  #repeat(part: Part): Part | string {
    const match = REPEAT.exec(this.pattern.slice(this.#at, this.#at + 16))
    if (match === null) return part
    if (part.look) return `a position is repeated at character ${this.#at}`
    this.#at += match[0].length
    const symbol = match[0][0]!
    if (symbol === '{') {
      part.minimum = Number(match[1])
      part.maximum =
        match[2] === undefined ? part.minimum : match[3] === '' ? Number.POSITIVE_INFINITY : Number(match[3])
      const largest = Number.isFinite(part.maximum) ? part.maximum : part.minimum
      if (largest > MAX_REPEAT || part.maximum < part.minimum) return `bad repeat ${match[0]}`
    } else {
      part.minimum = symbol === '+' ? 1 : 0
      part.maximum = symbol === '?' ? 1 : Number.POSITIVE_INFINITY
    }
    const suffix = this.pattern[this.#at]
    // After an interval Oniguruma reads `+` as a second repeat, not as possessive.
    if (suffix === '?' || (suffix === '+' && symbol !== '{')) {
      this.#at++
      part.possessive = suffix === '+'
    }
    return REPEAT.test(this.pattern.slice(this.#at, this.#at + 16)) ? `repeated repeat at character ${this.#at}` : part
  }
}
