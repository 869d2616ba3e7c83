// Rivals: the hand-written ONNX models, byte by byte and, where the package is installed, by running them; and a
// rival that is not there.
import { describe, expect, it } from 'vitest'
import { optionalPackage, startRivals } from '../../lib/cli/rival.js'
import { onnxGraph } from '../../lib/cli/rival_onnx_graphs.js'
import { onnxModel } from '../../lib/cli/rival_onnx_model.js'
import { declaredOps } from '../../lib/tensor/index.js'
import '../../lib/ops/index.js'

interface Runtime {
  InferenceSession: {
    create(model: Uint8Array, options: object): Promise<{ run(inputs: object): Promise<{ y: { data: Float32Array } }> }>
  }
  Tensor: new (type: string, data: Float32Array | BigInt64Array, shape: readonly number[]) => object
}

const runtime = await optionalPackage<Runtime>('onnxruntime-node')

/** y of the graph of an op. */
async function yOf(op: string, sample: object, inputs: { [name: string]: number[] | bigint[] }): Promise<number[]> {
  const { InferenceSession, Tensor } = runtime!
  const graph = onnxGraph(op, sample as never)!
  const session = await InferenceSession.create(onnxModel(graph), { logSeverityLevel: 4 })
  const tensors = Object.fromEntries(
    graph.inputs.map(({ name, type, shape }) => {
      const values = inputs[name]!
      return type === 'int64'
        ? [name, new Tensor('int64', BigInt64Array.from(values as bigint[]), shape)]
        : [name, new Tensor('float32', Float32Array.from(values as number[]), shape)]
    }),
  )
  return [...(await session.run(tensors)).y.data]
}

describe('ONNX models', () => {
  it('are protobuf messages, byte by byte', () => {
    const model = onnxModel({
      nodes: [{ op: 'Exp', inputs: ['x'], outputs: ['y'], attributes: { axis: -1, eps: { float: 1 } } }],
      inputs: [{ name: 'x', shape: [300], type: 'float' }],
      outputs: [],
    })
    // Worked out by hand from onnx.proto: (field << 3 | wire type), length, content.
    const expected = [
      '08 08', // ir_version 8
      '42 04 0a 00 10 11', // opset_import { domain "", version 17 }
      '42 11 0a 0d 63 6f 6d 2e 6d 69 63 72 6f 73 6f 66 74 10 01', // { "com.microsoft", 1 }
      '3a 4d', // graph
      '0a 32 0a 01 78 12 01 79 22 03 45 78 70', // node { input "x", output "y", op_type "Exp"
      '2a 14 0a 04 61 78 69 73 18 ff ff ff ff ff ff ff ff ff 01 a0 01 02', // attribute { "axis", i -1, type INT }
      '2a 0d 0a 03 65 70 73 15 00 00 80 3f a0 01 01', // attribute { "eps", f 1.0, type FLOAT }
      '3a 00', // domain "" }
      '12 05 67 72 61 70 68', // name "graph"
      '5a 10 0a 01 78 12 0b 0a 09 08 01 12 05 0a 03 08 ac 02', // input { "x", tensor { FLOAT, [300] } }
    ]
    const hex = Buffer.from(model).toString('hex').replaceAll(/../g, '$& ').trim()
    expect(hex).toBe(expected.join(' '))
  })

  it('exist only for what the op means the same in', () => {
    const sample = { S: 2, H: 2, K: 1, C: 4, queries: [4, 2], keys: [4, 2], scale: 1, window: 0 }
    expect(onnxGraph('attention', sample)).toBeUndefined()
    expect(onnxGraph('attention', { ...sample, queries: [4, 4], keys: [4, 4] })).toBeDefined()
    expect(onnxGraph('attention', { ...sample, queries: [4, 4], keys: [4, 4], window: 2 })).toBeUndefined()
    expect(onnxGraph('adamw', {})).toBeUndefined()
  })
})

describe.skipIf(!runtime)('ONNX models, run (skipped where onnxruntime-node is not installed)', () => {
  it('compute products in every layout', async () => {
    // x = [[1, 2]], w = [[3, 4], [5, 6], [7, 8]].
    const sizes = { lead: [1], D: 2, F: 3 }
    expect(await yOf('linear', sizes, { a: [1, 2], b: [3, 4, 5, 6, 7, 8] })).toEqual([11, 17, 23])
    // dy = [[1, 2, 3]]: dy w and dy^T x.
    expect(await yOf('linear_backward_input', sizes, { a: [1, 2, 3], b: [3, 4, 5, 6, 7, 8] })).toEqual([34, 40])
    expect(await yOf('linear_backward_weight', sizes, { a: [1, 2, 3], b: [1, 2] })).toEqual([1, 2, 2, 4, 3, 6])
    const batch = { G: 1, A1: 1, A2: 2, B1: 2, B2: 2, I: 1, P: 2, transpose_a: 0 }
    expect(await yOf('matmul', { ...batch, transpose_b: 1 }, { a: [1, 2], b: [3, 4, 5, 6] })).toEqual([11, 17])
    expect(await yOf('matmul', { ...batch, transpose_b: 0 }, { a: [1, 2], b: [3, 4, 5, 6] })).toEqual([13, 16])
  })

  it('compute norms, gates, tables and log-probabilities', async () => {
    const root = Math.sqrt(12.5)
    const norm = await yOf('rms_norm', { N: 1, D: 2, eps: 1e-12 }, { x: [3, 4], w: [1, 2] })
    expect(norm[0]).toBeCloseTo(3 / root, 5)
    expect(norm[1]).toBeCloseTo(8 / root, 5)
    const silu = (x: number) => x / (1 + Math.exp(-x))
    const gated = await yOf('swiglu', { N: 1, F: 2 }, { gate: [1, -2], up: [3, 5] })
    expect(gated[0]).toBeCloseTo(3 * silu(1), 5)
    expect(gated[1]).toBeCloseTo(5 * silu(-2), 5)
    const table = { w: [1, 2, 3, 4, 5, 6], ids: [2n, 0n] }
    expect(await yOf('embedding', { N: 2, V: 3, D: 2 }, table)).toEqual([5, 6, 1, 2])
    const logits = [1 * 2 + 1 * 0, 1 * 0 + 1 * 1]
    const expected = logits[1]! - Math.log(Math.exp(logits[0]!) + Math.exp(logits[1]!))
    const logp = await yOf('linear_logprob', { N: 1, V: 2, D: 2 }, { hidden: [1, 1], head: [2, 0, 0, 1], target: [1n] })
    expect(logp[0]).toBeCloseTo(expected, 5)
  })

  it('computes causal attention', async () => {
    const sample = { S: 1, H: 1, K: 1, C: 2, queries: [2], keys: [2], scale: 0.5, window: 0 }
    const y = await yOf('attention', sample, { q: [1, 0, 0, 2], k: [1, 1, 0, 3], v: [1, 2, 3, 4] })
    // The first query sees the first key alone; the second has scores 0.5 * (2, 6).
    const weight = 1 / (1 + Math.exp(3 - 1))
    expect(y.slice(0, 2)).toEqual([1, 2])
    expect(y[2]).toBeCloseTo(weight * 1 + (1 - weight) * 3, 5)
    expect(y[3]).toBeCloseTo(weight * 2 + (1 - weight) * 4, 5)
  })

  it('load at the sizes of the benchmark, where those are small', async () => {
    const { InferenceSession } = runtime!
    const loaded = new Set<string>()
    for (const [name, { definition }] of declaredOps()) {
      for (const sample of definition.samples.filter(({ bench }) => bench)) {
        const graph = onnxGraph(name, sample)
        if (!graph) continue
        await InferenceSession.create(onnxModel(graph), { logSeverityLevel: 4 })
        loaded.add(name)
      }
    }
    expect(loaded.size).toBeGreaterThan(20)
  })
})

describe('a rival that is not installed', () => {
  it('is absent with a reason, and a fault of a package is not taken for absence', async () => {
    expect(await optionalPackage('a-package-that-nobody-has')).toBeUndefined()
    const before = process.env.CARAVAN_PYTHON
    process.env.CARAVAN_PYTHON = '/nowhere/python'
    try {
      const { rivals, notes } = await startRivals({ threads: 1, dtype: 'bf16' })
      expect(rivals).toEqual([])
      expect(notes).toHaveLength(3)
      expect(notes[0]).toBe('no PyTorch beside it: /nowhere/python has none (CARAVAN_PYTHON names another interpreter)')
      for (const note of notes) expect(note).toMatch(/^no .+ beside it: /)
    } finally {
      if (before === undefined) delete process.env.CARAVAN_PYTHON
      else process.env.CARAVAN_PYTHON = before
    }
  })
})
