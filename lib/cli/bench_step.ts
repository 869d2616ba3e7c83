// `caravan bench step`: whole steps of supervised fine-tuning through the real training loop (forward, backward,
// clipping, AdamW), at shapes that PyTorch can run beside it.
import { Random } from '../base/random.js'
import { sftLoss } from '../losses/sft.js'
import type { Batch, Method, MicroLoss } from '../methods/method.js'
import { type CausalLm, newModel } from '../models/index.js'
import { openDevice, selfSegments } from '../ops/index.js'
import { AdamW } from '../optim/adamw.js'
import type { Device } from '../runtime/index.js'
import { Tensor } from '../tensor/index.js'
import { trainLoop } from '../train/loop.js'
import { type BenchModel, type BenchShape, benchShapes } from './bench_shapes.js'
import { type DtypeFlag, engineDtype } from './command_options.js'
import { exitCodes } from './failure.js'
import { countText, shortNumber } from './format.js'
import { machineLine } from './machine.js'
import { tableLines } from './table.js'
import { Terminal } from './terminal.js'
import { median } from './timing.js'
import { type PeerStep, runTorchStep } from './torch_peer.js'

export interface BenchStepFlags {
  model: BenchModel
  dtype: DtypeFlag
  threads?: number
  steps?: number
  rounds: number
  peer?: boolean | string
  peerTimeout: number
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
}

/** Untimed steps before the timed ones. */
const WARM_UP_STEPS = 2

/** Measures steps and prints them; the value is the exit code. */
export async function benchStep(flags: BenchStepFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const shape = benchShapes[flags.model]
  const ours: StepResult[] = []
  const theirs: PeerStep[] = []
  const loadBefore = await withDevice(flags, (device) => machineLine(device))
  for (let round = 0; round < flags.rounds; round++) {
    ours.push(await withDevice(flags, (device) => measureSteps(device, shape, flags)))
    if (flags.peer) theirs.push(await runTorchStep({ ...flags, steps: flags.steps ?? shape.steps }))
  }
  const result = { ...best(ours), peer: theirs.length > 0 ? bestPeer(theirs) : undefined }
  if (flags.json) {
    const { model, dtype, threads } = flags
    terminal.line(
      JSON.stringify({ ...result, model, dtype, threads, batch: shape.B, sequence: shape.T, machine: loadBefore }),
    )
    return exitCodes.done
  }
  terminal.line(terminal.color.dim(loadBefore))
  for (const line of resultLines(flags, result, terminal)) terminal.line(line)
  return exitCodes.done
}

async function withDevice<T>(flags: BenchStepFlags, body: (device: Device) => T | Promise<T>): Promise<T> {
  using device = openDevice({ threads: flags.threads })
  return await body(device)
}

async function measureSteps(device: Device, shape: BenchShape, flags: BenchStepFlags): Promise<StepResult> {
  const dtype = engineDtype(flags.dtype)
  const steps = (flags.steps ?? shape.steps) + WARM_UP_STEPS
  using model = newModel(device, shape.config, { seed: 0, dtype })
  const parameters = model.parameters()
  const optimizer = new AdamW(parameters, { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0 })
  const seconds: number[] = []
  let [loss, peakBytes] = [0, 0]
  try {
    for await (const step of trainLoop({
      device,
      method: new RandomTokens(shape, steps),
      models: model,
      optimizer,
      lr: 1e-4,
      schedule: { kind: 'constant', warmupSteps: 0 },
      maxNorm: 1,
      maxSkippedInARow: 1,
      firstStep: 0,
      skippedInARow: 0,
    })) {
      if (step.step > WARM_UP_STEPS) seconds.push(step.seconds)
      peakBytes = Math.max(peakBytes, step.peakBytes)
      loss = step.loss
    }
  } finally {
    optimizer.dispose()
  }
  const count = [...parameters.values()].reduce((sum, tensor) => sum + tensor.count, 0)
  const stepSeconds = median(seconds)
  const tokensPerSecond = (shape.B * shape.T) / stepSeconds
  return {
    tokensPerSecond,
    gflops: (6 * count * tokensPerSecond) / 1e9,
    peakMiB: process.resourceUsage().maxRSS / 1024,
    deviceMiB: peakBytes / 2 ** 20,
    stepSeconds,
    loss,
  }
}

interface TokenBatch {
  ids: Int32Array
  labels: Int32Array
}

/** Batches of random tokens; every token but the first of a sequence is a target. */
class RandomTokens implements Method<CausalLm, TokenBatch> {
  readonly name = 'bench'
  readonly unitSeed = true
  readonly #random = new Random(0, 1)

  constructor(
    private readonly shape: BenchShape,
    readonly totalSteps: number,
  ) {}

  *batches(): Iterable<Batch<TokenBatch>> {
    const { B, T, config } = this.shape
    for (let step = 0; step < this.totalSteps; step++) {
      const ids = Int32Array.from({ length: B * T }, () => this.#random.integer(0, config.V))
      const labels = ids.map((_, i) => ((i + 1) % T === 0 ? -100 : ids[i + 1]!))
      yield { count: B * (T - 1), tokens: B * T, microBatches: () => [{ ids, labels }] }
    }
  }

  loss(model: CausalLm, { ids, labels }: TokenBatch): MicroLoss {
    const { device } = model
    const { B, T } = this.shape
    const N = B * T
    const bounds = Array.from({ length: B + 1 }, (_, i) => i * T)
    const { data, shape } = selfSegments(bounds)
    const hidden = model.hidden({
      ids: Tensor.from(device, ids, [N]),
      positions: Tensor.from(
        device,
        ids.map((_, i) => i % T),
        [N],
      ),
      segments: Tensor.from(device, data, shape),
    })
    const target = Tensor.from(device, labels, [N])
    return { sum: sftLoss(hidden, model.head, { target, zLoss: 0, reduction: 'token_mean', targets: B * (T - 1) }) }
  }

  state(): null {
    return null
  }

  restore(): void {}
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
  const { B, T } = benchShapes[flags.model]
  const row = (name: string, r: StepResult) => [
    name,
    countText(Math.round(r.tokensPerSecond)),
    shortNumber(r.gflops),
    shortNumber(r.stepSeconds * 1000),
    shortNumber(r.peakMiB),
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
  const title = `${bold(flags.model)}  ${flags.dtype}, ${B} sequences of ${T} tokens, median step`
  return [title, ...tableLines(rows, { align: 'lrrrrr', indent: '  ' }), ...notes]
}
