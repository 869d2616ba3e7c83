// Adapters as PEFT stores them: out and in again, the ways in which layers are named, and files that do not fit.
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openSafetensors, readTensorBytes } from '../../lib/data/safetensors.js'
import { type TensorSource, writeSafetensors } from '../../lib/data/safetensors_writer.js'
import {
  adapterParameters,
  addAdapter,
  loadAdapter,
  loadModel,
  removeAdapter,
  saveAdapter,
} from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { leaks } from '../../lib/tensor/index.js'
import { goldenPath } from '../golden_tensors.js'
import { adapterValues, base, fillB, logitsOf, options } from './adapted_model.js'
import { differing, modelFolder } from './golden_model.js'

let device: Device
let root: string
beforeAll(async () => {
  device = openDevice({ threads: 2 })
  root = await mkdtemp(join(tmpdir(), 'caravan-adapter-files-'))
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
  await rm(root, { recursive: true })
})

const folder = () => mkdtemp(join(root, 'folder-'))

describe('files', () => {
  it.each([
    [['all-linear'], 0, ['down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj']],
    [['q_proj', 'v_proj'], 0.1, ['q_proj', 'v_proj']],
    [['model.layers.1.mlp.down_proj'], 0, ['model.layers.1.mlp.down_proj']],
  ])('come back bit for bit: %j', async (targetModules, dropout, written) => {
    const directory = await folder()
    using model = await loadModel(device, modelFolder(base))
    addAdapter(model, { ...options, alpha: 5.5, rankStabilised: true, dropout, targetModules })
    fillB(model)
    const [values, logits] = [await adapterValues(model), await logitsOf(model)]
    const files = await saveAdapter(model, directory, { baseModel: 'some/model' })
    expect(files.map(({ path }) => path.slice(directory.length + 1))).toEqual([
      'adapter_model.safetensors',
      'adapter_config.json',
    ])
    const json = JSON.parse(await readFile(join(directory, 'adapter_config.json'), 'utf8'))
    expect(json).toMatchObject({ peft_type: 'LORA', r: 4, lora_alpha: 5.5, use_rslora: true, lora_dropout: dropout })
    expect(json).toMatchObject({ target_modules: written, base_model_name_or_path: 'some/model', bias: 'none' })
    removeAdapter(model)
    const loaded = await loadAdapter(model, directory)
    expect(loaded.masks?.rate).toBe(dropout > 0 ? dropout : undefined)
    expect(differing(await adapterValues(model), values)).toEqual([])
    expect(differing(await logitsOf(model), logits)).toEqual([])
    expect([...adapterParameters(model).values()].some(({ tracked }) => tracked)).toBe(false)
  })

  it('are those of the reference, tensor for tensor, when an adapter of it is loaded and saved', async () => {
    for (const name of ['lora_all_linear', 'lora_rs_qv', 'lora_dora']) {
      const directory = await folder()
      using model = await loadModel(device, modelFolder(base))
      await loadAdapter(model, goldenPath(`lora/${name}/adapter`))
      await saveAdapter(model, directory)
      const read = (place: string) => readFile(join(place, 'adapter_model.safetensors'))
      expect(Buffer.compare(await read(directory), await read(goldenPath(`lora/${name}/adapter`))), name).toBe(0)
      const json = JSON.parse(await readFile(join(directory, 'adapter_config.json'), 'utf8'))
      expect([json.use_dora, json.use_rslora]).toEqual([name === 'lora_dora', name === 'lora_rs_qv'])
    }
  })

  it('say so when the model has none', async () => {
    using model = await loadModel(device, modelFolder(base))
    await expect(saveAdapter(model, root)).rejects.toMatchObject({ code: 'ERR_CONFIG' })
    expect(() => removeAdapter(model)).not.toThrow()
  })
})

/** A copy of a reference adapter, changed. */
async function changedAdapter(
  config: object,
  change: (tensors: TensorSource[]) => TensorSource[] = (tensors) => tensors,
): Promise<string> {
  const copy = await folder()
  await cp(goldenPath('lora/lora_all_linear/adapter'), copy, { recursive: true })
  const json = JSON.parse(await readFile(join(copy, 'adapter_config.json'), 'utf8'))
  await writeFile(join(copy, 'adapter_config.json'), JSON.stringify({ ...json, ...config }))
  const path = join(copy, 'adapter_model.safetensors')
  const tensors: TensorSource[] = []
  for (const [name, entry] of (await openSafetensors(path)).tensors) {
    const bytes = await readTensorBytes(path, entry)
    tensors.push({ name, dtype: entry.dtype, shape: entry.shape, bytes: () => bytes })
  }
  await writeSafetensors(path, change(tensors))
  return copy
}

const regular = '.*\\.(q|k|v|o|gate|up|down)_proj'
const onlyLayer1 = (tensors: TensorSource[]) => tensors.filter(({ name }) => name.includes('layers.1.'))

describe('the ways in which PEFT names layers', () => {
  it.each([
    ['a regular expression', { target_modules: regular }, undefined, 14],
    ['a named group of Python', { target_modules: regular.replace('(q|', '(?P<which>q|') }, undefined, 14],
    ['all-linear', { target_modules: 'all-linear' }, undefined, 14],
    ['layers by number', { layers_to_transform: [1] }, onlyLayer1, 7],
    ['a layer by number', { layers_to_transform: 1, layers_pattern: 'layers' }, onlyLayer1, 7],
    ['exclusion by name', { exclude_modules: ['layers.0.mlp.gate_proj'] }, without('0.mlp.gate_proj'), 13],
    ['exclusion by expression', { exclude_modules: '.*0\\.mlp\\.gate_proj' }, without('0.mlp.gate_proj'), 13],
  ])('%s', async (_, config, change, count) => {
    using model = await loadModel(device, modelFolder(base))
    const { layers } = await loadAdapter(model, await changedAdapter(config, change))
    expect(layers.size).toBe(count)
    expect([...layers.values()].every(({ rank, scale }) => rank === 4 && scale === 2)).toBe(true)
  })

  it('ranks and alphas by pattern, which come back when saved', async () => {
    const config = {
      r: 9,
      lora_alpha: 90,
      rank_pattern: { 'q_proj|k_proj': 4, [regular]: 4 },
      alpha_pattern: { '^model.layers.0.mlp.down_proj': 12, proj: 1, up_proj: 16 },
    }
    using model = await loadModel(device, modelFolder(base))
    const check = (layers: ReadonlyMap<string, { rank: number; scale: number }>) => {
      for (const [name, { rank, scale }] of layers) {
        const alpha = name === 'model.layers.0.mlp.down_proj' ? 12 : name.endsWith('.up_proj') ? 16 : 90
        expect([name, rank, scale]).toEqual([name, 4, alpha / 4])
      }
      expect(layers.size).toBe(14)
    }
    check((await loadAdapter(model, await changedAdapter(config))).layers)
    const saved = await folder()
    await saveAdapter(model, saved)
    removeAdapter(model)
    check((await loadAdapter(model, saved)).layers)
  })

  function without(part: string) {
    return (tensors: TensorSource[]) => tensors.filter(({ name }) => !name.includes(part))
  }
})

describe('adapters that do not fit', () => {
  it.each([
    ['another kind', { peft_type: 'LOHA' }, /adapter_config\.json: peft_type must be "LORA"; got "LOHA"/],
    ['no kind', { peft_type: null }, /peft_type must be a string; got nothing/],
    ['trained biases', { bias: 'all' }, /bias must be "none"; got "all"/],
    ['DoRA without its vectors', { use_dora: true }, /lacks 14 of 42 tensors: .*lora_magnitude_vector/],
    ['a switch as text', { use_dora: 'yes' }, /use_dora must be true or false/],
    ['a bias of its own', { lora_bias: true }, /lora_bias must be absent/],
    ['transposed weights', { fan_in_fan_out: true }, /fan_in_fan_out must be absent/],
    ['trained tokens', { trainable_token_indices: [1] }, /trainable_token_indices must be absent/],
    ['a key of a later version', { new_thing: { on: true } }, /new_thing must be absent/],
    ['PiSSA', { init_lora_weights: 'pissa' }, /init_lora_weights must be one that leaves the base as it is/],
    ['rank 0', { r: 0 }, /r must be an integer from 1/],
    ['a rank as text', { r: '4' }, /r must be an integer/],
    ['no alpha', { lora_alpha: null }, /lora_alpha must be a number > 0; got nothing/],
    ['too much dropout', { lora_dropout: 1 }, /lora_dropout must be a number from 0 to below 1; got 1/],
    ['no layers', { target_modules: null }, /target_modules must be a list of names/],
    ['layers as numbers', { target_modules: [1] }, /target_modules must be a list of strings/],
    ['layers that are not there', { target_modules: ['c_attn'] }, /target_modules must name linear layers of the blo/],
    ['fewer layers', { target_modules: ['q_proj'] }, /the adapter has, and the model does not use, 24 of 28 tensors/],
    ['other sizes', { r: 5 }, /tensor "base_model.*lora_A.weight" must be \[5,48\], by the rank .* got \[4,48\]/],
    ['no expression', { target_modules: '(' }, /target_modules must be a regular expression that can be run/],
    ['an expression without end', { target_modules: '(([a-z.0-9_])+)+!' }, /target_modules must be a regular expr/],
    ['a rank as text by pattern', { rank_pattern: { q_proj: '4' } }, /rank_pattern must be an object with numbers/],
    ['foreign layers', { layers_pattern: 'h' }, /layers_pattern must be "layers"/],
  ])('%s', async (_, config, message) => {
    using model = await loadModel(device, modelFolder(base))
    const loading = loadAdapter(model, await changedAdapter(config))
    await expect(loading).rejects.toMatchObject({ code: 'ERR_MODEL', message: expect.stringMatching(message) })
    expect(model.decoder.lora).toBeUndefined()
  })

  it('a matrix that is missing, one of another type, and a head that the model does not have', async () => {
    using model = await loadModel(device, modelFolder(base))
    const changes: [object, (tensors: TensorSource[]) => TensorSource[], RegExp][] = [
      [{}, (tensors) => tensors.slice(1), /the adapter lacks 1 of 28 tensors: base_model.*lora_A\.weight/],
      [
        {},
        ([first, ...rest]) => [
          { ...first!, dtype: 'I32', bytes: () => new Uint8Array(4 * first!.shape.reduce((a, b) => a * b, 1)) },
          ...rest,
        ],
        /byte \d+: tensor ".*" must be F32, BF16, F16, F64; got I32/,
      ],
      [
        { modules_to_save: ['lm_head'] },
        (tensors) => [
          ...tensors,
          { name: 'base_model.model.lm_head.weight', dtype: 'F32', shape: [1], bytes: () => new Uint8Array(4) },
        ],
        /modules_to_save must be empty, as this model has no head of its own; got "lm_head"/,
      ],
    ]
    for (const [config, change, message] of changes) {
      const loading = loadAdapter(model, await changedAdapter(config, change))
      await expect(loading).rejects.toMatchObject({ code: 'ERR_MODEL', message: expect.stringMatching(message) })
    }
    // PEFT lists names of heads whether there are any or not.
    await loadAdapter(model, await changedAdapter({ modules_to_save: ['classifier', 'score'] }))
  })

  it('an adapter in the place of a model', async () => {
    await expect(loadModel(device, goldenPath('lora/lora_all_linear/adapter'))).rejects.toMatchObject({
      code: 'ERR_MODEL',
      hint: expect.stringContaining('merge-lora'),
    })
  })

  it('a folder without an adapter, and one with a pickle', async () => {
    using model = await loadModel(device, modelFolder(base))
    await expect(loadAdapter(model, root)).rejects.toMatchObject({
      code: 'ERR_MODEL',
      message: `${root}: adapter_config.json is not there`,
    })
    const pickled = await changedAdapter({})
    await rm(join(pickled, 'adapter_model.safetensors'))
    await writeFile(join(pickled, 'adapter_model.bin'), 'x')
    await expect(loadAdapter(model, pickled)).rejects.toMatchObject({ code: 'ERR_FORMAT' })
  })
})
