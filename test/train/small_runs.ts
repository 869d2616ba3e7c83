// Small models, examples and runs that the tests of training share.
import { createHash } from 'node:crypto'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Random } from '../../lib/base/random.js'
import { EncodedBuilder, type EncodedExamples } from '../../lib/data/encoded.js'
import { Loader, type LoaderOptions } from '../../lib/data/loader.js'
import type { PackedBatch } from '../../lib/data/pack.js'
import type { Method } from '../../lib/methods/method.js'
import { Sft, type SftOptions } from '../../lib/methods/sft.js'
import { type CausalLm, type DecoderConfig, newModel } from '../../lib/models/index.js'
import { AdamW } from '../../lib/optim/adamw.js'
import type { Device } from '../../lib/runtime/index.js'
import { leaks, type Tensor } from '../../lib/tensor/index.js'
import { type LoopOptions, type Step, trainLoop } from '../../lib/train/loop.js'

export interface Sizes {
  V: number
  D: number
  L: number
  H: number
  F: number
}

export const tiny: Sizes = { V: 61, D: 16, L: 1, H: 2, F: 32 }
/** Those of the pocket recipe's model. */
export const pocketSizes: Sizes = { V: 1024, D: 128, L: 4, H: 4, F: 384 }

/** A Llama with tied embeddings and random weights. */
export function smallModel(device: Device, sizes: Sizes, { seed = 1, dtype = 'f32' as 'f32' | 'bf16' } = {}): CausalLm {
  const { V, D, L, H, F } = sizes
  const config: DecoderConfig = {
    family: 'llama',
    V,
    D,
    L,
    H,
    K: H,
    C: D / H,
    F,
    normPlacement: 'pre',
    normKind: 'rms',
    eps: 1e-5,
    queryKeyNorm: 'none',
    attentionBias: 'none',
    mlpBias: false,
    tiedHead: true,
    windows: Array(L).fill(0),
    clipQkv: undefined,
    rope: { theta: 10_000, scaling: undefined },
    contextTokens: 512,
    dtype,
    bosId: 1,
    eosIds: [2],
    padId: 0,
    initializerDeviation: 0.04,
  }
  return newModel(device, config, { seed, init: { embeddingDeviation: 0.04, linearGain: 0.5 }, dtype })
}

/** Random examples of `least` to `most` tokens; the first third of each is a prompt. */
export function randomExamples({ count, V, least = 4, most = 24, seed = 7 }: RandomExamples): EncodedExamples {
  const random = new Random(seed)
  const builder = new EncodedBuilder()
  for (let i = 0; i < count; i++) {
    const length = random.integer(least, most + 1)
    const ids = Int32Array.from({ length }, () => random.integer(0, V))
    builder.append({ ids, mask: Uint8Array.from(ids, (_, t) => (t >= length / 3 ? 1 : 0)) })
  }
  return builder.finish()
}

export interface RandomExamples {
  count: number
  V: number
  least?: number
  most?: number
  seed?: number
}

export const plainSft: SftOptions = { reduction: 'token_mean', zLoss: 0, activationCheckpointing: 'none', maxSteps: 0 }

export function sftOf(
  examples: EncodedExamples,
  loader: Partial<LoaderOptions> = {},
  options: Partial<SftOptions> = {},
) {
  const all: LoaderOptions = { batch: { sequences: 8 }, microBatchTokens: 64, seed: 3, epochs: 100, ...loader }
  return new Sft(new Loader(examples, all), { ...plainSft, ...options })
}

export const adamOptions = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1 }

type Options = LoopOptions<{ policy: CausalLm }, PackedBatch>

/** Options of the loop that tests seldom change. */
export function loopOptions<Micro>(
  device: Device,
  method: Method<{ policy: CausalLm }, Micro>,
  model: CausalLm,
  optimizer: AdamW,
): LoopOptions<{ policy: CausalLm }, Micro> {
  return {
    device,
    method,
    models: { policy: model },
    optimizer,
    lr: 3e-3,
    schedule: { kind: 'linear', warmupSteps: 2 },
    maxNorm: 1,
    maxSkippedInARow: 10,
    firstStep: 0,
    skippedInARow: 0,
  }
}

export interface Trained {
  steps: Step[]
  /** SHA-256 of all parameters. */
  weights: string
  /** SHA-256 of all optimizer tensors. */
  moments: string
  /** SHA-256 of loss and gradient norm of every step. */
  metrics: string
}

/** Trains to the end and frees everything. */
export async function trained(
  device: Device,
  model: CausalLm,
  method: Sft,
  changed: Partial<Options> = {},
): Promise<Trained> {
  const optimizer = new AdamW(model.parameters(), adamOptions)
  try {
    const steps: Step[] = []
    const options = { ...loopOptions(device, method, model, optimizer), ...changed }
    for await (const step of trainLoop(options)) steps.push(step)
    return {
      steps,
      weights: await hashOf(model.parameters()),
      moments: await hashOf(optimizer.tensors()),
      metrics: sha256(JSON.stringify(steps.map(({ loss, gradientNorm, lr }) => [loss, gradientNorm, lr]))),
    }
  } finally {
    optimizer.dispose()
    model.dispose()
  }
}

/** SHA-256 of names, types and bits of `tensors`. */
export async function hashOf(tensors: ReadonlyMap<string, Tensor>): Promise<string> {
  const hash = createHash('sha256')
  for (const [name, tensor] of tensors) {
    hash.update(`${name} ${tensor}\n`)
    const raw = await tensor.readRaw()
    hash.update(new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength))
  }
  return hash.digest('hex')
}

export function sha256(text: string | Uint8Array): string {
  return createHash('sha256').update(text).digest('hex')
}

/** Tensors that nobody freed: how many the garbage collector has caught, after it has been made to run. */
export async function leakedTensors(): Promise<number> {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  for (let turn = 0; turn < 3; turn++) {
    collect()
    await nextTurn()
  }
  return leaks.caught
}
