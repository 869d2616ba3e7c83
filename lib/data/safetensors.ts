// Reads the safetensors format: 8-byte little-endian header length, JSON header, raw data. Only the header is read
// here; the data is mapped by the native side from the absolute offsets given. Stricter than the reference reader in
// two points: duplicate keys and anything before the opening brace are refused, as either can hide a second meaning.
import { CaravanError, nearestName } from '../base/errors.js'
import { JsonScanner, quote } from './json_scanner.js'
import { openRegularFile, readExactly, truncated } from './regular_file.js'

/** Bits per element of every element type of the format, in the reference writer's order of alignment. */
export const SAFETENSORS_DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const

export type SafetensorsDtype = keyof typeof SAFETENSORS_DTYPE_BITS

export const MAX_HEADER_BYTES = 100_000_000
const MAX_RANK = 32
const LENGTH_BYTES = 8

/** One tensor inside a file; `byteOffset` counts from the start of the file. */
export interface TensorEntry {
  dtype: SafetensorsDtype
  shape: number[]
  byteOffset: number
  byteLength: number
}

export interface SafetensorsFile {
  path: string
  /** In the order in which the header lists them. */
  tensors: Map<string, TensorEntry>
  metadata: Map<string, string>
  /** Where the data begins: 8 plus the header's length. */
  dataOffset: number
  fileBytes: number
}

/**
 * Reads and checks the header of a safetensors file without touching its data. ERR_FORMAT (details: file, offset,
 * tensor) for anything that is not exactly the format, ERR_FILE when the file cannot be read.
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  if (/\.(bin|pt|pth|ckpt|pkl)$/.test(path)) throw pickleRefused(path)
  const { handle, size } = await openRegularFile(path)
  try {
    const prefix = await readExactly(handle, path, { at: 0, length: Math.min(LENGTH_BYTES, size) })
    const headerBytes = headerLength(path, prefix, size)
    return parseHeader(path, await readExactly(handle, path, { at: LENGTH_BYTES, length: headerBytes }), size)
  } finally {
    await handle.close()
  }
}

/** Checks a whole file held in memory; `path` is only for messages. Same rules and errors as openSafetensors. */
export function parseSafetensors(path: string, bytes: Uint8Array): SafetensorsFile {
  const headerBytes = headerLength(path, bytes.subarray(0, LENGTH_BYTES), bytes.byteLength)
  return parseHeader(path, bytes.subarray(LENGTH_BYTES, LENGTH_BYTES + headerBytes), bytes.byteLength)
}

/** A copy of one tensor's bytes, for tools and tests; ERR_FORMAT when the file has shrunk since its header was read. */
export async function readTensorBytes(path: string, entry: TensorEntry): Promise<Uint8Array> {
  const { handle } = await openRegularFile(path)
  try {
    return await readExactly(handle, path, { at: entry.byteOffset, length: entry.byteLength })
  } finally {
    await handle.close()
  }
}

/** Bytes that `shape` elements of `dtype` take, or undefined when that is not a whole number below 2^50. */
export function tensorBytes(dtype: SafetensorsDtype, shape: readonly number[]): number | undefined {
  let bits: number = SAFETENSORS_DTYPE_BITS[dtype]
  for (const size of shape) {
    bits *= size
    if (!Number.isSafeInteger(bits)) return undefined
  }
  return bits % 8 === 0 ? bits / 8 : undefined
}

/** The refusal of a pickle checkpoint: loading one can run any code. */
export function pickleRefused(path: string): CaravanError {
  return new CaravanError('ERR_FORMAT', `${path}: byte 0: pickle checkpoints are not read, because they can run code`, {
    details: { file: path, offset: 0 },
    hint: 'convert it to safetensors where you trust it: `model.save_pretrained(dir, safe_serialization=True)`',
  })
}

function headerLength(path: string, prefix: Uint8Array, size: number): number {
  if (size < LENGTH_BYTES) throw truncated(path, size, LENGTH_BYTES)
  const length = Buffer.from(prefix.buffer, prefix.byteOffset, LENGTH_BYTES).readBigUInt64LE()
  const fault = (rule: string, hint: string) =>
    new CaravanError('ERR_FORMAT', `${path}: byte 0: the header length ${rule}; got ${length}`, {
      details: { file: path, offset: 0, headerBytes: String(length) },
      hint,
    })
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw fault(`must be at most ${MAX_HEADER_BYTES}`, 'this is not a safetensors file, or its start is damaged')
  }
  if (length < 2n) throw fault('must be at least 2', 'this is not a safetensors file, or its start is damaged')
  if (Number(length) > size - LENGTH_BYTES) {
    throw fault(`must fit in the file of ${size} bytes`, 'the file is incomplete: copy or download it again')
  }
  return Number(length)
}

interface Placed {
  name: string
  entry: TensorEntry
  /** Where the header speaks of it, for messages. */
  headerOffset: number
}

function parseHeader(path: string, header: Uint8Array, fileBytes: number): SafetensorsFile {
  const dataOffset = LENGTH_BYTES + header.byteLength
  const scanner = new JsonScanner(path, header, LENGTH_BYTES)
  if (header[0] !== 0x7b) throw scanner.fault('the header must begin with `{`')
  const file: SafetensorsFile = { path, tensors: new Map(), metadata: new Map(), dataOffset, fileBytes }
  const placed: Placed[] = []
  scanner.object((name, headerOffset) => {
    if (name === '__metadata__') {
      scanner.object((key) => file.metadata.set(key, scanner.string()))
      return
    }
    const entry = parseEntry(scanner, name, headerOffset)
    entry.byteOffset += dataOffset
    file.tensors.set(name, entry)
    placed.push({ name, entry, headerOffset })
  })
  scanner.end()
  checkCoverage(scanner, placed, { dataOffset, fileBytes })
  return file
}

/** Reads `{dtype, shape, data_offsets}`; `byteOffset` of the result is still relative to the data section. */
function parseEntry(scanner: JsonScanner, name: string, headerOffset: number): TensorEntry {
  let dtype: SafetensorsDtype | undefined
  let shape: number[] | undefined
  let span: number[] | undefined
  scanner.object((key, offset) => {
    if (key === 'dtype') dtype = parseDtype(scanner, name)
    else if (key === 'shape') shape = parseIntegers(scanner, name, { what: 'a size in shape', limit: MAX_RANK })
    else if (key === 'data_offsets') span = parseIntegers(scanner, name, { what: 'a data offset', limit: 2 })
    else throw scanner.fault(`tensor ${quote(name)}: unknown key ${quote(key)}`, offset, { tensor: name })
  })
  const fault = (message: string, details: Record<string, unknown> = {}) =>
    scanner.fault(`tensor ${quote(name)}: ${message}`, headerOffset, { tensor: name, ...details })
  if (dtype === undefined || shape === undefined || span === undefined) {
    const missing = dtype === undefined ? 'dtype' : shape === undefined ? 'shape' : 'data_offsets'
    throw fault(`\`${missing}\` is missing`)
  }
  const [begin, end] = span
  if (begin === undefined || end === undefined || begin > end) {
    throw fault(`data_offsets must be [begin, end] with begin <= end; got [${span.join(', ')}]`)
  }
  const expected = tensorBytes(dtype, shape)
  if (expected === undefined) {
    throw fault(`${dtype}[${shape.join(',')}] is not a whole number of bytes below 2^50`)
  }
  if (end - begin !== expected) {
    throw fault(`${dtype}[${shape.join(',')}] takes ${expected} bytes; data_offsets give ${end - begin}`, { expected })
  }
  return { dtype, shape, byteOffset: begin, byteLength: expected }
}

function parseDtype(scanner: JsonScanner, tensor: string): SafetensorsDtype {
  scanner.skipWhitespace()
  const offset = scanner.offset
  const name = scanner.string()
  if (Object.hasOwn(SAFETENSORS_DTYPE_BITS, name)) return name as SafetensorsDtype
  const near = name.length <= 32 ? nearestName(name, Object.keys(SAFETENSORS_DTYPE_BITS)) : undefined
  const suggestion = near === undefined ? '' : `; the nearest known is ${near}`
  throw scanner.fault(`tensor ${quote(tensor)}: unknown dtype ${quote(name)}${suggestion}`, offset, { tensor })
}

function parseIntegers(scanner: JsonScanner, tensor: string, rule: { what: string; limit: number }): number[] {
  const values: number[] = []
  scanner.array((index) => {
    if (index >= rule.limit) throw scanner.fault(`tensor ${quote(tensor)}: more than ${rule.limit} numbers`)
    values.push(scanner.unsignedInteger(`tensor ${quote(tensor)}: ${rule.what}`))
  })
  return values
}

/**
 * The tensors, in order of offset, must cover the data section exactly: no overlap, no hole, nothing after the last.
 */
function checkCoverage(
  scanner: JsonScanner,
  placed: Placed[],
  bounds: { dataOffset: number; fileBytes: number },
): void {
  placed.sort((a, b) => a.entry.byteOffset - b.entry.byteOffset || a.entry.byteLength - b.entry.byteLength)
  let expected = bounds.dataOffset
  let previous = ''
  for (const { name, entry, headerOffset } of placed) {
    const details = { tensor: name, byteOffset: entry.byteOffset }
    const subject = `tensor ${quote(name)} begins at byte ${entry.byteOffset} of the file`
    if (entry.byteOffset < expected) {
      const clash = `${subject}, inside tensor ${quote(previous)}, which ends at ${expected}`
      throw scanner.fault(clash, headerOffset, { ...details, overlaps: previous })
    }
    if (entry.byteOffset > expected) {
      throw scanner.fault(`${subject}, and bytes from ${expected} on belong to no tensor`, headerOffset, details)
    }
    expected += entry.byteLength
    if (expected > bounds.fileBytes) {
      const end = `tensor ${quote(name)} ends at byte ${expected}, after the end of the file at ${bounds.fileBytes}`
      const fault = scanner.fault(end, headerOffset, details)
      throw new CaravanError(fault.code, fault.message, {
        details: fault.details,
        hint: 'the file is incomplete: copy or download it again',
      })
    }
    previous = name
  }
  if (expected !== bounds.fileBytes) {
    const message = `${bounds.fileBytes - expected} bytes from here to the end of the file belong to no tensor`
    throw scanner.fault(message, expected)
  }
}
