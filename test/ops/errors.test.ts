// Wrong calls throw where they are made, and say which argument of which op is wrong, what it must be and what came.
import { afterAll, describe, expect, it } from 'vitest'
import type { CaravanError } from '../../lib/base/errors.js'
import { allSamples, plausibleCall } from '../../lib/cli/check_samples.js'
import {
  add,
  addOp,
  argmaxOp,
  attentionOp,
  broadcastTo,
  concat,
  matmul,
  matmulOp,
  openDevice,
  rmsNorm,
  ropeOp,
  ropeTableOp,
  slice,
  sum,
  transpose,
} from '../../lib/ops/index.js'
import { declaredOps, type Op, scope, Tensor } from '../../lib/tensor/index.js'
import { argumentsOn, callOp, disposeAll, type SampleCall, tensorsOf, upload } from '../../lib/tensor/sample_call.js'

const device = openDevice({ threads: 1 })

afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
})

/** What `body` throws; fails when it does not. */
function thrown(body: () => unknown): CaravanError {
  try {
    body()
  } catch (error) {
    return error as CaravanError
  }
  return expect.fail('nothing was thrown')
}

const zeros = (shape: number[], dtype: Tensor['dtype'] = 'f32') => {
  const count = shape.reduce((a, b) => a * b, 1)
  return dtype === 'u8'
    ? Tensor.from(device, new Uint8Array(count), shape)
    : upload(device, dtype, new Float64Array(count), shape)
}

/** Runs `body` with `argument` of the call replaced. */
function withReplaced(call: SampleCall, argument: string, replacement: Tensor | undefined): CaravanError {
  const given = argumentsOn(device, call, 'f32')
  const original = given[argument] as Tensor
  const error = thrown(() => callOp(call.op, { ...given, [argument]: replacement }))
  disposeAll(given, { original, replacement })
  return error
}

/** Dims of an argument whose size something else in the signature fixes: [axis from the end, dim]. */
function tiedDims(op: Op, name: string): [fromEnd: number, dim: string][] {
  const argument = op.parsed.inputs.find((input) => input.name === name)!
  const others = op.parsed.inputs.filter((input) => input.name !== name && !input.optional)
  const dims = argument.dims!.filter((dim) => dim !== '*')
  return dims
    .map((dim, i): [number, string] => [dims.length - i, dim])
    .filter(([, dim]) => Number.isInteger(Number(dim)) || others.some((other) => other.dims?.includes(dim)))
}

const withInputs = [...declaredOps()].filter(([, op]) => op.parsed.inputs.length > 0)

describe.each(withInputs)('%s', (name, op) => {
  const sample = allSamples(op)[0]!
  const call = plausibleCall(op, sample)

  it('names a missing argument', () => {
    for (const argument of op.parsed.inputs.filter((input) => !input.optional)) {
      const error = withReplaced(call, argument.name, undefined)
      expect(error).toMatchObject({ code: 'ERR_SHAPE', message: `${name}: argument '${argument.name}' is missing` })
    }
  })

  it('names a missing attribute', () => {
    const given = argumentsOn(device, call, 'f32')
    for (const attribute of op.parsed.attributes) {
      const error = thrown(() => callOp(op, { ...given, [attribute]: undefined }))
      expect(error.code).toBe('ERR_SHAPE')
      expect(error.message).toContain(`${name}: attribute '${attribute}' must be a number`)
    }
    disposeAll(given)
  })

  it('refuses every wrong size', () => {
    for (const input of call.inputs) {
      if (!op.parsed.inputs.find((argument) => argument.name === input.name)!.dims) continue
      for (const [fromEnd, dim] of tiedDims(op, input.name)) {
        const shape = input.shape.map((n, i) => (i === input.shape.length - fromEnd ? n + 1 : n))
        const error = withReplaced(call, input.name, zeros(shape, input.dtype ?? 'f32'))
        expect(error.code, `${input.name} with ${dim} + 1: ${error.message}`).toBe('ERR_SHAPE')
        // The fault shows at the changed argument, or at a later one that no longer fits to it.
        expect(error.message).toMatch(
          new RegExp(
            `^${name}: \\w+ must be \\[[\\w*,]*\\](=\\[[\\w*,]*\\] to match \\w+\\[[\\w*,]*\\]=\\[[\\d,]*\\])?; got \\[[\\d,]*\\]$`,
          ),
        )
      }
    }
  })

  it('refuses a wrong number of dimensions', () => {
    for (const input of call.inputs) {
      const { dims } = op.parsed.inputs.find((argument) => argument.name === input.name)!
      if (!dims || dims[0] === '*') continue
      const error = withReplaced(call, input.name, zeros([1, ...input.shape], input.dtype ?? 'f32'))
      expect(error.code).toBe('ERR_SHAPE')
      expect(error.message).toContain(`${name}: ${input.name} must be [${dims.join(',')}]`)
    }
  })

  it('refuses a wrong dtype', () => {
    const common = op.parsed.inputs.filter((input) => input.dtype === undefined && !input.optional)
    for (const input of call.inputs) {
      const isFirstCommon = input.dtype === undefined && (input.name === common[0]!.name || op.definition.mixed)
      // A common dtype is what its first argument has: that one is wrong only where no kernel takes it.
      const wrong = isFirstCommon ? 'u8' : input.dtype === 'i32' ? 'f32' : 'i32'
      if (isFirstCommon && common.length > 1 && !op.definition.mixed) continue
      if (name === 'scatter_rows' && isFirstCommon) continue
      const error = withReplaced(call, input.name, zeros(input.shape, wrong))
      expect(error.code, `${input.name}: ${error.message}`).toBe('ERR_DTYPE')
      expect(error.message).toMatch(/must be (f32|bf16|f64|i32)( to match \w+[;,])?[,;]? ?got|no kernel for u8|must be/)
    }
  })

  it('refuses a freed tensor', () => {
    const given = argumentsOn(device, call, 'f32')
    for (const [argument, tensor] of tensorsOf(given)) {
      const freed = zeros([...tensor.shape], tensor.dtype)
      freed.dispose()
      expect(thrown(() => callOp(op, { ...given, [argument]: freed })).code).toBe('ERR_DISPOSED')
    }
    disposeAll(given)
  })
})

describe('messages', () => {
  it('say what was expected and what came', () => {
    using x = zeros([512, 2048])
    using w = zeros([1024])
    const error = thrown(() => rmsNorm(x, w, { eps: 1e-5 }))
    expect(error.message).toBe('rms_norm: w must be [D]=[2048] to match x[*,D]=[512,2048]; got [1024]')
    expect(error.details).toEqual({ op: 'rms_norm', argument: 'w', shape: [1024] })
  })

  it('name the tensors of two devices', () => {
    using other = openDevice({ threads: 1 })
    using a = zeros([1])
    using b = Tensor.from(other, new Float32Array(1), [1])
    expect(thrown(() => add(a, b))).toMatchObject({
      code: 'ERR_DEVICE',
      message: expect.stringMatching(/^add: 'b' is on another/),
    })
  })
})

describe('sizes that hang together beyond letters', () => {
  // Each row: a call, and what its message must contain.
  const cases: [string, () => unknown, RegExp][] = [
    ['broadcast', () => add(zeros([3, 4]), zeros([3])), /add: \[3,4\] and \[3\] do not broadcast/],
    ['matmul inner', () => matmul(zeros([1, 2, 3]), zeros([1, 4, 5])), /inner sizes of \[1,2,3\] and \[1,4,5\]/],
    [
      'matmul result',
      () =>
        matmulOp({ a: zeros([1, 2, 3]), b: zeros([1, 3, 5]), transpose_a: 0, transpose_b: 0, I: 2, P: 50 } as never),
      /matmul: the result is \[G,2,5\]; got I=2 P=50/,
    ],
    ['axis of sum', () => sum(zeros([2, 3]), 2), /axis of \[2,3\]; got axis 2/],
    ['axis of sum, negative', () => sum(zeros([2, 3]), -3), /axis of \[2,3\]; got axis -1/],
    ['slice end', () => slice(zeros([2, 3]), { axis: 1, start: 2, length: 2 }), /slice: 2..4 of axis 1/],
    ['slice start', () => slice(zeros([2, 3]), { axis: 1, start: -1, length: 2 }), /slice: -1..1 of axis 1/],
    ['concat', () => concat(zeros([2, 3]), zeros([3, 3]), 1), /concat: \[2,3\] and \[3,3\] differ off axis 1/],
    ['concat axis', () => concat(zeros([2, 3]), zeros([2, 3]), 2), /concat/],
    ['transpose twice', () => transpose(zeros([2, 3]), [0, 0]), /each axis of x once/],
    ['broadcast_to', () => broadcastTo(zeros([2, 3]), [2, 4]), /\[2,3\] does not fill \[2,4\]/],
    ['broadcast_to smaller', () => broadcastTo(zeros([2, 3]), [1, 3]), /\[2,3\] does not fill \[1,3\]/],
    ['rope', () => ropeOp({ x: zeros([2, 1, 3]), table: zeros([2, 3]), direction: 1 }), /must be even/],
    [
      'rope_table',
      () => ropeTableOp({ positions: zeros([2], 'i32'), frequencies: zeros([3], 'f64'), C: 5 }),
      /C must be 2 J = 6; got 5/,
    ],
    [
      'heads',
      () => {
        const [q, k, v] = [zeros([2, 3, 4]), zeros([2, 2, 4]), zeros([2, 2, 4])]
        return attentionOp({ q, k, v, segments: zeros([0, 4], 'i32'), scale: 1, window: 0 })
      },
      /attention: H of q\[N,H,C\]=\[2,3,4\] must be a multiple of K=2/,
    ],
  ]

  it.each(cases)('%s', (_name, body, message) => {
    const error = thrown(() => scope(body))
    expect(error).toMatchObject({ code: 'ERR_SHAPE', message: expect.stringMatching(message) })
  })

  it('a tensor that is no tensor', () => {
    const wrong = [null, 5, 'x', {}, [], { id: 3, shape: [1], dtype: 'f32' }] as unknown as Tensor[]
    using b = zeros([1])
    for (const a of wrong) expect(thrown(() => addOp({ a, b })).message).toBe("add: argument 'a' is missing")
    expect(thrown(() => scope(() => argmaxOp({ x: zeros([]) }))).code).toBe('ERR_SHAPE')
  })
})
