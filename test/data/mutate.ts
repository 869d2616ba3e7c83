// Seeded mutations of files, for fuzzing parsers: the kinds of damage that disks, networks and enemies do.
import type { Random } from '../../lib/base/random.js'

const INTERESTING = [0, 1, 2, 0x20, 0x22, 0x2c, 0x30, 0x39, 0x5b, 0x5c, 0x5d, 0x7b, 0x7d, 0x7f, 0x80, 0xc0, 0xfe, 0xff]
const TOKENS = [
  '{',
  '}',
  '[',
  ']',
  '"',
  ',',
  ':',
  '\\',
  '\n',
  '\0',
  '-1',
  '1e9',
  '9007199254740993',
  'null',
  '\ufeff',
  '\\ud800',
  'F32',
  '[[[[[[[[',
]

/** A copy of `original` with one to four mutations. */
export function mutate(original: Uint8Array, random: Random): Uint8Array {
  let bytes = Buffer.from(original)
  const times = random.integer(1, 5)
  for (let i = 0; i < times; i++) bytes = mutateOnce(bytes, random)
  return bytes
}

function mutateOnce(bytes: Buffer, random: Random): Buffer<ArrayBuffer> {
  const at = random.integer(0, bytes.length + 1)
  const end = Math.min(bytes.length, at + random.integer(1, 40))
  const copy = Buffer.from(bytes)
  switch (random.integer(0, 8)) {
    case 0: // flip a bit
      if (at < copy.length) copy[at]! ^= 1 << random.integer(0, 8)
      return copy
    case 1: // put a telling byte
      if (at < copy.length) copy[at] = random.choice(INTERESTING)
      return copy
    case 2: // cut off the end
      return Buffer.from(copy.subarray(0, at))
    case 3: // remove a stretch
      return Buffer.concat([copy.subarray(0, at), copy.subarray(end)])
    case 4: // repeat a stretch
      return Buffer.concat([copy.subarray(0, end), copy.subarray(at)])
    case 5: // insert a token
      return Buffer.concat([copy.subarray(0, at), Buffer.from(random.choice(TOKENS)), copy.subarray(at)])
    case 6: // change a digit, so that the file stays well-formed
      return changeDigit(copy, at, random)
    default: // overwrite a stretch by another one
      copy.copy(copy, at, random.integer(0, copy.length + 1), random.integer(0, copy.length + 1))
      return copy
  }
}

function changeDigit(bytes: Buffer<ArrayBuffer>, from: number, random: Random): Buffer<ArrayBuffer> {
  for (let at = from; at < bytes.length; at++) {
    if (bytes[at]! < 0x30 || bytes[at]! > 0x39) continue
    bytes[at] = 0x30 + random.integer(0, 10)
    break
  }
  return bytes
}
