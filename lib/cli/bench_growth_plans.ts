// What `caravan bench growth` measures: shapes of a small model, so that the longest sequence and the largest
// vocabulary still take less than seconds on two cores.
import { openDevice } from '../ops/index.js'
import { declaredOps, type Sample } from '../tensor/index.js'
import type { GrowthPoint } from './bench_file.js'
import { measureCall } from './bench_kernels.js'
import { benchShapes } from './bench_shapes.js'
import { spreadOf } from './bench_spread.js'
import { timedSteps } from './bench_step.js'
import type { DtypeFlag } from './command_options.js'
import type { Rival } from './rival.js'

export interface GrowthPlan {
  what: string
  variable: string
  sizes: string
  values: readonly number[]
  /** Expected exponent of the time, by which the cost of the next point is foreseen. */
  order: number
  measure: (x: number) => Promise<Omit<GrowthPoint, 'x'>>
}

export interface PlanOptions {
  dtype: DtypeFlag
  threads: number
  rivals: readonly Rival[]
}

const LENGTHS = [128, 256, 512, 1024, 2048, 4096]
const VOCABULARIES = [512, 2048, 8192, 32_000, 151_936]
const DEPTHS = [1, 2, 4, 8, 16]
const SAMPLES = 5
const STEPS = 3
const CHUNK_BYTES = 32 * 2 ** 20
const HEADS = { H: 8, K: 2, C: 64 }
const HEAD_ROWS = { N: 256, D: 288 }

/** All series, the cheap ones first. */
export function growthPlans(options: PlanOptions): GrowthPlan[] {
  const { threads } = options
  const powers = Array.from({ length: 1 + Math.floor(Math.log2(threads)) }, (_, i) => 2 ** i)
  const counts = [...new Set([...powers, threads])]
  const heads = `one sequence, ${HEADS.H} heads of ${HEADS.C}, ${HEADS.K} of keys`
  const rows = `${HEAD_ROWS.N} rows of ${HEAD_ROWS.D}`
  const kernel = (op: string, sample: (x: number) => Sample) => (x: number) => measureKernel(op, sample(x), options)
  const alone = (op: string, sample: Sample) => (x: number) =>
    measureKernel(op, sample, { ...options, threads: x, rivals: [] })
  const T = { variable: 'T', values: LENGTHS, order: 2, sizes: heads }
  const V = { variable: 'V', values: VOCABULARIES, order: 1, sizes: rows }
  const byThreads = { variable: 'threads', values: counts, order: 0 }
  return [
    { ...T, what: 'attention', measure: kernel('attention', attentionSample) },
    { ...T, what: 'attention_backward', measure: kernel('attention_backward', attentionSample) },
    { ...V, what: 'linear_logprob', measure: kernel('linear_logprob', logprobSample) },
    { ...V, what: 'cross_entropy', measure: kernel('cross_entropy', lossSample) },
    { ...byThreads, what: 'attention', sizes: `T 1024, ${heads}`, measure: alone('attention', attentionSample(1024)) },
    {
      ...byThreads,
      what: 'cross_entropy',
      sizes: `V 8192, ${rows}`,
      measure: alone('cross_entropy', lossSample(8192)),
    },
    ...stepPlans(options, counts),
  ]
}

/** Whole training steps of the model `tiny`, one thing changed at a time. */
function stepPlans(options: PlanOptions, counts: readonly number[]): GrowthPlan[] {
  const { T, B } = benchShapes.tiny
  const step = (change: StepChange) => measureStep(change, options)
  return [
    {
      what: 'step',
      variable: 'T',
      sizes: 'tiny, one sequence',
      values: LENGTHS,
      order: 1.5,
      measure: (T) => step({ T, B: 1 }),
    },
    {
      what: 'step',
      variable: 'V',
      sizes: `tiny, 2 sequences of ${T}`,
      values: VOCABULARIES,
      order: 1,
      measure: (V) => step({ V, B: 2 }),
    },
    {
      what: 'step',
      variable: 'layers',
      sizes: `tiny, 4 sequences of ${T}`,
      values: DEPTHS,
      order: 1,
      measure: (L) => step({ L, B: 4 }),
    },
    {
      what: 'step',
      variable: 'threads',
      sizes: `tiny, ${B} sequences of ${T}`,
      values: counts,
      order: 0,
      measure: (threads) => step({ threads }),
    },
  ]
}

function attentionSample(T: number): Sample {
  const scale = 1 / Math.sqrt(HEADS.C)
  return { N: T, M: T, ...HEADS, S: 1, queries: [T], keys: [T], scale, window: 0 }
}

function logprobSample(V: number): Sample {
  return { ...HEAD_ROWS, V, with_entropy: 0, chunk_bytes: CHUNK_BYTES }
}

function lossSample(V: number): Sample {
  return { ...HEAD_ROWS, V, z_loss: 0, chunk_bytes: CHUNK_BYTES }
}

async function measureKernel(op: string, sample: Sample, options: PlanOptions): Promise<Omit<GrowthPoint, 'x'>> {
  using device = openDevice({ threads: options.threads })
  const flags = { dtype: options.dtype, samples: SAMPLES }
  const { spread, rivals, peakBytes } = await measureCall(declaredOps().get(op)!, sample, {
    device,
    flags,
    rivals: options.rivals,
  })
  return { ...spread, peakBytes, rivals }
}

interface StepChange {
  T?: number
  B?: number
  V?: number
  L?: number
  threads?: number
}

async function measureStep(change: StepChange, options: PlanOptions): Promise<Omit<GrowthPoint, 'x'>> {
  using device = openDevice({ threads: change.threads ?? options.threads })
  const { config, ...tiny } = benchShapes.tiny
  const { T = tiny.T, B = tiny.B, V = config.V, L = config.L } = change
  const shape = {
    T,
    B,
    steps: STEPS,
    config: { ...config, V, L, windows: Array<number>(L).fill(0), contextTokens: Math.max(T, config.contextTokens) },
  }
  const { seconds, peakBytes } = await timedSteps(device, shape, { method: 'sft', dtype: options.dtype })
  return { ...spreadOf(seconds), peakBytes, rivals: {} }
}
