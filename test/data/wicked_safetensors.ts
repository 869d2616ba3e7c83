// Hand-made hostile safetensors files, each with what its error must say. Shared by the tests of the reader and the
// fuzz.

export interface WickedFile {
  name: string
  bytes: Uint8Array
  /** In the message of the error. */
  says: RegExp
  /** Byte offset that the error must name, where the case pins it down. */
  offset?: number
  tensor?: string
}

/** A file with this header text (bytes or string) and this many data bytes; `length` overrides the length field. */
export function makeFile(header: string | Uint8Array, dataBytes = 0, length?: bigint): Uint8Array {
  const json = Buffer.from(header as string)
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(length ?? BigInt(json.length))
  return Buffer.concat([prefix, json, Buffer.alloc(dataBytes)])
}

function entry(dtype: string, shape: string, begin: number | string, end: number | string): string {
  return `{"dtype":"${dtype}","shape":${shape},"data_offsets":[${begin},${end}]}`
}

const ok = entry('F32', '[2]', 0, 8)
const invalidUtf8 = Buffer.concat([Buffer.from('{"'), Buffer.from([0xff, 0xfe]), Buffer.from(`":${ok}}`)])

export const WICKED: WickedFile[] = [
  { name: 'empty file', bytes: new Uint8Array(0), says: /ends here; expected 8/, offset: 0 },
  { name: 'seven bytes', bytes: new Uint8Array(7), says: /ends here; expected 8/, offset: 7 },
  { name: 'length 0', bytes: makeFile('{}', 0, 0n), says: /at least 2; got 0/, offset: 0 },
  { name: 'length 1', bytes: makeFile('{}', 0, 1n), says: /at least 2; got 1/, offset: 0 },
  { name: 'length one too large', bytes: makeFile('{}', 0, 3n), says: /must fit in the file of 10 bytes; got 3/ },
  {
    name: 'length 2^64-1',
    bytes: makeFile('{}', 0, 2n ** 64n - 1n),
    says: /at most 100000000; got 18446744073709551615/,
  },
  { name: 'length 2^63', bytes: makeFile('{}', 0, 2n ** 63n), says: /got 9223372036854775808/ },
  { name: 'length 2^53+1', bytes: makeFile('{}', 0, 2n ** 53n + 1n), says: /at most 100000000/ },
  { name: 'length just over the limit', bytes: makeFile('{}', 0, 100_000_001n), says: /at most 100000000/ },
  { name: 'length cuts the header', bytes: makeFile(`{"a":${ok}}`, 8, 20n), says: /not closed|got the end/ },
  { name: 'pickle', bytes: Buffer.from('80027d71002e8002', 'hex'), says: /header length must be/ },
  { name: 'zip', bytes: Buffer.from('PK\x03\x04 and so on and on'), says: /header length must be/ },
  { name: 'not an object', bytes: makeFile('[]'), says: /begin with `\{`/, offset: 8 },
  { name: 'leading space', bytes: makeFile(' {}'), says: /begin with `\{`/, offset: 8 },
  { name: 'byte order mark', bytes: makeFile('\ufeff{}'), says: /begin with `\{`/, offset: 8 },
  { name: 'text after the header', bytes: makeFile('{} x'), says: /expected the end, got `x`/, offset: 11 },
  { name: 'NUL padding', bytes: makeFile('{}\0\0'), says: /expected the end/, offset: 10 },
  { name: 'second object', bytes: makeFile('{}{}'), says: /expected the end/, offset: 10 },
  { name: 'unclosed object', bytes: makeFile('{"a":'), says: /expected `\{`, got the end/ },
  { name: 'unclosed string', bytes: makeFile('{"abc'), says: /string is not closed/ },
  { name: 'escape at the end', bytes: makeFile('{"abc\\'), says: /string is not closed/ },
  { name: 'trailing comma', bytes: makeFile(`{"a":${ok},}`, 8), says: /expected a string, got `\}`/ },
  { name: 'missing colon', bytes: makeFile(`{"a" ${ok}}`, 8), says: /expected `:`/, offset: 13 },
  { name: 'single quotes', bytes: makeFile(`{'a':1}`), says: /expected a string/, offset: 9 },
  { name: 'invalid UTF-8', bytes: makeFile(invalidUtf8, 8), says: /not valid UTF-8/, offset: 9 },
  { name: 'control character in a name', bytes: makeFile(`{"a\nb":${ok}}`, 8), says: /control character/, offset: 11 },
  { name: 'bad escape', bytes: makeFile(`{"a\\x":${ok}}`, 8), says: /valid escapes/, offset: 9 },
  { name: 'lone surrogate', bytes: makeFile(`{"\\ud800":${ok}}`, 8), says: /surrogate/, offset: 9 },
  { name: 'duplicate tensor', bytes: makeFile(`{"a":${ok},"a":${ok}}`, 8), says: /key "a" occurs twice/ },
  { name: 'duplicate by escape', bytes: makeFile(`{"a":${ok},"\\u0061":${ok}}`, 8), says: /key "a" occurs twice/ },
  {
    name: 'duplicate metadata',
    bytes: makeFile('{"__metadata__":{},"__metadata__":{}}'),
    says: /occurs twice/,
    offset: 27,
  },
  {
    name: 'duplicate metadata key',
    bytes: makeFile('{"__metadata__":{"k":"1","k":"2"}}'),
    says: /key "k" occurs twice/,
  },
  { name: 'duplicate dtype', bytes: makeFile(`{"a":{"dtype":"F32","dtype":"U8"}}`), says: /key "dtype" occurs twice/ },
  { name: 'metadata not an object', bytes: makeFile('{"__metadata__":[]}'), says: /expected `\{`/ },
  { name: 'metadata value not a string', bytes: makeFile('{"__metadata__":{"a":1}}'), says: /expected a string/ },
  { name: 'entry not an object', bytes: makeFile('{"a":null}'), says: /expected `\{`, got `null\}`/ },
  {
    name: 'nested 100000 deep',
    bytes: makeFile(`{"a":${'{"b":'.repeat(100_000)}`),
    says: /unknown key "b"/,
    tensor: 'a',
  },
  {
    name: 'array nested deep in shape',
    bytes: makeFile(`{"a":{"shape":${'['.repeat(100_000)}`),
    says: /must be an integer/,
  },
  {
    name: 'unknown key',
    bytes: makeFile(`{"a":{"dtype":"U8","strides":[1]}}`),
    says: /unknown key "strides"/,
    tensor: 'a',
  },
  {
    name: 'missing dtype',
    bytes: makeFile('{"a":{"shape":[],"data_offsets":[0,0]}}'),
    says: /`dtype` is missing/,
    tensor: 'a',
  },
  {
    name: 'missing shape',
    bytes: makeFile('{"a":{"dtype":"U8","data_offsets":[0,0]}}'),
    says: /`shape` is missing/,
    tensor: 'a',
  },
  {
    name: 'missing offsets',
    bytes: makeFile('{"a":{"dtype":"U8","shape":[0]}}'),
    says: /`data_offsets` is missing/,
    tensor: 'a',
  },
  {
    name: 'unknown dtype',
    bytes: makeFile(`{"a":${entry('FLOAT32', '[2]', 0, 8)}}`, 8),
    says: /unknown dtype "FLOAT32"/,
  },
  {
    name: 'lower-case dtype',
    bytes: makeFile(`{"a":${entry('bf16', '[2]', 0, 4)}}`, 4),
    says: /nearest known is BF16/,
  },
  { name: 'prototype dtype', bytes: makeFile(`{"a":${entry('constructor', '[2]', 0, 8)}}`, 8), says: /unknown dtype/ },
  {
    name: 'negative size',
    bytes: makeFile(`{"a":${entry('F32', '[-2]', 0, 8)}}`, 8),
    says: /integer in \[0, 2\^53\), got `-2/,
  },
  { name: 'fractional size', bytes: makeFile(`{"a":${entry('F32', '[2.0]', 0, 8)}}`, 8), says: /must be an integer/ },
  { name: 'exponent size', bytes: makeFile(`{"a":${entry('F32', '[2e0]', 0, 8)}}`, 8), says: /must be an integer/ },
  { name: 'NaN size', bytes: makeFile(`{"a":${entry('F32', '[NaN]', 0, 8)}}`, 8), says: /got `NaN/ },
  { name: 'string size', bytes: makeFile(`{"a":${entry('F32', '["2"]', 0, 8)}}`, 8), says: /must be an integer/ },
  { name: 'leading zero', bytes: makeFile(`{"a":${entry('F32', '[02]', 0, 8)}}`, 8), says: /leading zero/ },
  {
    name: 'size 2^64',
    bytes: makeFile(`{"a":${entry('U8', '[18446744073709551616]', 0, 0)}}`),
    says: /must be an integer/,
  },
  {
    name: 'size 2^53',
    bytes: makeFile(`{"a":${entry('U8', '[9007199254740992]', 0, 0)}}`),
    says: /must be an integer/,
  },
  {
    name: 'product overflows',
    bytes: makeFile(`{"a":${entry('F32', '[4294967296,4294967296]', 0, 0)}}`),
    says: /below 2\^50/,
  },
  {
    name: 'product wraps to 0',
    bytes: makeFile(`{"a":${entry('U8', '[4294967296,4294967296,0]', 0, 0)}}`),
    says: /below 2\^50/,
  },
  {
    name: 'rank 33',
    bytes: makeFile(`{"a":${entry('U8', `[${Array(33).fill(1)}]`, 0, 1)}}`, 1),
    says: /more than 32 numbers/,
  },
  { name: 'shape not a list', bytes: makeFile(`{"a":${entry('U8', '1', 0, 1)}}`, 1), says: /expected `\[`/ },
  {
    name: 'one offset',
    bytes: makeFile('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0]}}'),
    says: /\[begin, end\]/,
  },
  {
    name: 'three offsets',
    bytes: makeFile('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}}'),
    says: /more than 2/,
  },
  {
    name: 'end before begin',
    bytes: makeFile(`{"a":${entry('U8', '[0]', 4, 0)}}`, 4),
    says: /begin <= end; got \[4, 0\]/,
  },
  {
    name: 'odd bytes for BF16',
    bytes: makeFile(`{"a":${entry('BF16', '[2]', 0, 3)}}`, 3),
    says: /BF16\[2\] takes 4 bytes; data_offsets give 3/,
  },
  {
    name: 'half a byte of F4',
    bytes: makeFile(`{"a":${entry('F4', '[3]', 0, 2)}}`, 2),
    says: /not a whole number of bytes/,
  },
  {
    name: 'shape smaller than its bytes',
    bytes: makeFile(`{"a":${entry('F32', '[1]', 0, 8)}}`, 8),
    says: /takes 4 bytes/,
    tensor: 'a',
  },
  {
    name: 'overlap',
    bytes: makeFile(`{"a":${ok},"b":${entry('F32', '[2]', 4, 12)}}`, 12),
    says: /inside tensor "a"/,
    tensor: 'b',
  },
  { name: 'same bytes twice', bytes: makeFile(`{"a":${ok},"b":${ok}}`, 8), says: /inside tensor "a"/, tensor: 'b' },
  {
    name: 'hole at the start',
    bytes: makeFile(`{"a":${entry('U8', '[1]', 1, 2)}}`, 2),
    says: /belong to no tensor/,
    tensor: 'a',
  },
  {
    name: 'hole between',
    bytes: makeFile(`{"a":${ok},"b":${entry('U8', '[1]', 9, 10)}}`, 10),
    says: /belong to no tensor/,
    tensor: 'b',
  },
  { name: 'data after the last tensor', bytes: makeFile(`{"a":${ok}}`, 9), says: /1 bytes from here/, offset: 70 },
  { name: 'data but no tensor', bytes: makeFile('{}', 4), says: /4 bytes from here/, offset: 10 },
  { name: 'data cut off', bytes: makeFile(`{"a":${ok}}`, 7), says: /after the end of the file/, tensor: 'a' },
  {
    name: 'offset at 2^53-1',
    bytes: makeFile(`{"a":${entry('U8', '[0]', 9007199254740991, 9007199254740991)}}`),
    says: /belong to no tensor/,
  },
]
