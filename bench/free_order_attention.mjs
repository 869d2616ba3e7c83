// What attention could gain from a free order of additions: the keys of one query split over threads, as two sequences
// of half the keys (merging two results costs next to nothing). Heads are spread over threads anyway, so there is
// something to gain only where a step has fewer key heads than threads. After `npm run build`:
//   node bench/free_order_attention.mjs [threads]
import { loadavg } from 'node:os'
import { keep, openDevice, ops, scope, Tensor } from '../dist/index.js'

const threads = Number(process.argv[2] ?? 2)
const [M, C, ROUNDS, CALLS] = [4096, 64, 25, 20]
const device = openDevice({ threads })
console.log(`${threads} threads, ${device.isa}, load ${loadavg()[0].toFixed(1)}; 1 query, ${M} keys of ${C}`)
for (const K of [1, 2, 4]) {
  const H = 4 * K
  const random = (rows, heads) =>
    keep(ops.randomNormal(device, [rows, heads, C], { deviation: 1, seed: 1, stream: rows, dtype: 'f32' }))
  const [one, two, k, v] = [random(1, H), random(2, H), random(M, K), random(M, K)]
  const half = M / 2
  const whole = keep(Tensor.from(device, Int32Array.of(0, 1, 0, M), [1, 4]))
  const halves = keep(Tensor.from(device, Int32Array.of(0, 1, 0, half, 1, 2, half, M), [2, 4]))
  const scale = 1 / Math.sqrt(C)
  const timed = async (q, segments) => {
    await device.idle()
    const started = performance.now()
    for (let i = 0; i < CALLS; i++) scope(() => void ops.attentionOp({ q, k, v, segments, scale, window: 0 }))
    await device.idle()
    return (1000 * (performance.now() - started)) / CALLS
  }
  const readings = { fixed: [], free: [], ratio: [] }
  for (let round = 0; round <= ROUNDS; round++) {
    const [fixed, free] = [await timed(one, whole), await timed(two, halves)]
    if (round === 0) continue
    readings.fixed.push(fixed)
    readings.free.push(free)
    readings.ratio.push(fixed / free)
  }
  const at = (values, share) => values.toSorted((a, b) => a - b)[Math.floor(share * values.length)]
  const { fixed, free, ratio } = readings
  const quartiles = `(${at(ratio, 0.25).toFixed(2)} to ${at(ratio, 0.75).toFixed(2)})`
  console.log(
    `${K} key heads: fixed ${at(fixed, 0.5).toFixed(0)} us, split ${at(free, 0.5).toFixed(0)} us, fixed / split ` +
      `${at(ratio, 0.5).toFixed(2)} ${quartiles}`,
  )
}
device.close()
