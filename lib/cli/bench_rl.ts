// `caravan bench rl`: a step of reinforcement learning and where its time goes, on random weights and prompts. What an
// answer is worth is drawn, so that no verifier is measured; `bench verify` does that.
import { CaravanError } from '../base/errors.js'
import { Random } from '../base/random.js'
import { Grpo } from '../methods/grpo.js'
import type { OnlineMethod, OnlineModels, OnlineOptions } from '../methods/online_method.js'
import { Ppo } from '../methods/ppo.js'
import type { Judge, RolloutPrompt } from '../methods/rollout.js'
import { newModel, RewardModel } from '../models/index.js'
import { fill, openDevice, randomNormal } from '../ops/index.js'
import { AdamW } from '../optim/adamw.js'
import { JointOptimizer } from '../optim/optimizer.js'
import type { Device } from '../runtime/index.js'
import { keep } from '../tensor/index.js'
import { type Step, trainLoop } from '../train/loop.js'
import { type BenchModel, benchShapes } from './bench_shapes.js'
import { type DeviceFlag, type DtypeFlag, engineDtype } from './command_options.js'
import { exitCodes } from './failure.js'
import { countText, shortNumber } from './format.js'
import { machineLine } from './machine.js'
import { tableLines } from './table.js'
import { Terminal } from './terminal.js'

export interface BenchRlFlags {
  model: BenchModel
  dtype: DtypeFlag
  device?: DeviceFlag
  threads?: number
  algorithm: 'ppo' | 'grpo'
  answers: number
  /** New tokens of an answer. */
  newTokens: number
  json?: boolean
}

/** Seconds of one rollout and its training, by part. */
export interface RlResult {
  answers: number
  answerTokens: number
  generate: number
  /** Log-probabilities of the reference, values, and the check of the sampler's log-probabilities. */
  score: number
  train: number
  answersPerSecond: number
  peakMiB: number
}

const PROMPT_TOKENS = 64
const SAMPLES = 8
const MINIBATCHES = 4

const drawn: Judge<RolloutPrompt> = {
  judge: (_, answers) =>
    Promise.resolve(
      answers.map(({ tokens }) => ({ reward: tokens[0]! % 2, score: tokens[0]! % 2, reason: '', text: '' })),
    ),
}

/** Measures the second of two rollouts; the value is the exit code. */
export async function benchRl(flags: BenchRlFlags): Promise<number> {
  if (flags.answers % (SAMPLES * MINIBATCHES) !== 0) {
    const wanted = `a multiple of ${SAMPLES * MINIBATCHES}`
    throw new CaravanError('ERR_USAGE', `--answers must be ${wanted}; got ${flags.answers}`)
  }
  const terminal = new Terminal(process.stdout)
  using device = openDevice({ kind: flags.device, threads: flags.threads })
  const result = await measureRl(device, flags)
  const machine = machineLine(device)
  if (flags.json) {
    const { model, dtype, threads, algorithm } = flags
    const shape = { device: flags.device, prompt: PROMPT_TOKENS, newTokens: flags.newTokens }
    terminal.line(JSON.stringify({ ...result, model, dtype, threads, algorithm, ...shape, machine }))
    return exitCodes.done
  }
  terminal.line(terminal.color.dim(machine))
  for (const line of resultLines(flags, result, terminal)) terminal.line(line)
  return exitCodes.done
}

async function measureRl(device: Device, flags: BenchRlFlags): Promise<RlResult> {
  const dtype = engineDtype(flags.dtype) ?? 'f32'
  const { config } = benchShapes[flags.model]
  const made = (trainable: boolean) => newModel(device, config, { seed: 0, dtype, trainable })
  using policy = made(true)
  using reference = made(false)
  const models: OnlineModels = { policy, reference }
  const options = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0 }
  const own = new AdamW(policy.parameters(), options)
  let optimizer: AdamW | JointOptimizer = own
  if (flags.algorithm === 'ppo') {
    models.value = randomValues(device, config, dtype)
    const values = { name: 'value', optimizer: new AdamW(models.value.parameters(), options), lrRatio: 1 }
    optimizer = new JointOptimizer([{ name: 'policy', optimizer: own, lrRatio: 1 }, values])
  }
  const steps: Step[] = []
  try {
    for await (const step of trainLoop({
      device,
      method: methodOf(flags, config.V),
      models,
      optimizer,
      lr: 1e-6,
      schedule: { kind: 'constant', warmupSteps: 0 },
      maxNorm: 1,
      maxSkippedInARow: 1,
      firstStep: 0,
      skippedInARow: 0,
    })) {
      steps.push(step)
    }
  } finally {
    optimizer.dispose()
    models.value?.dispose()
  }
  const measured = steps.slice(MINIBATCHES)
  const { metrics } = measured[0]!
  const train = measured.reduce((sum, { seconds }) => sum + seconds, 0)
  const [generate, score] = [metrics['time/generate']!, metrics['time/prepare']!]
  return {
    answers: flags.answers,
    answerTokens: flags.answers * flags.newTokens,
    generate,
    score,
    train,
    answersPerSecond: flags.answers / (generate + score + train),
    peakMiB: Math.max(...measured.map(({ peakBytes }) => peakBytes)) / 2 ** 20,
  }
}

function randomValues(device: Device, config: ConstructorParameters<typeof RewardModel>[1], dtype: 'f32' | 'bf16') {
  let stream = 0
  const values = new RewardModel(({ name, shape, role }) => {
    if (name === 'score.weight') return keep(fill(device, shape, { value: 0, dtype: 'f32' }))
    if (role === 'norm') return keep(fill(device, shape, { value: 1, dtype }))
    return keep(randomNormal(device, shape, { deviation: 0.02, seed: 1, stream: stream++, dtype }))
  }, config)
  values.setTrainable(true)
  return values
}

function methodOf({ algorithm, answers, newTokens, device }: BenchRlFlags, V: number): OnlineMethod<RolloutPrompt> {
  const samplesPerPrompt = algorithm === 'ppo' ? 1 : SAMPLES
  const prompts = (rollout: number) =>
    Array.from({ length: answers / samplesPerPrompt }, (_, i) => {
      const random = new Random(rollout, i)
      return { ids: Int32Array.from({ length: PROMPT_TOKENS }, () => random.integer(0, V)) }
    })
  const online: OnlineOptions<RolloutPrompt> = {
    prompts,
    judge: drawn,
    samplesPerPrompt,
    maxNewTokens: newTokens,
    temperature: 1,
    stopIds: [],
    seed: 1,
    slots: answers,
    rollouts: 2,
    updateEpochs: 1,
    miniBatches: MINIBATCHES,
    average: 'token',
    microBatchTokens: device === 'cuda' ? 16_384 : 4096,
    activationCheckpointing: 'none',
    maxSteps: 0,
    surrogate: 'clip',
    clipLow: 0.2,
    clipHigh: 0.2,
    ratioCap: 0,
    lossKl: algorithm === 'ppo' ? 'none' : 'k3',
    lossKlCoefficient: algorithm === 'ppo' ? 0 : 0.02,
  }
  if (algorithm === 'grpo') {
    return new Grpo({ ...online, advantage: 'standard', filterZeroVariance: false, maskTruncated: false })
  }
  return new Ppo({
    ...online,
    gamma: 1,
    lambda: 0.95,
    rewardKl: 'k1',
    rewardKlCoefficient: 0.05,
    rewardAfterEnd: false,
    whitenAdvantages: true,
    clipValue: 0.2,
    valueWeight: 0.1,
  })
}

function resultLines(
  { model, dtype, algorithm, newTokens }: BenchRlFlags,
  result: RlResult,
  terminal: Terminal,
): string[] {
  const { bold, dim } = terminal.color
  const { generate, score, train, answers, answerTokens, answersPerSecond, peakMiB } = result
  const all = generate + score + train
  const rows = [
    ['generate', generate],
    ['score', score],
    ['train', train],
    ['all', all],
  ] as const
  const cells = rows.map(([name, seconds]) => [
    name,
    `${shortNumber(seconds)} s`,
    `${Math.round((100 * seconds) / all)} %`,
    `${countText(Math.round(answerTokens / seconds))} answer tokens/s`,
  ])
  return [
    `${bold(model)}  ${algorithm}, ${dtype}, ${answers} answers of ${newTokens} tokens to prompts of ${PROMPT_TOKENS}`,
    ...tableLines(cells, { align: 'lrrr', indent: '  ' }),
    dim(`  ${shortNumber(answersPerSecond)} answers/s, peak ${Math.round(peakMiB)} MiB of tensors`),
  ]
}
