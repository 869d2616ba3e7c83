// Writes small ONNX graphs by hand (protobuf, field numbers of onnx.proto3), for tests of classifiers.

/** A field of a message: a varint, or bytes (text, a message, raw data). */
function field(number: number, value: number | string | Uint8Array): Buffer {
  if (typeof value === 'number') return Buffer.concat([varint(number << 3), varint(value)])
  const bytes = Buffer.from(value as Uint8Array)
  return Buffer.concat([varint((number << 3) | 2), varint(bytes.length), bytes])
}

function varint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  for (; rest > 127; rest = Math.floor(rest / 128)) bytes.push((rest % 128) + 128)
  return Buffer.from([...bytes, rest])
}

const message = (...fields: Buffer[]): Buffer => Buffer.concat(fields)

const FLOAT = 1
const INT64 = 7

interface Attribute {
  name: string
  int: number
}

function node(type: string, inputs: string[], output: string, attributes: Attribute[] = []): Buffer {
  return field(
    1,
    message(
      ...inputs.map((input) => field(1, input)),
      field(2, output),
      field(4, type),
      ...attributes.map(({ name, int }) => field(5, message(field(1, name), field(3, int), field(20, 2)))),
    ),
  )
}

function constant(name: string, shape: number[], values: Float32Array | BigInt64Array): Buffer {
  const type = values instanceof Float32Array ? FLOAT : INT64
  const raw = new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
  return field(5, message(...shape.map((size) => field(1, size)), field(2, type), field(8, name), field(9, raw)))
}

function port(number: 11 | 12, name: string, type: number, shape: (string | number)[]): Buffer {
  const dims = shape.map((size) => field(1, typeof size === 'number' ? field(1, size) : field(2, size)))
  const tensor = message(field(1, type), field(2, message(...dims)))
  return field(number, message(field(1, name), field(2, field(1, tensor))))
}

export interface ClassifierWeights {
  /** [V, D] */
  tokens: Float32Array
  /** [2, D], of the segment; the graph has the input token_type_ids then. */
  segments?: Float32Array
  /** [D, N] */
  head: Float32Array
  vocabulary: number
  width: number
  labels: number
}

/** logits = mean over unmasked tokens of (tokens[id] + segments[type]) @ head, opset 13. */
export function classifierGraph(weights: ClassifierWeights, inputNames: Record<string, string> = {}): Buffer {
  const { tokens, segments, head, vocabulary, width, labels } = weights
  const name = (input: string) => inputNames[input] ?? input
  const batch = ['B', 'S']
  const graph = message(
    node('Gather', ['tokens', name('input_ids')], 'embedded'),
    ...(segments === undefined
      ? [node('Identity', ['embedded'], 'summed')]
      : [node('Gather', ['segments', name('token_type_ids')], 'kinds'), node('Add', ['embedded', 'kinds'], 'summed')]),
    node('Cast', [name('attention_mask')], 'mask', [{ name: 'to', int: FLOAT }]),
    node('Unsqueeze', ['mask', 'two'], 'column'),
    node('Mul', ['summed', 'column'], 'masked'),
    node('ReduceSum', ['masked', 'one'], 'total', [{ name: 'keepdims', int: 0 }]),
    node('ReduceSum', ['column', 'one'], 'count', [{ name: 'keepdims', int: 0 }]),
    node('Div', ['total', 'count'], 'mean'),
    node('MatMul', ['mean', 'head'], 'logits'),
    field(2, 'classifier'),
    constant('tokens', [vocabulary, width], tokens),
    ...(segments === undefined ? [] : [constant('segments', [2, width], segments)]),
    constant('head', [width, labels], head),
    constant('one', [1], BigInt64Array.of(1n)),
    constant('two', [1], BigInt64Array.of(2n)),
    port(11, name('input_ids'), INT64, batch),
    port(11, name('attention_mask'), INT64, batch),
    ...(segments === undefined ? [] : [port(11, name('token_type_ids'), INT64, batch)]),
    port(12, 'logits', FLOAT, ['B', labels]),
  )
  return message(field(1, 8), field(7, graph), field(8, message(field(1, ''), field(2, 13))))
}
