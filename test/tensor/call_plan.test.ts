// The two checks of a call agree: the fast one that every call passes, and the one that finds the words for a fault.
// What the fast one binds is worked out by hand.
import { afterAll, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { parseSignature } from '../../lib/base/signature.js'
import { openDevice } from '../../lib/ops/index.js'
import { refuseFaulty } from '../../lib/tensor/call_fault.js'
import { type AnyCall, bindCall, planCall } from '../../lib/tensor/call_plan.js'
import { declaredOps, type Op, Tensor } from '../../lib/tensor/index.js'

const [device, other] = [openDevice({ threads: 1 }), openDevice({ threads: 1 })]
const made: Tensor[] = []

afterAll(async () => {
  for (const tensor of made) tensor.dispose()
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
  other.close()
})

function tensor(shape: number[], dtype: Tensor['dtype'] = 'f32', on = device): Tensor {
  made.push(Tensor.empty(on, dtype, shape))
  return made.at(-1)!
}

describe('a call that fits', () => {
  const text = 'x[*,D] w[F,D] bias[F]? table[S,4]:i32 -> y[*,F] n[S,2]:f32 z[M]:dtype with[D]? | M dtype eps'
  const plan = planCall('mixture', parseSignature(text))
  const call = () => ({
    x: tensor([2, 3, 5], 'bf16'),
    w: tensor([7, 5], 'bf16'),
    table: tensor([1, 4], 'i32'),
    M: 9,
    dtype: 2,
    eps: 0.5,
  })

  it('binds letters, leading dims, numbers and dtypes', () => {
    const { x, w, table, ...numbers } = call()
    const bound = bindCall(plan, { x, w, table, ...numbers })!
    expect(plan.letters.map((letter, i) => [letter, bound.sizes[i]])).toEqual([
      ['D', 5],
      ['F', 7],
      ['S', 1],
      ['M', 9],
    ])
    expect(bound.lead.slice(0, bound.leadRank)).toEqual([2, 3])
    expect(bound.inputs).toEqual([x, w, undefined, table])
    expect(bound).toMatchObject({ dtype: 'bf16', attributes: [9, 2, 0.5] })
    expect(bound.device).toBe(device)
  })

  it.each([-1, 1.5, Number.NaN])('a size of %d is refused and named', (M) => {
    const wrong = { ...call(), M }
    expect(bindCall(plan, wrong)).toBeUndefined()
    const called = { name: 'mixture', signature: parseSignature(text), mixed: false, call: wrong }
    expect(() => refuseFaulty(called)).toThrow(
      expect.objectContaining({
        code: 'ERR_SHAPE',
        message: `mixture: M is a size and must be a whole number, got ${M}`,
      }),
    )
  })
})

/** Arguments of which each is likely, but not sure, to fit. */
function drawnCall(op: Op, random: Random): AnyCall {
  const sizes = new Map<string, number>()
  const sizeOf = (dim: string) => {
    if (Number.isInteger(Number(dim))) return Number(dim)
    if (!sizes.has(dim)) sizes.set(dim, random.integer(0, 4))
    return sizes.get(dim)! + (random.chance(0.03) ? 1 : 0)
  }
  const lead = Array.from({ length: random.integer(0, 3) }, () => random.integer(0, 3))
  const call: AnyCall = {}
  if (op.parsed.inputs.length === 0 && random.chance(0.9)) Object.assign(call, { device })
  for (const { name, dims, dtype, optional } of op.parsed.inputs) {
    if (random.chance(optional ? 0.5 : 0.03)) continue
    const shape = (dims ?? ['*']).flatMap((dim) => (dim === '*' ? lead : [sizeOf(dim)]))
    if (random.chance(0.03)) shape.unshift(random.integer(0, 3))
    if (random.chance(0.03)) shape.pop()
    const wanted = dtype === 'dtype' || dtype === undefined ? 'f32' : dtype
    const given = tensor(shape, random.chance(0.03) ? 'u8' : wanted, random.chance(0.02) ? other : device)
    if (random.chance(0.02)) given.dispose()
    call[name] = given
  }
  for (const name of op.parsed.attributes) {
    if (random.chance(0.97)) call[name] = random.chance(0.95) ? random.integer(0, 4) : -0.5
  }
  return call
}

describe('the fast check and the one with words', () => {
  it.each([...declaredOps()])('agree on %s', (name, op) => {
    const random = new Random(name.length, 3)
    const plan = planCall(name, op.parsed, op.definition)
    const counts = { fit: 0, fault: 0 }
    for (let i = 0; i < 300; i++) {
      const call = drawnCall(op, random)
      let fault: unknown
      try {
        refuseFaulty({ name, signature: op.parsed, mixed: op.definition.mixed ?? false, call })
      } catch (error) {
        fault = error
      }
      const bound = bindCall(plan, call)
      expect(bound === undefined, `${String(fault)}`).toBe(fault !== undefined)
      counts[bound ? 'fit' : 'fault']++
    }
    expect(counts.fit).toBeGreaterThan(4)
    expect(counts.fault).toBeGreaterThan(4)
  })
})
