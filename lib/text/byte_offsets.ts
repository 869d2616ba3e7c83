// Offsets of a byte-level tokenizer from the lengths of its tokens. The native library gives offsets as an array of
// pairs, which costs as much as encoding; where nothing changes the text before it is cut, they follow from the ids.
import type { JsonObject } from './json_check.js'

/** Bytes of text behind every token id, or undefined when `file` may change, drop or trim text. */
export function tokenByteLengths(file: JsonObject, idOf: ReadonlyMap<string, number>): Uint16Array | undefined {
  const model = file.model as JsonObject
  const affixes = [model.unk_token, model.continuing_subword_prefix, model.end_of_word_suffix]
  if (affixes.some((affix) => affix !== undefined && affix !== null && affix !== '')) return undefined
  if (isSet(file.normalizer) || !splitsIntoBytes(file.pre_tokenizer) || trims(file.post_processor)) return undefined
  let largest = 0
  for (const id of idOf.values()) largest = Math.max(largest, id)
  const lengths = new Uint16Array(largest + 1)
  // In byte-level spelling every character stands for one byte.
  for (const [token, id] of Object.entries(model.vocab as Record<string, number>)) lengths[id] = token.length
  for (const token of file.added_tokens as JsonObject[]) {
    if (token.lstrip || token.rstrip) return undefined
    lengths[token.id as number] = Buffer.byteLength(token.content as string)
  }
  return lengths
}

function isSet(stage: unknown): stage is JsonObject {
  return stage !== undefined && stage !== null
}

/** The stage or, of a sequence, its stages. */
function flatten(stage: unknown, field: string): JsonObject[] {
  if (!isSet(stage)) return []
  if (stage.type !== 'Sequence') return [stage]
  return (stage[field] as unknown[]).flatMap((inner) => flatten(inner, field))
}

function splitsIntoBytes(preTokenizer: unknown): boolean {
  const stages = flatten(preTokenizer, 'pretokenizers')
  const last = stages.pop()
  const keepsAll = ({ type, behavior }: JsonObject) => type === 'Digits' || (type === 'Split' && behavior !== 'Removed')
  return last?.type === 'ByteLevel' && last.add_prefix_space === false && stages.every(keepsAll)
}

function trims(postProcessor: unknown): boolean {
  const keeps = ({ type, trim_offsets }: JsonObject) => {
    return type === 'TemplateProcessing' || (type === 'ByteLevel' && trim_offsets === false)
  }
  return !flatten(postProcessor, 'processors').every(keeps)
}

/**
 * Start and end of each token in UTF-16 units of `text` [2n]; a token that begins or ends inside a character covers it
 * whole. Undefined when the tokens do not add up to the text, for instance because its bytes are not all in the
 * vocabulary.
 */
export function offsetsFromLengths(ids: Int32Array, text: string, lengths: Uint16Array): Uint32Array | undefined {
  const offsets = new Uint32Array(2 * ids.length)
  const { starts, ends } = byteUnits(text)
  const bytes = starts?.length ?? text.length
  let at = 0
  for (let token = 0; token < ids.length; token++) {
    const next = at + lengths[ids[token]!]!
    if (next === at || next > bytes) return undefined
    offsets[2 * token] = starts === undefined ? at : starts[at]!
    offsets[2 * token + 1] = ends === undefined ? next : ends[next - 1]!
    at = next
  }
  return at === bytes ? offsets : undefined
}

interface ByteUnits {
  starts: Uint32Array | undefined
  ends: Uint32Array | undefined
}

/** For every UTF-8 byte of `text` where its character starts and ends; undefined when all are single bytes. */
function byteUnits(text: string): ByteUnits {
  const bytes = Buffer.byteLength(text)
  if (bytes === text.length) return { starts: undefined, ends: undefined }
  const starts = new Uint32Array(bytes)
  const ends = new Uint32Array(bytes)
  let byte = 0
  for (let unit = 0; unit < text.length; ) {
    const point = text.codePointAt(unit)!
    const width = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4
    const end = unit + (width === 4 ? 2 : 1)
    starts.fill(unit, byte, byte + width)
    ends.fill(end, byte, byte + width)
    byte += width
    unit = end
  }
  return { starts, ends }
}
