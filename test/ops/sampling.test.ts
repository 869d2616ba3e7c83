// The op `sample`: its filtered distribution against transformers' processors, its draws against that distribution, its
// log-probability against linear_logprob.
import { afterAll, describe, expect, it } from 'vitest'
import { f32ToBf16 } from '../../lib/base/half.js'
import { philox, Random } from '../../lib/base/random.js'
import {
  keyRow,
  linearLogprob,
  openDevice,
  type SampleRow,
  type SampleSettings,
  sample,
  sampleOp,
  settingsRow,
} from '../../lib/ops/index.js'
import { leaks, scope, Tensor } from '../../lib/tensor/index.js'
import { deviceUnderTest } from '../device_under_test.js'
import { readGolden } from '../golden_tensors.js'

const device = openDevice(deviceUnderTest)
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
})

const plain: SampleSettings = { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 }

interface Drawn {
  token: Int32Array
  logp: Float32Array
  drawnLogp: Float32Array
  probs: Float32Array
}

/** Draws for rows of logits: the head is the identity, so that the product gives them exactly. */
async function drawFrom(logits: readonly (readonly number[])[], rows: readonly SampleRow[]): Promise<Drawn> {
  const [N, V] = [logits.length, logits[0]!.length]
  const previous = rows.map((row) => Array.from(row.previous ?? []))
  let seen = 0
  const ends = previous.map((ids) => {
    seen += ids.length
    return seen
  })
  const made = scope(() => {
    const head = new Float32Array(V * V)
    for (let v = 0; v < V; v++) head[v * V + v] = 1
    return sampleOp({
      hidden: Tensor.from(device, Float32Array.from(logits.flat()), [N, V]),
      head: Tensor.from(device, head, [V, V]),
      settings: Tensor.from(device, Float64Array.from(rows.flatMap((row) => settingsRow(row.settings))), [N, 5]),
      keys: Tensor.from(device, Int32Array.from(rows.flatMap((row) => keyRow(row.key))), [N, 4]),
      previous: Tensor.from(device, Int32Array.from(previous.flat()), [ends.at(-1)!]),
      previous_ends: Tensor.from(device, Int32Array.from(ends), [N]),
      with_probs: 1,
    })
  })
  try {
    const [token, logp, drawnLogp, probs] = await Promise.all(
      [made.token, made.logp, made.drawn_logp, made.probs!].map((tensor) => tensor.read()),
    )
    return { token, logp, drawnLogp, probs } as Drawn
  } finally {
    for (const tensor of Object.values(made)) tensor?.dispose()
  }
}

const rowsOf = (settings: SampleSettings, count: number, seed = 1): SampleRow[] =>
  Array.from({ length: count }, (_, position) => ({ settings, key: { seed, sample: 0, position } }))

describe('the filtered distribution is that of transformers', () => {
  const golden = readGolden('losses/losses.safetensors')
  const input = golden.get('sampling.logits')!
  const [N, V] = input.shape as [number, number]
  const logits = Array.from({ length: N }, (_, n) => Array.from(input.values.subarray(n * V, (n + 1) * V)))
  const previous = golden.get('sampling.prev_ids')!

  it.each([
    ['temperature', { temperature: 0.7 }],
    ['top_k', { topK: 5 }],
    ['top_p', { topP: 0.8 }],
    ['top_p_small', { topP: 0.05 }],
    ['min_p', { minP: 0.1 }],
    ['t_k_p', { temperature: 1.3, topK: 10, topP: 0.9 }],
    ['k_p_minp', { temperature: 0.6, topK: 8, topP: 0.95, minP: 0.05 }],
    ['repetition', { repetitionPenalty: 1.2 }],
  ] as const)('%s', async (name, changed) => {
    const wanted = golden.get(`sampling.${name}.probs`) ?? golden.get(`sampling.${name}`)
    expect(wanted, [...golden.keys()].filter((key) => key.startsWith('sampling')).join(' ')).toBeDefined()
    const width = previous.values.length / N
    const rows = rowsOf({ ...plain, ...changed }, N).map((row, n) => ({
      ...row,
      previous: Array.from(previous.values.subarray(n * width, (n + 1) * width)),
    }))
    const { probs } = await drawFrom(logits, rows)
    for (let n = 0; n < N; n++) {
      const got = Array.from(probs.subarray(n * V, (n + 1) * V))
      const expected = Array.from(wanted!.values.subarray(n * V, (n + 1) * V))
      // Row 3 is all ties, where the kept ones are a matter of sort order: their number is not.
      if (n === 3) expect(got.filter((p) => p > 0).length).toBe(expected.filter((p) => p > 0).length)
      else for (const [v, p] of got.entries()) expect(p).toBeCloseTo(expected[v]!, 6)
    }
  })
})

describe('draws', () => {
  it('follow the distribution (chi-squared over 20000 draws)', async () => {
    const logits = [0.3, -1, 2, 0, 1.1, -0.4, 0.9, -3]
    const count = 20_000
    const { token, probs, drawnLogp } = await drawFrom(
      Array(count).fill(logits),
      rowsOf({ ...plain, temperature: 0.8, topK: 6 }, count),
    )
    const seen = Array<number>(8).fill(0)
    for (const [i, id] of token.entries()) {
      seen[id]!++
      if (i < 100) expect(Math.exp(drawnLogp[i]!)).toBeCloseTo(probs[i * 8 + id]!, 5)
    }
    const expected = Array.from(probs.subarray(0, 8), (p) => p * count)
    expect([seen[1], seen[7]]).toEqual([0, 0])
    const kept = expected.map((e, v) => [e, seen[v]!] as const).filter(([e]) => e > 0)
    const chiSquared = kept.reduce((sum, [e, got]) => sum + (got - e) ** 2 / e, 0)
    // 5 degrees of freedom: above 20.5 once in a thousand seeds.
    expect(chiSquared).toBeLessThan(20.5)
  })

  it('invert the cumulated distribution at the philox number of (seed, sample, position)', async () => {
    const random = new Random(3)
    const V = 2500
    const logits = Array.from({ length: 40 }, () => Array.from({ length: V }, () => Math.fround(2 * random.normal())))
    const keys = logits.map((_, n) => ({ seed: 2 ** 45 + 7 * n, sample: n % 5, position: 11 * n }))
    const { token } = await drawFrom(
      logits,
      keys.map((key) => ({ settings: plain, key })),
    )
    for (const [n, { seed, sample: stream, position }] of keys.entries()) {
      const [a, b] = philox(seed, 0x73 * 2 ** 32 + stream, position)
      const u = ((a >>> 5) * 2 ** 26 + (b >>> 6)) / 2 ** 53
      const weights = logits[n]!.map((x) => Math.exp(x))
      let left = u * weights.reduce((x, y) => x + y, 0)
      const wanted = weights.findIndex((w) => {
        left -= w
        return left < 0
      })
      expect(token[n]).toBe(wanted)
    }
  })

  it('depend on nothing but their own row', async () => {
    const random = new Random(4)
    const logits = Array.from({ length: 33 }, () => Array.from({ length: 300 }, () => Math.fround(random.normal())))
    const rows = rowsOf({ ...plain, topP: 0.9 }, 33)
    const all = await drawFrom(logits, rows)
    for (const n of [0, 5, 32]) {
      const alone = await drawFrom([logits[n]!], [rows[n]!])
      expect(alone.token[0]).toBe(all.token[n])
      expect(alone.drawnLogp[0]).toBe(all.drawnLogp[n])
    }
  })

  it('take the largest at temperature 0, the lowest id on a tie, after the repetition penalty', async () => {
    const logits = [
      [1, 3, 3, 2],
      [1, 3, 3, 2.9],
      [-1, -2, -9, -9],
    ]
    const rows = rowsOf({ ...plain, temperature: 0, repetitionPenalty: 4 }, 3)
    const { token, drawnLogp, logp } = await drawFrom(logits, [
      { ...rows[0]!, previous: [0] },
      { ...rows[1]!, previous: [1, 2, 1] },
      { ...rows[2]!, previous: [0] },
    ])
    expect([...token]).toEqual([1, 3, 1])
    expect([...drawnLogp]).toEqual([0, 0, 0])
    const exact = 3 - Math.log(Math.E + 2 * Math.exp(3) + Math.exp(2))
    expect(logp[0]).toBeCloseTo(exact, 5)
  })

  it('survive logits without a finite softmax, and -inf', async () => {
    const inf = Infinity
    // A product with the identity would make NaN of every infinity, so the logits come as they are from one column.
    const hidden = scope(() => {
      const column = (values: number[]) => Tensor.from(device, Float32Array.from(values), [values.length, 1])
      const rows = rowsOf(plain, 1)
      return [
        sample(column([1]), column([0, Number.NaN, 2]), rows),
        sample(column([1]), column([0, inf, 2]), rows),
        sample(column([1]), column([-inf, -inf]), rows),
        sample(column([1]), column([-inf, 5, -inf]), rows),
      ]
    })
    const logps = await Promise.all(hidden.map(({ logp }) => logp.item()))
    expect(logps).toEqual([Number.NaN, Number.NaN, Number.NaN, 0])
    expect(await hidden[3]!.token.item()).toBe(1)
    for (const row of hidden) for (const tensor of Object.values(row)) tensor.dispose()
  })
})

describe('a vocabulary of many parts, against a sort', () => {
  const V = 9001
  const random = new Random(12)
  const head = Float32Array.from({ length: V }, () => 2 * random.normal())
  // Multiples of 1/4 tie with others at every edge.
  const coarse = head.map((x) => Math.round(4 * x) / 4)

  /** The distribution of one row, by the definition of each filter in f64; among ties at the edge of top-p the lowest
   *  ids stay. */
  function filtered(logits: Float32Array, { temperature, topK, topP, minP }: SampleSettings): Float64Array {
    const peak = logits.reduce((x, y) => Math.max(x, y))
    const weights = Float64Array.from(logits, (x) => Math.exp(Math.fround(Math.fround(x - peak) / temperature)))
    const order = Array.from(weights.keys()).sort((i, j) => logits[i]! - logits[j]! || j - i)
    if (topK > 0) for (const v of order) if (logits[v]! < logits[order[V - topK]!]!) weights[v] = 0
    const limit = (1 - topP) * weights.reduce((x, y) => x + y)
    let removed = 0
    for (const v of order) {
      if (removed + weights[v]! > limit) break
      removed += weights[v]!
      weights[v] = 0
    }
    const kept = weights.map((w) => (w < minP ? 0 : w))
    const total = kept.reduce((x, y) => x + y)
    return kept.map((w) => w / total)
  }

  it.each([
    [{ temperature: 0.7 }],
    [{ topK: 40 }],
    [{ topK: 6000 }],
    [{ topP: 0.9 }],
    [{ topP: 0.3, temperature: 1.7 }],
    [{ topK: 1000, topP: 0.95, minP: 0.01, temperature: 1.2 }],
  ])('%o', async (changed) => {
    const settings = { ...plain, ...changed }
    for (const values of [head, coarse]) {
      const factors = [1, -0.5]
      const made = scope(() =>
        sampleOp({
          hidden: Tensor.from(device, Float32Array.from(factors), [2, 1]),
          head: Tensor.from(device, values, [V, 1]),
          settings: Tensor.from(device, Float64Array.from([settings, settings].flatMap(settingsRow)), [2, 5]),
          keys: Tensor.from(device, new Int32Array(8), [2, 4]),
          with_probs: 1,
        }),
      )
      const probs = (await made.probs!.read()) as Float32Array
      for (const tensor of Object.values(made)) tensor?.dispose()
      for (const [n, factor] of factors.entries()) {
        const wanted = filtered(
          values.map((x) => factor * x),
          settings,
        )
        let off = 0
        for (let v = 0; v < V; v++) off = Math.max(off, Math.abs(probs[n * V + v]! - wanted[v]!))
        expect(off, `factor ${factor}`).toBeLessThan(1e-6)
      }
    }
  })
})

it.each(['f32', 'bf16'] as const)('gives the log-probability of linear_logprob bit for bit in %s', async (dtype) => {
  const random = new Random(9)
  const [N, V, D] = [37, 3001, 48]
  const values = (count: number) => Float32Array.from({ length: count }, () => random.normal())
  const tensor = (data: Float32Array, shape: number[]) =>
    Tensor.from(device, dtype === 'bf16' ? f32ToBf16(data) : data, shape)
  using hidden = tensor(values(N * D), [N, D])
  using head = tensor(values(V * D), [V, D])
  const drawn = scope(() => sample(hidden, head, rowsOf({ ...plain, temperature: 1.5, topK: 100 }, N)))
  const again = scope(() => linearLogprob(hidden, head, drawn.token))
  expect(await drawn.logp.read()).toEqual(await again.logp.read())
  for (const made of [...Object.values(drawn), ...Object.values(again)]) made.dispose()
})

describe('refuses', () => {
  const draw = async (row: SampleRow) => await drawFrom([[1, 2]], [row])
  const key = { seed: 1, sample: 0, position: 0 }

  it.each([
    [{ temperature: -1 }, 'settings[0] = (-1, 0, 1, 0, 1) must be temperature >= 0'],
    [{ topP: 0 }, '0 < top_p <= 1'],
    [{ minP: 2 }, '0 <= min_p <= 1'],
    [{ repetitionPenalty: 0 }, 'repetition penalty > 0'],
  ])('%o', async (changed, message) => {
    const run = draw({ settings: { ...plain, ...changed }, key })
    await expect(run).rejects.toMatchObject({ code: 'ERR_DATA', message: expect.stringContaining(message) })
  })

  it('previous tokens that the vocabulary lacks', async () => {
    const run = draw({ settings: { ...plain, repetitionPenalty: 2 }, key, previous: [2] })
    // A GPU finds a wrong id where it is read, and says so in the words of every index there.
    const [code, message] =
      deviceUnderTest.kind === 'cuda'
        ? ['ERR_RANGE', 'sample: entry 0 is 2; allowed are 0 to 1']
        : ['ERR_DATA', 'below V=2; got 2']
    await expect(run).rejects.toMatchObject({ code, message: expect.stringContaining(message!) })
  })
})
