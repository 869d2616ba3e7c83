// The forward ops of the table as ONNX graphs, f32. Where ONNX Runtime has a fused operator of its own, that one is
// used: a rival is taken at its best. Operators: https://github.com/microsoft/onnxruntime, docs/ContribOperators.md.
import type { Sample } from '../tensor/index.js'
import { MICROSOFT, type OnnxGraph, type OnnxNode, type OnnxValue } from './rival_onnx_model.js'

type Maker = (sample: Sample) => OnnxGraph | undefined
/** Inputs of type int64 are indices below the number that is given for them. */
export interface OnnxCase extends OnnxGraph {
  indexLimit?: number
}

const size = (sample: Sample, name: string) => Number(sample[name])
const rows = (sample: Sample) => (sample.lead ?? [size(sample, 'N')]).reduce((product, count) => product * count, 1)
const float = (name: string, ...shape: number[]): OnnxValue => ({ name, shape, type: 'float' })

function node(op: string, inputs: string, outputs: string, more: Partial<OnnxNode> = {}): OnnxNode {
  return { op, inputs: inputs.split(' '), outputs: outputs.split(' '), ...more }
}

function unary(op: string): Maker {
  return ({ shapes }) => {
    const shape = shapes!.x!
    return { nodes: [node(op, 'x', 'y')], inputs: [float('x', ...shape)], outputs: [float('y', ...shape)] }
  }
}

function binary(op: string): Maker {
  return ({ shapes }) => {
    const { a, b } = shapes as { a: number[]; b: number[] }
    if (String(a) !== String(b)) return undefined
    return {
      nodes: [node(op, 'a b', 'y')],
      inputs: [float('a', ...a), float('b', ...b)],
      outputs: [float('y', ...a)],
    }
  }
}

/** y = a b, with the operands as they lie in memory: [rows, columns] of each, and which is read transposed. */
function product(
  a: readonly [number, number],
  b: readonly [number, number],
  transposed: { transA?: 1; transB?: 1 },
): OnnxGraph {
  const y = [transposed.transA ? a[1] : a[0], transposed.transB ? b[0] : b[1]]
  return {
    nodes: [node('Gemm', 'a b', 'y', { attributes: transposed })],
    inputs: [float('a', ...a), float('b', ...b)],
    outputs: [float('y', ...y)],
  }
}

function matmul(s: Sample): OnnxGraph {
  const G = size(s, 'G')
  const attributes = { transA: size(s, 'transpose_a'), transB: size(s, 'transpose_b') }
  return {
    nodes: [node('FusedMatMul', 'a b', 'y', { domain: MICROSOFT, attributes })],
    inputs: [float('a', G, size(s, 'A1'), size(s, 'A2')), float('b', G, size(s, 'B1'), size(s, 'B2'))],
    outputs: [float('y', G, size(s, 'I'), size(s, 'P'))],
  }
}

function norm(op: string, withBias: boolean): Maker {
  return (sample) => {
    const [N, D] = [rows(sample), size(sample, 'D')]
    const attributes = { axis: -1, epsilon: { float: Number(sample.eps ?? 1e-6) } }
    return {
      nodes: [node(op, withBias ? 'x w b' : 'x w', 'y', { attributes })],
      inputs: [float('x', N, D), float('w', D), ...(withBias ? [float('b', D)] : [])],
      outputs: [float('y', N, D)],
    }
  }
}

function swiglu(sample: Sample): OnnxGraph {
  const shape = [rows(sample), size(sample, 'F')]
  const silu = node('QuickGelu', 'gate', 'half', { domain: MICROSOFT, attributes: { alpha: { float: 1 } } })
  return {
    nodes: [silu, node('Mul', 'half up', 'y')],
    inputs: [float('gate', ...shape), float('up', ...shape)],
    outputs: [float('y', ...shape)],
  }
}

function embedding(sample: Sample): OnnxCase {
  const [N, V, D] = [size(sample, 'N'), size(sample, 'V'), size(sample, 'D')]
  return {
    nodes: [node('Gather', 'w ids', 'y')],
    inputs: [float('w', V, D), { name: 'ids', shape: [N], type: 'int64' }],
    outputs: [float('y', N, D)],
    indexLimit: V,
  }
}

/** Sequences of one length, keys repeated for every head, as the operator takes them. */
function attention(sample: Sample): OnnxGraph | undefined {
  const [queries, keys] = [new Set(sample.queries as number[]), new Set(sample.keys as number[])]
  if (queries.size !== 1 || keys.size !== 1 || sample.window !== 0) return undefined
  const [T, M] = [[...queries][0]!, [...keys][0]!]
  const [S, H, width] = [size(sample, 'S'), size(sample, 'H'), size(sample, 'H') * size(sample, 'C')]
  if (T > 1 && T !== M) return undefined
  const attributes = { num_heads: H, unidirectional: T > 1 ? 1 : 0, scale: { float: Number(sample.scale) } }
  return {
    nodes: [node('MultiHeadAttention', 'q k v', 'y', { domain: MICROSOFT, attributes })],
    inputs: [float('q', S, T, width), float('k', S, M, width), float('v', S, M, width)],
    outputs: [float('y', S, T, width)],
  }
}

function linearLogprob(sample: Sample): OnnxCase {
  const [N, V, D] = [size(sample, 'N'), size(sample, 'V'), size(sample, 'D')]
  return {
    nodes: [
      node('Gemm', 'hidden head', 'logits', { attributes: { transB: 1 } }),
      node('LogSoftmax', 'logits', 'logp', { attributes: { axis: -1 } }),
      node('GatherElements', 'logp target', 'y', { attributes: { axis: 1 } }),
    ],
    inputs: [float('hidden', N, D), float('head', V, D), { name: 'target', shape: [N, 1], type: 'int64' }],
    outputs: [float('y', N, 1)],
    indexLimit: V,
  }
}

const makers: { [op: string]: Maker } = {
  add: binary('Add'),
  sub: binary('Sub'),
  mul: binary('Mul'),
  div: binary('Div'),
  maximum: binary('Max'),
  neg: unary('Neg'),
  exp: unary('Exp'),
  log: unary('Log'),
  sqrt: unary('Sqrt'),
  sigmoid: unary('Sigmoid'),
  cos: unary('Cos'),
  sin: unary('Sin'),
  tanh: unary('Tanh'),
  linear: (s) => product([rows(s), size(s, 'D')], [size(s, 'F'), size(s, 'D')], { transB: 1 }),
  linear_backward_input: (s) => product([rows(s), size(s, 'F')], [size(s, 'F'), size(s, 'D')], {}),
  linear_backward_weight: (s) => product([rows(s), size(s, 'F')], [rows(s), size(s, 'D')], { transA: 1 }),
  matmul,
  rms_norm: norm('SimplifiedLayerNormalization', false),
  layer_norm: norm('LayerNormalization', true),
  swiglu,
  embedding,
  attention,
  linear_logprob: linearLogprob,
}

/** The graph of `op` at the sizes of a sample; undefined where there is none. */
export function onnxGraph(op: string, sample: Sample): OnnxCase | undefined {
  return makers[op]?.(sample)
}
