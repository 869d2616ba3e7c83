// `caravan bench step`: whole steps of a training method through the real training loop (forward, backward, clipping,
// AdamW; the reference model's pass of DPO too), at shapes that PyTorch can run beside it.
import { CaravanError } from '../base/errors.js'
import { newModel } from '../models/index.js'
import { openDevice } from '../ops/index.js'
import { AdamW, type MasterForm, type MomentType } from '../optim/adamw.js'
import type { Device, OpTime } from '../runtime/index.js'
import type { Checkpointing } from '../tensor/index.js'
import { trainLoop } from '../train/loop.js'
import { type BenchMethod, benchMethod } from './bench_methods.js'
import { type BenchModel, type BenchShape, benchShape, usualMicroBatchTokens } from './bench_shapes.js'
import { type DeviceFlag, type DtypeFlag, engineDtype } from './command_options.js'
import { exitCodes } from './failure.js'
import { countText, shortNumber } from './format.js'
import { machineLine } from './machine.js'
import { tableLines } from './table.js'
import { Terminal } from './terminal.js'
import { median } from './timing.js'
import { type PeerStep, runTorchStep } from './torch_peer.js'

export interface BenchStepFlags {
  method: BenchMethod
  /** dpo: the reference's log-probabilities are known beforehand. */
  cachedReference?: boolean
  checkpointing?: Checkpointing
  /** Form of AdamW's state, as in a recipe. */
  master?: MasterForm
  moments?: MomentType
  model: BenchModel
  dtype: DtypeFlag
  device?: DeviceFlag
  threads?: number
  steps?: number
  /** Sequences in a step, an even number for dpo, and tokens in each, a multiple of 4. */
  batch?: number
  length?: number
  /** Tokens computed at a time, of a step. */
  microBatch?: number
  rounds: number
  peer?: boolean | string
  peerCompile?: boolean
  peerPure?: boolean
  peerTimeout: number
  /** Times the ops of one more step. */
  profile?: boolean
  json?: boolean
}

/** What one side did. Throughput is of the median step. */
export interface StepResult {
  tokensPerSecond: number
  /** 10^9 operations a second, counted as 6 per parameter and token. */
  gflops: number
  /** Highest resident memory of the process. */
  peakMiB: number
  /** Highest tensor memory of the device; absent for others. */
  deviceMiB?: number
  stepSeconds: number
  loss: number
  /** Of one more step, each op waited for, the longest first. */
  ops?: readonly OpTime[]
}

/** Untimed steps before the timed ones. */
const WARM_UP_STEPS = 2

/** Measures steps and prints them; the value is the exit code. */
export async function benchStep(flags: BenchStepFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const shape = shapeOf(flags)
  const ours: StepResult[] = []
  const theirs: PeerStep[] = []
  const loadBefore = await withDevice(flags, (device) => machineLine(device))
  for (let round = 0; round < flags.rounds; round++) {
    ours.push(await withDevice(flags, (device) => measureSteps(device, shape, flags)))
    if (flags.peer)
      theirs.push(await runTorchStep({ ...flags, steps: flags.steps ?? shape.steps, batch: shape.B, length: shape.T }))
  }
  const result = { ...best(ours), peer: theirs.length > 0 ? bestPeer(theirs) : undefined }
  if (flags.json) {
    const { method, cachedReference, checkpointing, master, moments, model, dtype, device, threads } = flags
    terminal.line(
      JSON.stringify({
        ...result,
        method,
        cachedReference,
        checkpointing,
        master,
        moments,
        model,
        dtype,
        device,
        threads,
        batch: shape.B,
        sequence: shape.T,
        microBatch: microBatchOf(flags),
        machine: loadBefore,
      }),
    )
    return exitCodes.done
  }
  terminal.line(terminal.color.dim(loadBefore))
  for (const line of resultLines(flags, result, terminal)) terminal.line(line)
  return exitCodes.done
}

function shapeOf({ model, batch, length, method }: BenchStepFlags): BenchShape {
  const shape = benchShape(model, { batch, length })
  if (method === 'dpo' && (shape.B % 2 !== 0 || shape.T % 4 !== 0)) {
    const got = `--batch ${shape.B} --length ${shape.T}`
    throw new CaravanError(
      'ERR_USAGE',
      `dpo takes pairs, a quarter of each its prompt: an even batch and a length that is a multiple of 4; got ${got}`,
    )
  }
  return shape
}

function microBatchOf({ microBatch, device = 'cpu' }: BenchStepFlags): number {
  return microBatch ?? usualMicroBatchTokens(device)
}

async function withDevice<T>(flags: BenchStepFlags, body: (device: Device) => T | Promise<T>): Promise<T> {
  using device = openDevice({ kind: flags.device, threads: flags.threads })
  return await body(device)
}

async function measureSteps(device: Device, shape: BenchShape, flags: BenchStepFlags): Promise<StepResult> {
  const { seconds, peakBytes, loss, parameters, ops } = await timedSteps(device, shape, {
    ...flags,
    microBatch: microBatchOf(flags),
  })
  const stepSeconds = median(seconds)
  const tokensPerSecond = (shape.B * shape.T) / stepSeconds
  return {
    tokensPerSecond,
    gflops: (6 * parameters * tokensPerSecond) / 1e9,
    peakMiB: process.resourceUsage().maxRSS / 1024,
    deviceMiB: peakBytes / 2 ** 20,
    stepSeconds,
    loss,
    ops,
  }
}

/** Trains a new model of `shape` on `device`: seconds of each measured step, highest tensor memory, last loss, and the
 *  number of parameters. `totalSteps` counts the unmeasured ones, too; a step is one micro-batch unless `microBatch`
 *  says otherwise. */
export async function timedSteps(
  device: Device,
  shape: BenchShape,
  flags: Pick<
    BenchStepFlags,
    'method' | 'dtype' | 'steps' | 'microBatch' | 'cachedReference' | 'checkpointing' | 'master' | 'moments' | 'profile'
  > & { totalSteps?: number },
): Promise<{ seconds: number[]; peakBytes: number; loss: number; parameters: number; ops?: readonly OpTime[] }> {
  const dtype = engineDtype(flags.dtype)
  const { master, moments } = flags
  const steps = flags.totalSteps ?? (flags.steps ?? shape.steps) + WARM_UP_STEPS
  using model = newModel(device, shape.config, { seed: 0, dtype })
  const parameters = model.parameters()
  const options = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, master, moments }
  const optimizer = new AdamW(parameters, options)
  const seconds: number[] = []
  let [loss, peakBytes, last] = [0, 0, performance.now()]
  let ops: readonly OpTime[] | undefined
  try {
    const loop = trainLoop({
      device,
      method: benchMethod(flags.method, {
        ...flags,
        model,
        shape,
        steps: steps + (flags.profile ? 1 : 0),
        microBatchTokens: flags.microBatch,
        cachedReference: flags.cachedReference ?? false,
      }),
      models: model,
      optimizer,
      lr: 1e-4,
      schedule: { kind: 'constant', warmupSteps: 0 },
      maxNorm: 1,
      maxSkippedInARow: 1,
      firstStep: 0,
      skippedInARow: 0,
    })
    for (let taken = 0; taken < steps; taken++) {
      const { value: step, done } = await loop.next()
      if (done) break
      // From step to step, so that what a batch costs beforehand counts.
      const now = performance.now()
      if (step.step > WARM_UP_STEPS) seconds.push((now - last) / 1000)
      last = now
      peakBytes = Math.max(peakBytes, step.peakBytes)
      loss = step.loss
    }
    if (flags.profile) {
      ops = await device.profile(async () => {
        await loop.next()
      })
    }
    await loop.return(undefined)
  } finally {
    optimizer.dispose()
  }
  const count = [...parameters.values()].reduce((sum, tensor) => sum + tensor.count, 0)
  return { seconds, peakBytes, loss, parameters: count, ops }
}

function best<T extends StepResult>(results: readonly T[]): T {
  return results.reduce((a, b) => (b.tokensPerSecond > a.tokensPerSecond ? b : a))
}

function bestPeer(results: readonly PeerStep[]): PeerStep {
  const measured = results.filter((result) => 'tokensPerSecond' in result)
  return measured.length > 0 ? best(measured) : results[0]!
}

function resultLines(flags: BenchStepFlags, result: StepResult & { peer?: PeerStep }, terminal: Terminal): string[] {
  const { bold, dim } = terminal.color
  const { B, T } = shapeOf(flags)
  const row = (name: string, r: StepResult) => [
    name,
    countText(Math.round(r.tokensPerSecond)),
    shortNumber(r.gflops),
    shortNumber(r.stepSeconds * 1000),
    shortNumber(flags.device === 'cuda' ? (r.deviceMiB ?? r.peakMiB) : r.peakMiB),
    r.loss.toFixed(4),
  ]
  const rows = [
    ['', 'tokens/s', 'GFLOP/s', 'ms/step', 'peak MiB', 'loss'].map((cell) => dim(cell)),
    row('caravan', result),
  ]
  const { peer } = result
  const notes: string[] = []
  if (peer && 'tokensPerSecond' in peer) {
    rows.push(row(`PyTorch ${peer.version ?? ''}`.trim(), peer))
    notes.push(`caravan / PyTorch: ${bold(shortNumber(result.tokensPerSecond / peer.tokensPerSecond))} x the tokens/s`)
  } else if (peer) notes.push(dim(peer.absent))
  const work = flags.method === 'sft' ? '' : ` ${flags.method}${flags.cachedReference ? ', reference cached' : ''}`
  const { checkpointing = 'none' } = flags
  const what = `${work}${checkpointing === 'none' ? '' : `, ${checkpointing} checkpointing`}`
  const divided = microBatchOf(flags) < B * T ? `, ${microBatchOf(flags)} tokens at a time` : ''
  const title = `${bold(flags.model)}${what}  ${flags.dtype}, ${B} sequences of ${T} tokens${divided}, median step`
  return [
    title,
    ...tableLines(rows, { align: 'lrrrrr', indent: '  ' }),
    ...notes,
    ...profileLines(result.ops, terminal),
  ]
}

function profileLines(ops: readonly OpTime[] | undefined, terminal: Terminal): string[] {
  if (!ops) return []
  const { dim } = terminal.color
  const called = ops.filter(({ calls }) => calls > 0)
  const all = called.reduce((sum, { seconds }) => sum + seconds, 0)
  const cells = called.map(({ op, calls, seconds }) => [
    op,
    countText(calls),
    shortNumber(seconds * 1000),
    shortNumber((seconds / calls) * 1e6),
    `${((100 * seconds) / all).toFixed(1)} %`,
  ])
  const header = ['op', 'calls', 'ms', 'us each', ''].map((cell) => dim(cell))
  return ['', ...tableLines([header, ...cells], { align: 'lrrrr', indent: '  ' })]
}
