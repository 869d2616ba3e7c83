// The stages around a tokenizer's model: normalizer, pre-tokenizer, post-processor, decoder. One table row per type
// with its fields; what is not in the table is refused by name, because the native library may end the process on it.
import type { JsonChecker, JsonObject } from './json_check.js'
import { judgePattern, LINEAR_TEXT_UNITS } from './split_pattern.js'

const MAX_STAGES = 64
const MAX_DEPTH = 8
// How much longer a chain of replacements may make a text, in all.
const MAX_GROWTH = 64

/** Facts gathered while the stages are checked. */
export interface StageFacts {
  /** Longest text, in UTF-16 units, that the split patterns can take. */
  maximumUnits: number
  normalizerGrowth: number
  decoderGrowth: number
}

type Stage = 'normalizer' | 'pre_tokenizer' | 'post_processor' | 'decoder'
type FieldCheck = (value: unknown, path: string, context: StageContext) => void

interface StageContext {
  check: JsonChecker
  facts: StageFacts
  stage: Stage
  depth: number
  vocabularySize: number
}

interface StageType {
  /** Checks by field name; a field may be absent when its check accepts undefined. */
  fields?: Record<string, FieldCheck>
  /** Field that holds the stages of a sequence. */
  sequence?: string
  /** Conditions over several fields. */
  whole?: (value: JsonObject, path: string, context: StageContext) => void
}

const flag: FieldCheck = (value, path, { check }) => void check.boolean(value, path)
const optional =
  (inner: FieldCheck): FieldCheck =>
  (value, path, context) => {
    if (value !== undefined && value !== null) inner(value, path, context)
  }
const shortText: FieldCheck = (value, path, { check }) => void check.string(value, path, 64)
const nonEmptyText: FieldCheck = (value, path, { check }) => {
  if (check.string(value, path, 64) === '') check.fail(path, 'is empty')
}
const character: FieldCheck = (value, path, { check }) => void check.character(value, path)
const oneOf =
  (...allowed: string[]): FieldCheck =>
  (value, path, { check }) =>
    void check.oneOf(value, path, allowed)

const behavior = oneOf('Removed', 'Isolated', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous')
const byteLevelFields = {
  add_prefix_space: flag,
  trim_offsets: flag,
  use_regex: optional(flag),
}
const metaspaceFields = {
  replacement: character,
  prepend_scheme: optional(oneOf('first', 'never', 'always')),
  split: optional(flag),
  add_prefix_space: optional(flag),
  str_rep: optional(shortText),
}

/** A token with its id: `["</s>", 2]`. */
const namedToken: FieldCheck = (value, path, { check, vocabularySize }) => {
  const pair = check.array(value, path, 2)
  if (pair.length !== 2) check.fail(path, 'expected [token, id]')
  check.string(pair[0], `${path}[0]`)
  check.integer(pair[1], `${path}[1]`, 0, vocabularySize - 1)
}

/** `{String}` or `{Regex}`. The empty pattern would match between all characters, where replacing is not defined. */
const pattern: FieldCheck = (value, path, { check, facts }) => {
  const object = check.object(value, path, ['String', 'Regex'])
  if (Object.keys(object).length !== 1) check.fail(path, 'expected exactly one of String and Regex')
  if (object.Regex === undefined) {
    if (check.string(object.String, `${path}.String`) === '') check.fail(`${path}.String`, 'is empty')
    return
  }
  const verdict = judgePattern(check.string(object.Regex, `${path}.Regex`))
  if (typeof verdict === 'string') {
    return check.fail(
      `${path}.Regex`,
      verdict,
      'Only patterns that split in time proportional to the text are supported.',
    )
  }
  if (verdict.minimumLength === 0) check.fail(`${path}.Regex`, 'the pattern can match nothing')
  facts.maximumUnits = Math.min(facts.maximumUnits, verdict.maximumUnits)
}

function grow(context: StageContext, path: string, factor: number): void {
  const key = context.stage === 'decoder' ? 'decoderGrowth' : 'normalizerGrowth'
  context.facts[key] *= Math.max(1, factor)
  if (context.facts[key] > MAX_GROWTH)
    context.check.fail(path, `replacements make a text over ${MAX_GROWTH} times longer`)
}

const replace: StageType = {
  fields: { pattern, content: shortText },
  whole: (value, path, context) => grow(context, path, (value.content as string).length),
}

const normalizers: Record<string, StageType> = {
  NFC: {},
  NFD: {},
  NFKC: {},
  NFKD: {},
  Lowercase: {},
  StripAccents: {},
  Nmt: {},
  ByteLevel: {},
  Strip: { fields: { strip_left: flag, strip_right: flag } },
  Prepend: { fields: { prepend: nonEmptyText } },
  Replace: replace,
  BertNormalizer: {
    fields: { clean_text: flag, handle_chinese_chars: flag, strip_accents: optional(flag), lowercase: flag },
  },
  Sequence: { sequence: 'normalizers' },
}

const preTokenizers: Record<string, StageType> = {
  ByteLevel: { fields: byteLevelFields },
  Metaspace: { fields: metaspaceFields },
  Split: { fields: { pattern, behavior, invert: flag } },
  Digits: { fields: { individual_digits: optional(flag) } },
  Punctuation: { fields: { behavior: optional(behavior) } },
  CharDelimiterSplit: { fields: { delimiter: character } },
  Whitespace: {},
  WhitespaceSplit: {},
  BertPreTokenizer: {},
  UnicodeScripts: {},
  Sequence: { sequence: 'pretokenizers' },
}

const sepAndCls = { sep: namedToken, cls: namedToken }

const postProcessors: Record<string, StageType> = {
  ByteLevel: { fields: byteLevelFields },
  BertProcessing: { fields: sepAndCls },
  RobertaProcessing: { fields: { ...sepAndCls, trim_offsets: flag, add_prefix_space: flag } },
  TemplateProcessing: {
    fields: { single: () => undefined, pair: () => undefined, special_tokens: () => undefined },
    whole: checkTemplateProcessing,
  },
  Sequence: { sequence: 'processors' },
}

const decoders: Record<string, StageType> = {
  ByteLevel: { fields: byteLevelFields },
  ByteFallback: {},
  Fuse: {},
  Metaspace: { fields: metaspaceFields },
  Replace: replace,
  BPEDecoder: { fields: { suffix: shortText } },
  WordPiece: { fields: { prefix: shortText, cleanup: flag } },
  Strip: {
    fields: {
      content: character,
      start: (value, path, { check }) => void check.integer(value, path, 0, 64),
      // Cutting at the end reads before the start of shorter tokens, where the library ends the process.
      stop: (value, path, { check }) => void check.integer(value, path, 0, 0),
    },
  },
  Sequence: { sequence: 'decoders' },
}

const TABLES: Record<Stage, Record<string, StageType>> = {
  normalizer: normalizers,
  pre_tokenizer: preTokenizers,
  post_processor: postProcessors,
  decoder: decoders,
}

/** Checks the four stages of `file`; throws ERR_TOKENIZER with the JSON path of the first fault. */
export function checkStages(file: JsonObject, vocabularySize: number, check: JsonChecker): StageFacts {
  const facts: StageFacts = { maximumUnits: LINEAR_TEXT_UNITS, normalizerGrowth: 1, decoderGrowth: 1 }
  for (const stage of Object.keys(TABLES) as Stage[]) {
    if (file[stage] === undefined || file[stage] === null) continue
    checkStage(file[stage], stage, { check, facts, stage, depth: 0, vocabularySize })
  }
  return facts
}

function checkStage(value: unknown, path: string, context: StageContext): void {
  const { check } = context
  const object = check.object(value, path)
  const table = TABLES[context.stage]
  const type = check.string(object.type, `${path}.type`)
  if (!Object.hasOwn(table, type)) {
    const known = Object.keys(table).join(', ')
    check.fail(`${path}.type`, `unsupported ${context.stage} ${JSON.stringify(type)}; known are ${known}`)
  }
  const known = table[type]!
  const fields = known.fields ?? {}
  check.object(object, path, [
    'type',
    ...Object.keys(fields),
    ...(known.sequence === undefined ? [] : [known.sequence]),
  ])
  for (const [name, checkField] of Object.entries(fields)) checkField(object[name], `${path}.${name}`, context)
  known.whole?.(object, path, context)
  if (known.sequence === undefined) return
  if (context.depth >= MAX_DEPTH) check.fail(path, `sequences are nested deeper than ${MAX_DEPTH}`)
  const stages = check.array(object[known.sequence], `${path}.${known.sequence}`, MAX_STAGES)
  stages.forEach((stage, i) => {
    checkStage(stage, `${path}.${known.sequence}[${i}]`, { ...context, depth: context.depth + 1 })
  })
}

/** `single` must hold the text (sequence A) once; every special token that is named must be defined with known ids. */
function checkTemplateProcessing(value: JsonObject, path: string, { check, vocabularySize }: StageContext): void {
  const defined = check.object(value.special_tokens, `${path}.special_tokens`)
  for (const [name, entry] of Object.entries(defined)) {
    const at = `${path}.special_tokens[${JSON.stringify(name)}]`
    const token = check.object(entry, at, ['id', 'ids', 'tokens'])
    if (check.string(token.id, `${at}.id`) !== name) check.fail(`${at}.id`, `expected ${JSON.stringify(name)}`)
    const ids = check.array(token.ids, `${at}.ids`, MAX_STAGES)
    ids.forEach((id, i) => void check.integer(id, `${at}.ids[${i}]`, 0, vocabularySize - 1))
    const tokens = check.array(token.tokens, `${at}.tokens`, MAX_STAGES)
    tokens.forEach((text, i) => void check.string(text, `${at}.tokens[${i}]`))
    if (tokens.length !== ids.length) check.fail(at, `${ids.length} ids but ${tokens.length} tokens`)
  }
  for (const [form, sequences] of [
    ['single', 'A'],
    ['pair', 'AB'],
  ] as const) {
    if (form === 'pair' && (value.pair === undefined || value.pair === null)) continue
    const pieces = check.array(value[form], `${path}.${form}`, MAX_STAGES)
    const seen = pieces.map((piece, i) => templatePiece(piece, `${path}.${form}[${i}]`, defined, check)).join('')
    if ([...seen].sort().join('') !== sequences) {
      check.fail(`${path}.${form}`, `expected each of the sequences ${[...sequences].join(', ')} exactly once`)
    }
  }
}

function templatePiece(value: unknown, path: string, defined: JsonObject, check: JsonChecker): string {
  const piece = check.object(value, path, ['SpecialToken', 'Sequence'])
  if (Object.keys(piece).length !== 1) check.fail(path, 'expected exactly one of SpecialToken and Sequence')
  const kind = piece.Sequence === undefined ? 'SpecialToken' : 'Sequence'
  const body = check.object(piece[kind], `${path}.${kind}`, ['id', 'type_id'])
  check.integer(body.type_id, `${path}.${kind}.type_id`, 0, 1)
  if (kind === 'Sequence') return check.oneOf(body.id, `${path}.Sequence.id`, ['A', 'B'])
  const name = check.string(body.id, `${path}.SpecialToken.id`)
  if (!Object.hasOwn(defined, name))
    check.fail(`${path}.SpecialToken.id`, `${JSON.stringify(name)} is not in special_tokens`)
  return ''
}
