// doctor and bench: that they run, and that their numbers fit together.
import { writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { benchCall } from '../../lib/cli/bench_call.js'
import { benchShapes } from '../../lib/cli/bench_shapes.js'
import { median } from '../../lib/cli/timing.js'
import { checkConfig, parameterCount } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import { declaredOps } from '../../lib/tensor/index.js'
import { caravan, jsonLines, temporaryFolder } from './command_line.js'

const folder = temporaryFolder()
const noPython = { CARAVAN_PYTHON: join(folder, 'no_python') }

describe('doctor', () => {
  it('says what is here as JSON', async () => {
    const environment = { CARAVAN_CUDA_MODULE: join(folder, 'no_module.so') }
    const { stdout, exitCode } = await caravan(['doctor', '--json'], { environment })
    const found = JSON.parse(stdout) as { [key: string]: unknown } & { engine: { [key: string]: unknown } }
    expect(exitCode).toBe(0)
    expect(found.node).toBe(process.version)
    expect(found.cores).toMatchObject({ available: availableParallelism() })
    expect(found.cuda).toMatchObject({ available: false, reason: expect.stringContaining('no_module.so') })
    const isa = found.engine.isa as { name: string; supported: boolean; built: boolean; kernels: number }[]
    const chosen = isa.find(({ name }) => name === found.engine.chosenIsa)!
    expect(chosen).toMatchObject({ supported: true, built: true })
    // One instruction set has products alone and takes everything else from the one below.
    expect(chosen.kernels).toBeGreaterThan(10)
    expect(Math.max(...isa.filter(({ supported }) => supported).map(({ kernels }) => kernels))).toBeGreaterThan(40)
    expect(found.engine).toMatchObject({ threads: availableParallelism(), tableFaults: [] })
    const { f32 } = found.engine.peak as { f32: { gflops: number; gbps: number } }
    expect(f32.gflops).toBeGreaterThan(0.5)
    expect(f32.gbps).toBeGreaterThan(0.1)
  })

  it('diagnoses an engine that does not load', async () => {
    const environment = { CARAVAN_ADDON: join(folder, 'missing.node') }
    const { stdout, exitCode } = await caravan(['doctor'], { environment })
    expect(stdout).toMatch(/does not load +.*missing\.node: no such file/)
    expect(stdout).toContain('npm run build')
    expect(exitCode).toBe(1)
  })
})

describe('bench generate', () => {
  it('measures batches and gives a line of JSON for each', async () => {
    const words = [
      'bench',
      'generate',
      '--batch',
      '1,3',
      '--rounds',
      '1',
      '--warm-up',
      '0',
      '--threads',
      '2',
      '--peer',
      '--json',
    ]
    const { stdout, exitCode } = await caravan(words, { environment: noPython })
    expect(exitCode).toBe(0)
    const rows = jsonLines(stdout) as { [key: string]: number }[]
    expect(rows.map(({ batch }) => batch)).toEqual([1, 3])
    for (const { batch, tokensPerSecond, prefillTokensPerSecond, decodeTokensPerSecond, stepMs } of rows) {
      expect(decodeTokensPerSecond! * stepMs!).toBeCloseTo(1000 * batch!, 6)
      // The whole is the prompts (32 tokens each, the first new token included) and 63 steps.
      const seconds = (32 * batch!) / prefillTokensPerSecond! + (63 * stepMs!) / 1000
      expect((64 * batch!) / tokensPerSecond!).toBeCloseTo(seconds, 9)
    }
    expect((rows[0] as { peer?: { absent?: string } }).peer?.absent).toMatch(/no PyTorch numbers/)
  }, 120_000)
})

describe('bench step', () => {
  it('measures steps and gives one line of JSON', async () => {
    const words = ['bench', 'step', '--model', 'tiny', '--steps', '1', '--threads', '2', '--peer', '--json']
    const { stdout, exitCode } = await caravan(words, { environment: noPython })
    expect(exitCode).toBe(0)
    const [result, ...rest] = jsonLines(stdout) as { [key: string]: number }[]
    expect(rest).toEqual([])
    expect(result).toMatchObject({ model: 'tiny', dtype: 'fp32', batch: 32, sequence: 128 })
    const { tokensPerSecond, gflops, stepSeconds, peakMiB, loss } = result!
    expect(tokensPerSecond! * stepSeconds!).toBeCloseTo(4096, 3)
    // By PyTorch for this configuration: bench/torch_peer.py prints params.
    expect(gflops! / tokensPerSecond!).toBeCloseTo((6 * TINY_PARAMETERS) / 1e9, 9)
    expect(peakMiB).toBeGreaterThan(50)
    // Random tokens, small weights: the loss is that of guessing.
    expect(Math.abs(loss! - Math.log(512))).toBeLessThan(0.3)
    expect((result as { peer?: { absent?: string } }).peer?.absent).toMatch(/no PyTorch numbers/)
  }, 120_000)

  it('takes another batch and length, and refuses what is no pairs', async () => {
    const words = ['bench', 'step', '--steps', '1', '--threads', '2', '--json', '--batch', '2', '--length', '8']
    const [result] = jsonLines((await caravan(words)).stdout)
    expect(result).toMatchObject({ batch: 2, sequence: 8 })
    const refused = await caravan(['bench', 'step', '--method', 'dpo', '--batch', '3'])
    expect(refused.exitCode).toBe(2)
    expect(refused.stderr).toContain('dpo takes pairs')
  }, 60_000)

  it.each([
    ['sft', [8, 24, 48], 5e-6],
    ['dpo --cached-reference', [16, 48], 5e-6],
  ])(
    'makes the same steps of %s in micro-batches',
    async (method, sizes, tolerance) => {
      const words = ['bench', 'step', '--method', ...method.split(' '), '--steps', '2', '--threads', '2', '--json']
      const lossOf = async (size: number) => {
        const chosen = ['--batch', '6', '--length', '8', '--micro-batch', String(size)]
        const [result] = jsonLines((await caravan([...words, ...chosen])).stdout)
        expect(result).toMatchObject({ microBatch: size })
        return (result as { loss: number }).loss
      }
      const whole = await lossOf(4096)
      for (const size of sizes) expect(Math.abs((await lossOf(size)) / whole - 1)).toBeLessThan(tolerance)
    },
    60_000,
  )

  it('stops a rival that does not end, says so, and ends itself', async () => {
    const script = join(folder, 'endless.sh')
    // The inner sleep holds the pipes after the outer process is gone.
    writeFileSync(script, 'sleep 120 & sleep 120\n')
    const words = ['bench', 'step', '--steps', '1', '--threads', '2', '--peer', script, '--peer-timeout', '1', '--json']
    const { stdout, exitCode } = await caravan(words, { environment: { CARAVAN_PYTHON: 'sh' } })
    expect(exitCode).toBe(0)
    const [result] = jsonLines(stdout) as { peer: { absent: string } }[]
    expect(result!.peer.absent).toBe(
      `no PyTorch numbers: sh ${script} did not end within 1 s and was stopped; --peer-timeout gives it more`,
    )
  }, 60_000)

  it('has the parameter counts of the rival', () => {
    for (const { config } of Object.values(benchShapes)) checkConfig(config)
    const counts = Object.values(benchShapes).map(({ config }) => parameterCount(config))
    const largest = [BASE_PARAMETERS, LLAMA_1B_PARAMETERS, LLAMA_8B_PARAMETERS]
    expect(counts).toEqual([TINY_PARAMETERS, SMALL_PARAMETERS, BASE_PARAMETERS, ...largest])
  })
})

// sum(p.numel() for p in model.parameters()) in transformers 5.18 for the configurations of bench/torch_peer.py.
const TINY_PARAMETERS = 803_968
const SMALL_PARAMETERS = 15_191_712
const BASE_PARAMETERS = 494_032_768
// As Meta's model cards have them: 1.24B and 8.03B.
const LLAMA_1B_PARAMETERS = 1_235_814_400
const LLAMA_8B_PARAMETERS = 8_030_261_248

describe('bench kernels', () => {
  it('relates time, bytes and operations', async () => {
    const words = ['bench', 'kernels', 'rope', '--samples', '2', '--json']
    const { stdout, exitCode } = await caravan(words, { environment: noPython })
    expect(exitCode).toBe(0)
    const [machine, kernel] = jsonLines(stdout)
    const notes = (machine as { notes: string[] }).notes
    expect(machine).toMatchObject({ type: 'machine' })
    expect(notes[0]).toMatch(/no PyTorch beside it/)
    expect(kernel).toMatchObject({ type: 'kernel', op: 'rope' })
    const { gbps, medianSeconds, bestSeconds } = kernel as { [key: string]: number }
    // x and y [4096,16,64] and the table [4096,64], f32.
    const bytes = 4 * 4096 * 64 * (16 + 16 + 1)
    expect((gbps! * 1e9 * medianSeconds!) / bytes).toBeCloseTo(1, 6)
    expect(bestSeconds!).toBeLessThanOrEqual(medianSeconds!)
  })

  it('counts what a call moves', () => {
    using device = openDevice({ threads: 1 })
    const bytesOf = (name: string, sample: object) => {
      const call = benchCall(declaredOps().get(name)!, sample as never, { device, dtype: 'f32' })
      for (const tensor of call.inputs.values()) tensor.dispose()
      return { bytes: call.bytes, written: call.written, flops: call.flops }
    }
    expect(bytesOf('linear', { lead: [2], D: 3, F: 5 })).toEqual({
      bytes: 4 * (6 + 15 + 10),
      written: 4 * 10,
      flops: 2 * 2 * 3 * 5,
    })
    // Of the table, only the rows asked for are read.
    expect(bytesOf('embedding', { N: 2, V: 1000, D: 3 }).bytes).toBe(4 * (2 + 6 + 6))
    // A reduction writes its result, not a tensor of the size of its input.
    expect(bytesOf('sum', { shapes: { x: [8, 5] }, axis: 1 })).toMatchObject({ bytes: 4 * (40 + 8), written: 4 * 8 })
    // Updated in place: read and written.
    expect(bytesOf('add_into', { shapes: { y: [10], x: [10] } })).toMatchObject({ bytes: 4 * 30, written: 4 * 10 })
  })

  it('takes the middle value', () => {
    expect([median([3, 1, 2]), median([4, 1, 2, 3])]).toEqual([2, 2.5])
  })
})
