// `caravan bench generate`: prompts of random tokens, some new tokens each, drawn at temperature 1, through the same
// engine as everything else. Decoding is what is left of the time when that of the prompts is taken off.
import { Random } from '../base/random.js'
import { type GenerateRequest, generateAll } from '../generate/index.js'
import { type CausalLm, newModel } from '../models/index.js'
import { openDevice } from '../ops/index.js'
import { type BenchModel, benchShapes } from './bench_shapes.js'
import { type DeviceFlag, type DtypeFlag, engineDtype } from './command_options.js'
import { exitCodes } from './failure.js'
import { countText, shortNumber } from './format.js'
import { machineLine } from './machine.js'
import { tableLines } from './table.js'
import { Terminal } from './terminal.js'
import { median } from './timing.js'
import { type PeerGenerate, runTorchGenerate } from './torch_peer.js'

export interface BenchGenerateFlags {
  model: BenchModel
  dtype: DtypeFlag
  device?: DeviceFlag
  threads?: number
  batch: readonly number[]
  /** Tokens of a prompt, and new ones. */
  prompt: number
  newTokens: number
  rounds: number
  warmUp: number
  peer?: boolean | string
  peerTimeout: number
  json?: boolean
}

/** What one batch size gave. */
export interface GenerateResult {
  batch: number
  /** New tokens a second over the whole call, prompts included. */
  tokensPerSecond: number
  prefillTokensPerSecond: number
  decodeTokensPerSecond: number
  /** Time of one decoding step. */
  stepMs: number
}

/** Measures generation and prints it; the value is the exit code. */
export async function benchGenerate(flags: BenchGenerateFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  using device = openDevice({ kind: flags.device, threads: flags.threads })
  const { config } = benchShapes[flags.model]
  using model = newModel(device, config, { seed: 0, dtype: engineDtype(flags.dtype) })
  const machine = machineLine(device)
  const rows: { ours: GenerateResult; peer: PeerGenerate | undefined }[] = []
  const { model: name, dtype, device: kind, threads, prompt, newTokens } = flags
  const shape = { device: kind, prompt, newTokens }
  for (const batch of flags.batch) {
    const ours = await measureGenerate(model, { ...flags, batch })
    const peer = flags.peer ? await runTorchGenerate({ ...flags, batch }) : undefined
    rows.push({ ours, peer })
    // Each as it comes: who is stopped before the last batch keeps the others.
    if (flags.json) terminal.line(JSON.stringify({ ...ours, peer, model: name, dtype, threads, ...shape, machine }))
  }
  if (flags.json) return exitCodes.done
  terminal.line(terminal.color.dim(machine))
  for (const line of resultLines(flags, rows, terminal)) terminal.line(line)
  return exitCodes.done
}

/** The sizes of a measurement. */
interface GenerateWork {
  batch: number
  prompt: number
  newTokens: number
  rounds: number
  /** Seconds of calls that are not counted, of which there is one at least: JavaScript is compiled as it runs. */
  warmUp: number
}

/** Median of `rounds` calls. */
export async function measureGenerate(model: CausalLm, work: GenerateWork): Promise<GenerateResult> {
  const { batch, prompt, newTokens, rounds, warmUp } = work
  const whole: number[] = []
  const prompts: number[] = []
  const warm = performance.now() + 1000 * warmUp
  for (let round = 0; whole.length < rounds; round++) {
    const isWarm = round > 0 && performance.now() >= warm
    const seconds = { prompts: await timed(model, { ...work, newTokens: 1, round }), whole: 0 }
    seconds.whole = await timed(model, { ...work, round })
    if (!isWarm) continue
    whole.push(seconds.whole)
    prompts.push(seconds.prompts)
  }
  const [all, prefill] = [median(whole), median(prompts)]
  const decode = Math.max(all - prefill, Number.EPSILON)
  return {
    batch,
    tokensPerSecond: (batch * newTokens) / all,
    prefillTokensPerSecond: (batch * prompt) / prefill,
    decodeTokensPerSecond: (batch * (newTokens - 1)) / decode,
    stepMs: (1000 * decode) / (newTokens - 1),
  }
}

async function timed(
  model: CausalLm,
  { batch, prompt, newTokens, round }: GenerateWork & { round: number },
): Promise<number> {
  const random = new Random(round, batch)
  const requests: GenerateRequest[] = Array.from({ length: batch }, () => ({
    prompt: Int32Array.from({ length: prompt }, () => random.integer(0, model.config.V)),
    maxTokens: newTokens,
  }))
  const started = performance.now()
  await generateAll(model, requests, { slots: batch, seed: round })
  return (performance.now() - started) / 1000
}

function resultLines(
  flags: BenchGenerateFlags,
  rows: readonly { ours: GenerateResult; peer: PeerGenerate | undefined }[],
  terminal: Terminal,
): string[] {
  const { bold, dim } = terminal.color
  const count = (value: number) => countText(Math.round(value))
  const cells = rows.map(({ ours, peer }) => [
    String(ours.batch),
    count(ours.tokensPerSecond),
    count(ours.prefillTokensPerSecond),
    count(ours.decodeTokensPerSecond),
    shortNumber(ours.stepMs),
    ...(peer && 'tokensPerSecond' in peer
      ? [count(peer.tokensPerSecond), `${shortNumber(ours.tokensPerSecond / peer.tokensPerSecond)} x`]
      : []),
  ])
  const measured = cells.some((row) => row.length > 5)
  const header = ['batch', 'tokens/s', 'prefill/s', 'decode/s', 'ms/step', ...(measured ? ['PyTorch', 'ratio'] : [])]
  const absent = rows.map(({ peer }) => peer).find((peer) => peer && 'absent' in peer)
  return [
    `${bold(flags.model)}  ${flags.dtype}, prompts of ${flags.prompt}, ${flags.newTokens} new tokens, temperature 1`,
    ...tableLines([header.map((cell) => dim(cell)), ...cells], { align: 'rrrrrrr', indent: '  ' }),
    ...(absent && 'absent' in absent ? [dim(absent.absent)] : []),
  ]
}
