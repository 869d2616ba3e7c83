// ONNX models of a few nodes, written by hand: a model is a protobuf message, and protobuf needs only varints and
// length-prefixed fields. Field numbers are those of onnx/onnx.proto (version 1.16).
// https://github.com/onnx/onnx/blob/main/onnx/onnx.proto

export interface OnnxNode {
  op: string
  inputs: readonly string[]
  outputs: readonly string[]
  /** Empty for the standard's own operators. */
  domain?: string
  attributes?: { [name: string]: number | { float: number } }
}

export interface OnnxValue {
  name: string
  shape: readonly number[]
  type: 'float' | 'int64' | 'bool'
}

export interface OnnxGraph {
  nodes: readonly OnnxNode[]
  inputs: readonly OnnxValue[]
  outputs: readonly OnnxValue[]
}

/** The domain of the operators that ONNX Runtime adds. */
export const MICROSOFT = 'com.microsoft'
const IR_VERSION = 8
const OPSETS = { '': 17, [MICROSOFT]: 1 }

const elementTypes = { float: 1, int64: 7, bool: 9 } as const
const attributeTypes = { float: 1, int: 2 } as const

/** A ModelProto with the graph. Whole numbers become int attributes, `{ float }` float ones. */
export function onnxModel(graph: OnnxGraph): Uint8Array {
  const opsets = Object.entries(OPSETS).map(([domain, version]) => message(8, text(1, domain), whole(2, version)))
  return bytes(whole(1, IR_VERSION), ...opsets, message(7, ...graphFields(graph)))
}

function graphFields({ nodes, inputs, outputs }: OnnxGraph): Uint8Array[] {
  return [
    ...nodes.map((node) => message(1, ...nodeFields(node))),
    text(2, 'graph'),
    ...inputs.map((value) => message(11, ...valueFields(value))),
    ...outputs.map((value) => message(12, ...valueFields(value))),
  ]
}

function nodeFields({ op, inputs, outputs, domain = '', attributes = {} }: OnnxNode): Uint8Array[] {
  return [
    ...inputs.map((name) => text(1, name)),
    ...outputs.map((name) => text(2, name)),
    text(4, op),
    ...Object.entries(attributes).map(([name, value]) => message(5, ...attributeFields(name, value))),
    text(7, domain),
  ]
}

function attributeFields(name: string, value: number | { float: number }): Uint8Array[] {
  return typeof value === 'number'
    ? [text(1, name), whole(3, value), whole(20, attributeTypes.int)]
    : [text(1, name), float(2, value.float), whole(20, attributeTypes.float)]
}

function valueFields({ name, shape, type }: OnnxValue): Uint8Array[] {
  const dimensions = shape.map((size) => message(1, whole(1, size)))
  return [text(1, name), message(2, message(1, whole(1, elementTypes[type]), message(2, ...dimensions)))]
}

function bytes(...parts: readonly (Uint8Array | readonly number[])[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}

/** Seven bits a byte, lowest first; a negative number (an axis from the end) as its 64 bits. */
function varint(value: number): number[] {
  const out: number[] = []
  let rest = BigInt.asUintN(64, BigInt(value))
  while (rest >= 128n) {
    out.push(Number(rest & 127n) | 128)
    rest >>= 7n
  }
  out.push(Number(rest))
  return out
}

function whole(field: number, value: number): Uint8Array {
  return bytes(varint(field << 3), varint(value))
}

function float(field: number, value: number): Uint8Array {
  return bytes(varint((field << 3) | 5), new Uint8Array(Float32Array.of(value).buffer))
}

function text(field: number, value: string): Uint8Array {
  const encoded = new TextEncoder().encode(value)
  return bytes(varint((field << 3) | 2), varint(encoded.length), encoded)
}

function message(field: number, ...fields: readonly Uint8Array[]): Uint8Array {
  const content = bytes(...fields)
  return bytes(varint((field << 3) | 2), varint(content.length), content)
}
