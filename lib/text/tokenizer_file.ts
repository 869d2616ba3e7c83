// Reads and validates tokenizer.json. The native library trusts the file and ends the whole process when, say, a merge
// makes a token that the vocabulary lacks; so everything it relies on is checked here, and what it gets is the checked
// value, not the text. Truncation and padding are left out: cutting and joining texts is the caller's decision.
import { CaravanError } from '../base/errors.js'
import { JsonChecker, type JsonObject, jsonErrorOffset } from './json_check.js'
import { checkStages } from './tokenizer_components.js'

/** Largest tokenizer.json that is read; the largest published ones have about 35 MB. */
export const MAX_TOKENIZER_BYTES = 128 * 2 ** 20
const MAX_TOKEN_ID = 2 ** 24 - 1
const MAX_ENTRIES = 2 ** 22

/** A tokenizer.json that the native library can take. */
export interface TokenizerFile {
  /** The value to hand over. */
  json: JsonObject
  /** Id of every token of the vocabulary and every added token. */
  idOf: ReadonlyMap<string, number>
  addedIds: ReadonlyMap<string, number>
  specialIds: ReadonlySet<number>
  /** Largest id + 1. */
  vocabularySize: number
  /** Longest text, in UTF-16 units, that may be encoded. */
  maximumUnits: number
}

const TOP_LEVEL = [
  'version',
  'truncation',
  'padding',
  'added_tokens',
  'normalizer',
  'pre_tokenizer',
  'post_processor',
  'decoder',
  'model',
]

/** Validates the bytes of tokenizer.json; throws ERR_TOKENIZER with `file` and the offset or JSON path of the fault. */
export function parseTokenizerFile(bytes: Uint8Array, file: string): TokenizerFile {
  const check = new JsonChecker(file)
  const root = check.object(parseJson(bytes, file), '$', TOP_LEVEL)
  if (root.version !== undefined) check.oneOf(root.version, 'version', ['1.0'])
  const idOf = new Map<string, number>()
  const model = checkModel(root.model, idOf, check)
  const added = checkAddedTokens(root.added_tokens ?? [], idOf, check)
  let largest = -1
  for (const id of idOf.values()) largest = Math.max(largest, id)
  if (largest < 0) check.fail('model.vocab', 'is empty')
  const facts = checkStages(root, largest + 1, check)
  return {
    json: { ...root, version: '1.0', truncation: null, padding: null, added_tokens: added.json, model },
    idOf,
    addedIds: added.ids,
    specialIds: added.special,
    vocabularySize: largest + 1,
    maximumUnits: facts.maximumUnits,
  }
}

function parseJson(bytes: Uint8Array, file: string): unknown {
  if (bytes.length > MAX_TOKENIZER_BYTES) {
    throw new CaravanError('ERR_TOKENIZER', `${file}: ${bytes.length} bytes; the limit is ${MAX_TOKENIZER_BYTES}`, {
      details: { file, size: bytes.length, limit: MAX_TOKENIZER_BYTES },
    })
  }
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw new CaravanError('ERR_TOKENIZER', `${file}: not UTF-8 text`, { details: { file }, cause })
  }
  try {
    return JSON.parse(text)
  } catch (cause) {
    const position = jsonErrorOffset(text)
    const before = text.slice(0, position)
    const line = before.split('\n').length
    const column = position - before.lastIndexOf('\n')
    const offset = Buffer.byteLength(before)
    throw new CaravanError('ERR_TOKENIZER', `${file}:${line}:${column}: not JSON (byte ${offset})`, {
      details: { file, line, column, offset },
      hint: 'The file may be cut off; copy it again.',
      cause,
    })
  }
}

const BPE_FIELDS = [
  'type',
  'dropout',
  'unk_token',
  'continuing_subword_prefix',
  'end_of_word_suffix',
  'fuse_unk',
  'byte_fallback',
  'ignore_merges',
  'vocab',
  'merges',
]
const WORD_PIECE_FIELDS = ['type', 'unk_token', 'continuing_subword_prefix', 'max_input_chars_per_word', 'vocab']

/** Longer words are the unknown token; shorter ones are looked up in time that grows with the square of the length. */
const MAX_WORD_CHARACTERS = 1000

/** Checks the model, fills `idOf` from its vocabulary, and returns it as the native library takes it. */
function checkModel(value: unknown, idOf: Map<string, number>, check: JsonChecker): JsonObject {
  const model = check.object(value, 'model')
  // Files older than 2020 do not name the type; only BPE models have merges.
  const type = model.type === undefined && model.merges !== undefined ? 'BPE' : check.string(model.type, 'model.type')
  if (type === 'BPE') return checkBpe(model, idOf, check)
  if (type === 'WordPiece') return checkWordPiece(model, idOf, check)
  return check.fail('model.type', `unsupported model ${JSON.stringify(type)}; known are BPE and WordPiece`)
}

/** The model of BERT and its relatives. */
function checkWordPiece(value: JsonObject, idOf: Map<string, number>, check: JsonChecker): JsonObject {
  const model = check.object(value, 'model', WORD_PIECE_FIELDS)
  checkVocabulary(model.vocab, idOf, check)
  const unknown = check.string(model.unk_token, 'model.unk_token')
  if (!idOf.has(unknown)) check.fail('model.unk_token', `${JSON.stringify(unknown)} is not in model.vocab`)
  check.string(model.continuing_subword_prefix, 'model.continuing_subword_prefix', 64)
  check.integer(model.max_input_chars_per_word, 'model.max_input_chars_per_word', 1, MAX_WORD_CHARACTERS)
  return model
}

/** Merges become pairs. */
function checkBpe(value: JsonObject, idOf: Map<string, number>, check: JsonChecker): JsonObject {
  const model = check.object(value, 'model', BPE_FIELDS)
  for (const field of ['fuse_unk', 'byte_fallback', 'ignore_merges']) {
    if (model[field] !== undefined && model[field] !== null) check.boolean(model[field], `model.${field}`)
  }
  if (model.dropout !== undefined && model.dropout !== null && model.dropout !== 0) {
    check.fail(
      'model.dropout',
      `must be null; got ${model.dropout}`,
      'With dropout the same text has different tokens.',
    )
  }
  checkVocabulary(model.vocab, idOf, check)
  const affix = (field: string) => {
    const text = model[field]
    return text === undefined || text === null ? '' : check.string(text, `model.${field}`, 64)
  }
  affix('end_of_word_suffix')
  const unknown = model.unk_token
  if (unknown !== undefined && unknown !== null && !idOf.has(check.string(unknown, 'model.unk_token'))) {
    check.fail('model.unk_token', `${JSON.stringify(unknown)} is not in model.vocab`)
  }
  const merges = checkMerges(model.merges, idOf, affix('continuing_subword_prefix'), check)
  const flags = {
    fuse_unk: model.fuse_unk ?? false,
    byte_fallback: model.byte_fallback ?? false,
    ignore_merges: model.ignore_merges ?? false,
  }
  return { ...model, ...flags, type: 'BPE', dropout: null, merges }
}

function checkVocabulary(value: unknown, idOf: Map<string, number>, check: JsonChecker): void {
  const entries = Object.entries(check.object(value, 'model.vocab'))
  if (entries.length > MAX_ENTRIES)
    check.fail('model.vocab', `has ${entries.length} entries; the limit is ${MAX_ENTRIES}`)
  const tokenOf = new Map<number, string>()
  for (const [token, id] of entries) {
    const path = `model.vocab[${JSON.stringify(token)}]`
    check.string(token, path)
    const number = check.integer(id, path, 0, MAX_TOKEN_ID)
    const other = tokenOf.get(number)
    if (other !== undefined) check.fail(path, `id ${number} is also that of ${JSON.stringify(other)}`)
    tokenOf.set(number, token)
    idOf.set(token, number)
  }
}

/** Merges in either spelling, `"a b"` or `["a", "b"]`, as pairs whose parts and result are in the vocabulary. */
function checkMerges(
  value: unknown,
  idOf: ReadonlyMap<string, number>,
  prefix: string,
  check: JsonChecker,
): [string, string][] {
  return check.array(value, 'model.merges', MAX_ENTRIES).map((merge, i) => {
    const path = `model.merges[${i}]`
    const parts = typeof merge === 'string' ? merge.split(' ') : check.array(merge, path, 2)
    if (parts.length !== 2) check.fail(path, `expected two tokens; got ${JSON.stringify(merge).slice(0, 80)}`)
    const [left, right] = parts.map((part, side) => {
      const token = check.string(part, `${path}[${side}]`)
      if (!idOf.has(token)) check.fail(`${path}[${side}]`, `${JSON.stringify(token)} is not in model.vocab`)
      return token
    }) as [string, string]
    if (!right.startsWith(prefix)) {
      check.fail(
        path,
        `${JSON.stringify(right)} does not start with continuing_subword_prefix ${JSON.stringify(prefix)}`,
      )
    }
    const merged = left + right.slice(prefix.length)
    if (!idOf.has(merged)) check.fail(path, `its result ${JSON.stringify(merged)} is not in model.vocab`)
    return [left, right]
  })
}

const ADDED_FLAGS = ['single_word', 'lstrip', 'rstrip', 'normalized', 'special']

/** Checks the added tokens and puts them into `idOf`. */
function checkAddedTokens(value: unknown, idOf: Map<string, number>, check: JsonChecker) {
  const ids = new Map<string, number>()
  const special = new Set<number>()
  const tokenOf = new Map(Array.from(idOf, ([token, id]) => [id, token]))
  const entries = check.array(value, 'added_tokens', MAX_ENTRIES)
  const json = entries.map((entry, i) => {
    const path = `added_tokens[${i}]`
    const token = check.object(entry, path, ['id', 'content', ...ADDED_FLAGS])
    const content = check.string(token.content, `${path}.content`)
    const id = check.integer(token.id, `${path}.id`, 0, MAX_TOKEN_ID)
    if (content === '') check.fail(`${path}.content`, 'is empty')
    if (ids.has(content)) check.fail(`${path}.content`, `${JSON.stringify(content)} is added twice`)
    const other = tokenOf.get(id)
    if (other !== undefined && other !== content) check.fail(`${path}.id`, `${id} is that of ${JSON.stringify(other)}`)
    const known = idOf.get(content)
    if (known !== undefined && known !== id)
      check.fail(`${path}.id`, `model.vocab gives ${JSON.stringify(content)} id ${known}`)
    const flags: [string, boolean][] = ADDED_FLAGS.map((flag) => {
      return [flag, token[flag] === undefined ? flag === 'special' : check.boolean(token[flag], `${path}.${flag}`)]
    })
    tokenOf.set(id, content)
    idOf.set(content, id)
    ids.set(content, id)
    if (flags.some(([flag, on]) => flag === 'special' && on)) special.add(id)
    return { id, content, ...Object.fromEntries(flags) }
  })
  return { json, ids, special }
}
