// What the primitives mean, as plain loops over Float64Array. Written from their one-line definitions, not from the
// kernels, and without sharing code with them.
import { countOf } from '../../lib/base/shape.js'
import type { HostArgument, SampleCall } from '../../lib/tensor/sample_call.js'

export interface Oracle {
  /** Results by output name. */
  run(call: SampleCall): { [output: string]: number[] }
  /** Results on absolute values, for ops that add up terms: their rounding error scales with the terms, not the sum. */
  scale?: (call: SampleCall) => { [output: string]: number[] }
  /** Roundings of the dtype allowed per result (of `scale`). */
  roundings: number
}

// ---- addressing
// ------------------------------------------------------------------------------------------------------

/** Calls visit(index of each dimension) in row-major order. */
function eachIndex(shape: readonly number[], visit: (index: number[]) => void): void {
  if (countOf(shape) === 0) return
  const index = shape.map(() => 0)
  for (;;) {
    visit(index)
    let axis = shape.length - 1
    while (axis >= 0 && ++index[axis]! === shape[axis]) index[axis--] = 0
    if (axis < 0) return
  }
}

function at(argument: HostArgument, index: readonly number[]): number {
  let offset = 0
  for (const [axis, i] of index.entries()) offset = offset * argument.shape[axis]! + i
  return argument.values[offset]!
}

/** The element of a broadcast argument that output element `index` sees. */
function broadcastAt(argument: HostArgument, index: readonly number[]): number {
  const own = index.slice(index.length - argument.shape.length)
  return at(
    argument,
    own.map((i, axis) => (argument.shape[axis] === 1 ? 0 : i)),
  )
}

function inputOf(call: SampleCall, name: string): HostArgument {
  return call.inputs.find((input) => input.name === name)!
}

function absolute(call: SampleCall): SampleCall {
  const inputs = call.inputs.map((input) => ({ ...input, values: input.values.map(Math.abs) }))
  const attributes = Object.fromEntries(Object.entries(call.attributes).map(([name, value]) => [name, Math.abs(value)]))
  return { ...call, inputs, attributes }
}

// ---- kinds of primitives
// -----------------------------------------------------------------------------------------------

function unary(f: (x: number) => number, roundings: number): Oracle {
  return { roundings, run: (call) => ({ y: Array.from(inputOf(call, 'x').values, f) }) }
}

function binary(f: (a: number, b: number) => number, roundings: number): Oracle {
  return {
    roundings,
    run(call) {
      const [a, b] = [inputOf(call, 'a'), inputOf(call, 'b')]
      const rank = Math.max(a.shape.length, b.shape.length)
      const pad = (shape: number[]) => [...Array<number>(rank - shape.length).fill(1), ...shape]
      const [left, right] = [pad(a.shape), pad(b.shape)]
      const c: number[] = []
      eachIndex(
        left.map((n, i) => (n === 1 ? right[i]! : n)),
        (index) => {
          c.push(f(broadcastAt(a, index), broadcastAt(b, index)))
        },
      )
      return { c }
    },
  }
}

function reduction(start: number, f: (sum: number, x: number) => number): Oracle['run'] {
  return (call) => {
    const x = inputOf(call, 'x')
    const axis = call.attributes.axis!
    const y: number[] = []
    eachIndex(
      x.shape.map((n, i) => (i === axis ? 1 : n)),
      (index) => {
        let sum = start
        for (let r = 0; r < x.shape[axis]!; r++)
          sum = f(
            sum,
            at(
              x,
              index.map((n, i) => (i === axis ? r : n)),
            ),
          )
        y.push(sum)
      },
    )
    return { y }
  }
}

const sum = reduction(0, (total, x) => total + x)

function matmul(call: SampleCall): { c: number[] } {
  const [a, b] = [inputOf(call, 'a'), inputOf(call, 'b')]
  const { transpose_a, transpose_b, I, P } = call.attributes as { [name: string]: number }
  const inner = transpose_a ? a.shape[1]! : a.shape[2]!
  const c: number[] = []
  eachIndex([a.shape[0]!, I!, P!], ([g, i, p]) => {
    let total = 0
    for (let j = 0; j < inner; j++) {
      total += at(a, transpose_a ? [g!, j, i!] : [g!, i!, j]) * at(b, transpose_b ? [g!, p!, j] : [g!, j, p!])
    }
    c.push(total)
  })
  return { c }
}

function moved(
  shape: (call: SampleCall) => number[],
  from: (call: SampleCall, index: number[]) => number,
): Oracle['run'] {
  return (call) => {
    const y: number[] = []
    eachIndex(shape(call), (index) => y.push(from(call, index)))
    return { y }
  }
}

const order = (call: SampleCall) =>
  ['p0', 'p1', 'p2', 'p3', 'p4', 'p5'].map((name) => call.attributes[name]!).slice(0, call.inputs[0]!.shape.length)

function concat(call: SampleCall): { c: number[] } {
  const [a, b] = [inputOf(call, 'a'), inputOf(call, 'b')]
  const axis = call.attributes.axis!
  const seam = a.shape[axis]!
  const c: number[] = []
  eachIndex(
    a.shape.map((n, i) => (i === axis ? n + b.shape[i]! : n)),
    (index) => {
      c.push(
        index[axis]! < seam
          ? at(a, index)
          : at(
              b,
              index.map((n, i) => (i === axis ? n - seam : n)),
            ),
      )
    },
  )
  return { c }
}

function take(call: SampleCall): { y: number[] } {
  const [x, picked] = [inputOf(call, 'x'), inputOf(call, 'index')]
  const V = x.shape.at(-1)!
  return { y: Array.from(picked.values, (v, row) => (v < 0 ? 0 : x.values[row * V + v]!)) }
}

function put(call: SampleCall): { x: number[] } {
  const [y, picked] = [inputOf(call, 'y'), inputOf(call, 'index')]
  const V = call.attributes.V!
  const x = Array<number>(y.values.length * V).fill(0)
  for (const [row, v] of picked.values.entries()) if (v >= 0) x[row * V + v] = y.values[row]!
  return { x }
}

function argmax(call: SampleCall): { index: number[] } {
  const x = inputOf(call, 'x')
  const V = x.shape.at(-1)!
  const rows = countOf(x.shape.slice(0, -1))
  return {
    index: Array.from({ length: rows }, (_, row) => {
      let best = 0
      for (let v = 1; v < V; v++) if (x.values[row * V + v]! > x.values[row * V + best]!) best = v
      return best
    }),
  }
}

// ---- the primitives
// ----------------------------------------------------------------------------------------------------

// 1 rounding: the result is the correctly rounded one, up to a tie. Functions may be off by a few.
export const oracles: { [op: string]: Oracle } = {
  add: binary((a, b) => a + b, 1),
  sub: binary((a, b) => a - b, 1),
  mul: binary((a, b) => a * b, 1),
  div: binary((a, b) => a / b, 1),
  maximum: binary(Math.max, 0),
  greater: binary((a, b) => (a > b ? 1 : 0), 0),
  neg: unary((x) => -x, 0),
  exp: unary(Math.exp, 4),
  log: unary(Math.log, 4),
  sqrt: unary(Math.sqrt, 1),
  sigmoid: unary((x) => 1 / (1 + Math.exp(-x)), 4),
  cos: unary(Math.cos, 4),
  sin: unary(Math.sin, 4),
  tanh: unary(Math.tanh, 4),
  affine: {
    roundings: 3,
    run: (call) => ({
      y: Array.from(call.inputs[0]!.values, (x) => call.attributes.scale! * x + call.attributes.shift!),
    }),
    scale: (call) => oracles.affine!.run(absolute(call)),
  },
  sum: { roundings: 4, run: sum, scale: (call) => sum(absolute(call)) },
  max: { roundings: 0, run: reduction(-Infinity, Math.max) },
  argmax: { roundings: 0, run: argmax },
  matmul: { roundings: 4, run: matmul, scale: (call) => matmul(absolute(call)) },
  broadcast_to: {
    roundings: 0,
    run: moved(
      (call) => [...call.shape!],
      (call, index) => broadcastAt(call.inputs[0]!, index),
    ),
  },
  transpose: {
    roundings: 0,
    run: moved(
      (call) => order(call).map((axis) => call.inputs[0]!.shape[axis]!),
      (call, index) =>
        at(
          call.inputs[0]!,
          index.map((_, axis) => index[order(call).indexOf(axis)]!),
        ),
    ),
  },
  slice: {
    roundings: 0,
    run: moved(
      (call) => call.inputs[0]!.shape.map((n, axis) => (axis === call.attributes.axis ? call.attributes.length! : n)),
      (call, index) =>
        at(
          call.inputs[0]!,
          index.map((n, axis) => (axis === call.attributes.axis ? n + call.attributes.start! : n)),
        ),
    ),
  },
  concat: { roundings: 0, run: concat },
  take: { roundings: 0, run: take },
  put: { roundings: 0, run: put },
}
