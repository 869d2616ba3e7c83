// Adapters of models: which layers get one, training with a frozen base, and merging.
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { bf16ToF32, f32ToBf16 } from '../../lib/base/half.js'
import {
  adapterCost,
  adapterParameters,
  addAdapter,
  type CausalLm,
  type LoraSpec,
  loadAdapter,
  loadModel,
  mergeAdapter,
  parameterCount,
  removeAdapter,
  saveAdapter,
  trainedParameters,
  trainingMemory,
  withAdapter,
} from '../../lib/models/index.js'
import { Linear } from '../../lib/nn/linear.js'
import { Module, ParameterScope } from '../../lib/nn/module.js'
import { fill, linear, openDevice, scatterRows } from '../../lib/ops/index.js'
import { AdamW } from '../../lib/optim/adamw.js'
import type { Device } from '../../lib/runtime/index.js'
import { type Checkpointing, keep, leaks, scope, Tensor } from '../../lib/tensor/index.js'
import { trainLoop } from '../../lib/train/loop.js'
import {
  adamOptions,
  hashOf,
  loopOptions,
  pocketSizes,
  randomExamples,
  sftOf,
  smallModel,
  tiny,
} from '../train/small_runs.js'
import { adapterValues, base, fillB, logitsOf, options, packed } from './adapted_model.js'
import { differing, modelFolder, parameterValues, rowsOnDevice } from './golden_model.js'

let device: Device
let root: string
beforeAll(async () => {
  device = openDevice({ threads: 2 })
  root = await mkdtemp(join(tmpdir(), 'caravan-adapter-'))
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
  await rm(root, { recursive: true })
})

const folder = () => mkdtemp(join(root, 'folder-'))

describe('a new adapter', () => {
  it('leaves what the model computes as it was, and is what is trained', async () => {
    using model = await loadModel(device, modelFolder(base), { trainable: true })
    const before = await logitsOf(model)
    const all = model.parameters().size
    addAdapter(model, options)
    expect(differing(await logitsOf(model), before)).toEqual([])
    expect(model.parameters().size).toBe(all)
    expect([...model.parameters().values()].some(({ tracked }) => tracked)).toBe(false)
    expect([...adapterParameters(model).values()].every(({ tracked }) => tracked)).toBe(true)
    expect(trainedParameters(model).size).toBe(2 * 7 * model.config.L)
    removeAdapter(model)
    expect(trainedParameters(model).size).toBe(all)
    expect(differing(await logitsOf(model), before)).toEqual([])
  })

  it.each([
    [['q_proj', 'v_proj'], 4],
    [['all-linear'], 14],
    [['model.layers.1.mlp.down_proj'], 1],
    [['mlp.down_proj', 'layers.0.self_attn.o_proj'], 3],
  ])('goes to the layers that %j names', async (targetModules, count) => {
    using model = await loadModel(device, modelFolder(base))
    const lora = addAdapter(model, { ...options, targetModules })
    expect(lora.layers.size).toBe(count)
    const cost = adapterCost(model.config, { ...options, targetModules })
    const elements = [...adapterParameters(model).values()].reduce((sum, tensor) => sum + tensor.count, 0)
    expect([cost.layers, cost.parameters]).toEqual([count, elements])
  })

  it('with lengths of rows of its own starts out as the base to rounding, and counts them', async () => {
    using model = await loadModel(device, modelFolder(base))
    const before = (await logitsOf(model)).get('logits')!
    const spec = { ...options, decomposed: true }
    addAdapter(model, spec)
    const after = (await logitsOf(model)).get('logits')!
    expect(Math.max(...after.map((value, i) => Math.abs(value - before[i]!)))).toBeLessThan(1e-5)
    const elements = [...adapterParameters(model).values()].reduce((sum, tensor) => sum + tensor.count, 0)
    expect(adapterCost(model.config, spec).parameters).toBe(elements)
    expect(trainedParameters(model).size).toBe(3 * 7 * model.config.L)
  })

  it.each([
    [{ rank: 0 }, /rank must be a whole number >= 1; got 0/],
    [{ rank: 1.5 }, /rank/],
    [{ alpha: 0 }, /alpha must be a number > 0/],
    [{ alpha: Number.NaN }, /alpha/],
    [{ dropout: 1 }, /dropout must be at least 0 and below 1; got 1/],
    [{ targetModules: [] }, /name a layer/],
    [{ targetModules: ['q_proj', 'lm_head'] }, /no linear layer is named 'lm_head'; there are q_proj, k_proj/],
  ])('of %j is refused', async (changed, message) => {
    using model = await loadModel(device, modelFolder(base))
    const fault = expect.objectContaining({ code: 'ERR_CONFIG', message: expect.stringMatching(message) })
    expect(() => addAdapter(model, { ...options, ...changed })).toThrow(fault)
    expect(model.decoder.lora).toBeUndefined()
  })

  it('names the nearest layer, and the model has one adapter at most', async () => {
    using model = await loadModel(device, modelFolder(base))
    const wrong = () => addAdapter(model, { ...options, targetModules: ['q_prj'] })
    expect(wrong).toThrow(expect.objectContaining({ hint: "did you mean 'q_proj'?" }))
    addAdapter(model, options)
    expect(() => addAdapter(model, options)).toThrow(expect.objectContaining({ code: 'ERR_CONFIG' }))
  })
})

describe('switched off', () => {
  it('the model is its base, also after a body that throws', async () => {
    using model = await loadModel(device, modelFolder(base))
    const plain = await logitsOf(model)
    addAdapter(model, options)
    fillB(model)
    const adapted = await logitsOf(model)
    expect(differing(adapted, plain)).toEqual(['logits'])
    const off = withAdapter(model, false, () =>
      scope(() => linear(model.hidden(rowsOnDevice(device, packed)), model.head)),
    )
    expect(differing(new Map([['logits', (await off.read()) as Float32Array]]), plain)).toEqual([])
    off.dispose()
    const thrown = () =>
      withAdapter(model, false, () => {
        throw new Error('of the body')
      })
    expect(thrown).toThrow('of the body')
    expect(() => withAdapter(model, false, async () => {})).toThrow(/must not be async/)
    expect(differing(await logitsOf(model), adapted)).toEqual([])
  })
})

interface Training {
  decomposed?: boolean
  threads?: number
  checkpointing?: Checkpointing
  dropout?: number
  dtype?: 'f32' | 'bf16'
}

/** Five steps; hashes of the adapter and the optimizer, and of the base before and after. */
async function train({ threads = 2, checkpointing, dropout = 0.2, dtype, decomposed }: Training) {
  using own = openDevice({ threads })
  const examples = randomExamples({ count: 40, V: tiny.V })
  const method = sftOf(examples, {}, { activationCheckpointing: checkpointing ?? 'none', maxSteps: 5 })
  const model = smallModel(own, { ...tiny, L: 2 }, { dtype })
  const before = await hashOf(model.parameters())
  addAdapter(model, { ...options, dropout, decomposed })
  const optimizer = new AdamW(trainedParameters(model), adamOptions)
  const losses: number[] = []
  for await (const { loss } of trainLoop(loopOptions(own, method, model, optimizer))) losses.push(loss)
  const result = {
    losses,
    adapter: await hashOf(adapterParameters(model)),
    moments: await hashOf(optimizer.tensors()),
    states: optimizer.tensors().size,
    baseIsSame: (await hashOf(model.parameters())) === before,
    passes: model.decoder.lora!.masks?.passes,
  }
  optimizer.dispose()
  model.dispose()
  await own.idle()
  expect(own.stats().liveTensors).toBe(0)
  return result
}

describe('training', () => {
  it('leaves the base untouched bit for bit, and holds optimizer state for the adapter alone', async () => {
    for (const dtype of ['f32', 'bf16'] as const) {
      const { baseIsSame, states, losses, passes } = await train({ dtype })
      expect(baseIsSame).toBe(true)
      // m and v for A and B of seven layers in two blocks: also of a bf16 base no master, as the adapter is f32.
      expect(states).toBe(2 * 2 * 7 * 2)
      expect(losses.every(Number.isFinite)).toBe(true)
      expect(passes).toBeGreaterThanOrEqual(5)
    }
  })

  it('has the same bits on any number of threads, and with activations computed again', async () => {
    const wanted = await train({})
    expect(await train({ threads: 1 })).toEqual(wanted)
    expect(await train({ threads: 3 })).toEqual(wanted)
    expect(await train({ checkpointing: 'full' })).toEqual(wanted)
    expect(await train({ checkpointing: 'selective' })).toEqual(wanted)
    const decomposed = await train({ decomposed: true })
    expect(await train({ decomposed: true, threads: 1, checkpointing: 'full' })).toEqual(decomposed)
    expect(await train({ decomposed: true, checkpointing: 'selective' })).toEqual(decomposed)
    expect([decomposed.baseIsSame, decomposed.states]).toEqual([true, 3 * 2 * 7 * 2])
    const rounded = await train({ dtype: 'bf16' })
    expect(await train({ dtype: 'bf16', checkpointing: 'selective' })).toEqual(rounded)
    expect(await train({ dtype: 'bf16', checkpointing: 'full' })).toEqual(rounded)
    const { losses } = await train({ dropout: 0 })
    expect(losses).not.toEqual(wanted.losses)
  })

  describe('takes the memory that its plan says', () => {
    const peak = async (spec: LoraSpec | undefined, checkpoint: Checkpointing) => {
      using own = openDevice({ threads: 1 })
      const examples = randomExamples({ count: 64, V: pocketSizes.V, least: 100, most: 128 })
      const method = sftOf(examples, { microBatchTokens: 512 }, { activationCheckpointing: checkpoint, maxSteps: 2 })
      using model = smallModel(own, pocketSizes)
      if (spec) addAdapter(model, { ...spec, seed: 5 })
      const optimizer = new AdamW(trainedParameters(model), adamOptions)
      let bytes = 0
      for await (const step of trainLoop(loopOptions(own, method, model, optimizer))) {
        bytes = Math.max(bytes, step.peakBytes)
      }
      const adapter = spec && adapterCost(model.config, spec)
      const plan = trainingMemory(model.config, { tokens: 512, dtype: 'f32', adapter, checkpoint })
      optimizer.dispose()
      expect(bytes).toBeLessThan(1.1 * plan.total)
      expect(bytes).toBeGreaterThan(0.7 * plan.total)
      return { bytes, count: parameterCount(model.config) }
    }
    const lora = { ...options, rank: 8 }

    it('and far less than training all weights', async () => {
      const [full, adapted] = [await peak(undefined, 'none'), await peak(lora, 'none')]
      // At the worst moment, the loss, the two moments of all weights are not there.
      expect(full.bytes - adapted.bytes).toBeGreaterThan(8 * full.count)
    })

    it.each([
      ['', lora],
      [', with dropout', { ...lora, dropout: 0.1 }],
      [', with magnitudes', { ...lora, decomposed: true }],
    ] as [string, LoraSpec][])('in every mode of checkpointing%s', async (_, spec) => {
      const [none, selective, full] = [
        await peak(spec, 'none'),
        await peak(spec, 'selective'),
        await peak(spec, 'full'),
      ]
      expect(selective.bytes).toBeLessThan(0.9 * none.bytes)
      expect(full.bytes).toBeLessThan(0.9 * selective.bytes)
    })
  })
})

describe('merging', () => {
  it('rounds a bf16 weight once, from the sum in f32', async () => {
    using model = await loadModel(device, modelFolder('llama_bf16'))
    expect(model.dtype).toBe('bf16')
    addAdapter(model, { ...options, targetModules: ['model.layers.0.self_attn.q_proj'] })
    fillB(model)
    const [A, B] = [...(await adapterValues(model)).values()] as [Float32Array, Float32Array]
    const name = 'model.layers.0.self_attn.q_proj.weight'
    const before = (await parameterValues(model)).get(name)!
    const [outputs, inputs] = model.parameters().get(name)!.shape as [number, number]
    const progress: number[][] = []
    await mergeAdapter(model, { onProgress: (...done) => progress.push(done) })
    expect(progress).toEqual([[1, 1]])
    const after = (await parameterValues(model)).get(name)!
    const sums = Float32Array.from({ length: outputs * inputs }, (_, i) => {
      let sum = 0
      for (let r = 0; r < 4; r++) sum += B[Math.floor(i / inputs) * 4 + r]! * A[r * inputs + (i % inputs)]!
      return before[i]! + 2 * sum
    })
    const wanted = bf16ToF32(f32ToBf16(sums))
    // The sum over the rank is f32 there and f64 here: now and then that decides a rounding.
    const differ = wanted.filter((value, i) => value !== after[i])
    expect(differ.length).toBeLessThan(0.005 * wanted.length)
    expect(wanted.filter((value, i) => value !== before[i]).length).toBeGreaterThan(0.9 * wanted.length)
  })

  it('stops between layers when it is told to', async () => {
    using model = await loadModel(device, modelFolder(base))
    addAdapter(model, options)
    const stopping = new AbortController()
    const merging = mergeAdapter(model, { signal: stopping.signal, onProgress: () => stopping.abort() })
    await expect(merging).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  })
})

/** A decoder with a head of one output, as reward models have. */
class Scorer extends Module {
  readonly score: Linear

  constructor(
    readonly model: CausalLm,
    readonly device: Device,
  ) {
    super()
    const scope = new ParameterScope(({ shape }) => keep(fill(device, [...shape], { value: 0.5, dtype: 'f32' })))
    this.score = new Linear(scope.at('score'), { inputs: model.config.D, outputs: 1, role: 'head' })
  }

  get decoder() {
    return this.model.decoder
  }

  get config() {
    return this.model.config
  }

  override parameters(): Map<string, Tensor> {
    return new Map([...this.model.parameters(), ['score.weight', this.score.weight]])
  }
}

it('a head that is not the output of a language model is trained and stored with the adapter', async () => {
  const directory = await folder()
  using scorer = new Scorer(await loadModel(device, modelFolder(base)), device)
  addAdapter(scorer, { ...options, targetModules: ['q_proj'] })
  const head = 'base_model.model.score.weight'
  expect([...trainedParameters(scorer).keys()]).toContain(head)
  expect(scorer.score.weight.tracked).toBe(true)
  await saveAdapter(scorer, directory)
  const json = JSON.parse(await readFile(join(directory, 'adapter_config.json'), 'utf8'))
  expect(json).toMatchObject({ modules_to_save: ['score'], task_type: 'SEQ_CLS', target_modules: ['q_proj'] })
  removeAdapter(scorer)
  scope(() => {
    const zero = fill(device, [1, scorer.config.D], { value: 0, dtype: 'f32' })
    scatterRows(scorer.score.weight, zero, Tensor.from(device, new Int32Array(1), [1]))
  })
  await loadAdapter(scorer, directory, { trainable: true })
  expect((await scorer.score.weight.read()).every((value) => value === 0.5)).toBe(true)
  expect(scorer.score.weight.tracked).toBe(true)
})
