import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { f16ToF32, f32ToF16 } from '../../lib/base/half.js'
import { openSafetensors, readTensorBytes, type SafetensorsDtype } from '../../lib/data/safetensors.js'
import { type TensorSource, writeSafetensors } from '../../lib/data/safetensors_writer.js'
import { type CausalLm, loadModel, saveModel } from '../../lib/models/index.js'
import { openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { leaks } from '../../lib/tensor/index.js'
import { differing, goldenNames, modelFolder, parameterValues } from './golden_model.js'

let device: Device
let root: string
beforeAll(async () => {
  device = openDevice({ threads: 2 })
  root = await mkdtemp(join(tmpdir(), 'caravan-models-'))
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  expect(leaks.caught).toBe(0)
  device.close()
  await rm(root, { recursive: true })
})

const folder = (name: string) => mkdtemp(join(root, `${name}-`))

/** Runs `body` with a model that is freed afterwards. */
async function withModel<R>(load: Promise<CausalLm>, body: (model: CausalLm) => Promise<R>): Promise<R> {
  using model = await load
  return await body(model)
}

describe.each(goldenNames)('%s', (name) => {
  it('comes back bit for bit, whole and in shards', async () => {
    const [whole, sharded] = [await folder(name), await folder(name)]
    const { values, dtype } = await withModel(loadModel(device, modelFolder(name)), async (model) => {
      await saveModel(model, whole)
      await saveModel(model, sharded, { shardBytes: 60_000 })
      expect(model.warnings).toEqual([])
      return { values: await parameterValues(model), dtype: model.dtype }
    })
    expect(dtype).toBe(name === 'llama_bf16' ? 'bf16' : 'f32')
    expect((await readdir(sharded)).filter((file) => /^model-\d/.test(file)).length).toBeGreaterThan(1)
    for (const saved of [whole, sharded]) {
      await withModel(loadModel(device, saved), async (model) => {
        expect(differing(await parameterValues(model), values)).toEqual([])
        expect(model.dtype).toBe(dtype)
      })
    }
  })

  it('holds the very bytes of the file it was loaded from', async () => {
    const saved = await folder(name)
    await withModel(loadModel(device, modelFolder(name)), (model) => saveModel(model, saved))
    const ours = await openSafetensors(join(saved, 'model.safetensors'))
    const files = (await readdir(modelFolder(name))).filter((file) => file.endsWith('.safetensors'))
    let count = 0
    for (const file of files) {
      const theirs = await openSafetensors(join(modelFolder(name), file))
      for (const [tensor, entry] of theirs.tensors) {
        const own = ours.tensors.get(tensor)!
        expect(own, tensor).toMatchObject({ dtype: entry.dtype, shape: entry.shape })
        const [got, wanted] = [await readTensorBytes(ours.path, own), await readTensorBytes(theirs.path, entry)]
        expect(Buffer.compare(got, wanted), tensor).toBe(0)
        count++
      }
    }
    expect(count).toBe(ours.tensors.size)
  })
})

it('saves as f16 and bf16 and loads with conversion', async () => {
  const [half, brain] = [await folder('f16'), await folder('bf16')]
  const values = await withModel(loadModel(device, modelFolder('olmo2')), async (model) => {
    await saveModel(model, half, { dtype: 'f16' })
    await saveModel(model, brain, { dtype: 'bf16' })
    return await parameterValues(model)
  })
  await withModel(loadModel(device, half), async (model) => {
    expect(model.dtype).toBe('f32')
    expect(model.config.dtype).toBe('f16')
    const rounded = [...values].map(([name, value]) => [name, f16ToF32(f32ToF16(value))] as const)
    expect(differing(await parameterValues(model), new Map(rounded))).toEqual([])
  })
  const inBf16 = await withModel(loadModel(device, brain), parameterValues)
  const converted = await withModel(loadModel(device, modelFolder('olmo2'), { dtype: 'bf16' }), parameterValues)
  expect(differing(converted, inBf16)).toEqual([])
})

it('writes the files that belong beside the weights', async () => {
  const [source, saved, again] = [await folder('tokenizer'), await folder('saved'), await folder('again')]
  await writeFile(join(source, 'tokenizer.json'), '{"version": "1.0"}')
  const generationConfig = { eos_token_id: [1, 2], temperature: 0.6 }
  await withModel(loadModel(device, modelFolder('olmo1')), async (model) => {
    const written = await saveModel(model, saved, {
      tokenizerFiles: [join(source, 'tokenizer.json')],
      generationConfig,
    })
    const names = written.map(({ path }) => path.slice(saved.length + 1)).sort()
    expect(names).toEqual(['config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json'])
  })
  expect(await readFile(join(saved, 'tokenizer.json'), 'utf8')).toBe('{"version": "1.0"}')
  const config = await readFile(join(saved, 'config.json'), 'utf8')
  // transformers insists on floats for these.
  expect(config).toContain('"rope_theta": 10000.0')
  expect(JSON.parse(config)).toMatchObject({ clip_qkv: 0.5, dtype: 'float32', torch_dtype: 'float32', use_cache: true })
  // What a model was loaded with goes along.
  await withModel(loadModel(device, saved), (model) => saveModel(model, again))
  expect(JSON.parse(await readFile(join(again, 'generation_config.json'), 'utf8'))).toEqual(generationConfig)
})

it('adds rows to the vocabulary, as the mean of the old ones', async () => {
  const before = await withModel(loadModel(device, modelFolder('llama_gqa_rope3')), parameterValues)
  await withModel(loadModel(device, modelFolder('llama_gqa_rope3'), { vocabularyRows: 376 }), async (model) => {
    expect(model.config.V).toBe(376)
    const after = await parameterValues(model)
    for (const name of ['model.embed_tokens.weight', 'lm_head.weight']) {
      const [old, grown] = [before.get(name)!, after.get(name)!]
      expect(Buffer.compare(Buffer.from(grown.buffer, 0, old.byteLength), Buffer.from(old.buffer))).toBe(0)
      for (let column = 0; column < 48; column++) {
        let sum = 0
        for (let row = 0; row < 368; row++) sum += old[row * 48 + column]!
        for (let row = 368; row < 376; row++) expect(grown[row * 48 + column]).toBeCloseTo(sum / 368, 6)
      }
    }
    const saved = await folder('grown')
    await saveModel(model, saved)
    expect(differing(await withModel(loadModel(device, saved), parameterValues), after)).toEqual([])
  })
  const small = loadModel(device, modelFolder('llama_gqa_rope3'), { vocabularyRows: 300 })
  await expect(small).rejects.toMatchObject({ code: 'ERR_CONFIG' })
})

describe('checkpoints that do not fit', () => {
  /** A copy of llama_mha_tied with its tensors changed. */
  async function changed(change: (tensors: TensorSource[]) => TensorSource[], config: object = {}): Promise<string> {
    const copy = await folder('changed')
    await cp(modelFolder('llama_mha_tied'), copy, { recursive: true })
    const path = join(copy, 'model.safetensors')
    const file = await openSafetensors(path)
    const tensors: TensorSource[] = []
    for (const [name, entry] of file.tensors) {
      const bytes = await readTensorBytes(path, entry)
      tensors.push({ name, dtype: entry.dtype, shape: entry.shape, bytes: () => bytes })
    }
    await writeSafetensors(path, change(tensors))
    const json = JSON.parse(await readFile(join(copy, 'config.json'), 'utf8'))
    await writeFile(join(copy, 'config.json'), JSON.stringify({ ...json, ...config }))
    return copy
  }
  const extra = (name: string, dtype: SafetensorsDtype = 'F32'): TensorSource => ({
    name,
    dtype,
    shape: [2],
    bytes: () => new Uint8Array(dtype === 'F32' ? 8 : 16),
  })

  it('names the tensors that are missing', async () => {
    const directory = await changed((tensors) => tensors.filter(({ name }) => !name.includes('k_proj')))
    await expect(loadModel(device, directory)).rejects.toMatchObject({
      code: 'ERR_MODEL',
      message: expect.stringContaining('lacks 2 of 20 tensors: model.layers.0.self_attn.k_proj.weight, '),
      hint: 'the checkpoint is incomplete: copy or download it again',
    })
  })

  it('says when config.json belongs to another model', async () => {
    const directory = await changed((tensors) => tensors, {
      architectures: ['Olmo2ForCausalLM'],
      model_type: 'olmo2',
    })
    await expect(loadModel(device, directory)).rejects.toMatchObject({
      code: 'ERR_MODEL',
      hint: expect.stringContaining('does config.json belong to it?'),
    })
  })

  it('names a tensor of the wrong shape, with its place and both shapes', async () => {
    const directory = await changed((tensors) => tensors, { intermediate_size: 80 })
    await expect(loadModel(device, directory)).rejects.toMatchObject({
      code: 'ERR_MODEL',
      message: expect.stringMatching(
        /byte \d+: tensor "model\.layers\.0\.mlp\.gate_proj\.weight" must be \[80,40\].*got \[96,40\]/,
      ),
      details: { expected: [80, 40], shape: [96, 40] },
    })
  })

  it('does not take integers for weights', async () => {
    const directory = await changed((tensors) =>
      tensors.map((tensor) => (tensor.name === 'model.norm.weight' ? { ...tensor, dtype: 'I32' } : tensor)),
    )
    await expect(loadModel(device, directory)).rejects.toMatchObject({
      code: 'ERR_MODEL',
      message: expect.stringContaining('tensor "model.norm.weight" must be F32, BF16, F16, F64'),
    })
  })

  it('warns of tensors without a use, but not of harmless ones', async () => {
    const directory = await changed((tensors) => [
      ...tensors,
      extra('model.layers.0.self_attn.rotary_emb.inv_freq'),
      extra('lm_head.weight'),
      extra('my.own.tensor', 'I64'),
    ])
    await withModel(loadModel(device, directory), async (model) => {
      expect(model.warnings).toEqual([`${directory}: 1 unused tensors: my.own.tensor`])
    })
  })

  it('names an output head of the wrong shape', async () => {
    const directory = await changed((tensors) => [...tensors, extra('lm_head.weight')], { tie_word_embeddings: false })
    await expect(loadModel(device, directory)).rejects.toMatchObject({
      code: 'ERR_MODEL',
      message: expect.stringContaining('tensor "lm_head.weight" must be [358,40]'),
    })
  })

  it('takes no memory on the word of config.json alone', async () => {
    const directory = await changed((tensors) => tensors, { tie_word_embeddings: false, num_hidden_layers: 500 })
    await device.idle()
    device.resetPeak()
    await expect(loadModel(device, directory)).rejects.toMatchObject({
      code: 'ERR_MODEL',
      message: expect.stringContaining('lacks 4483 of 4503 tensors'),
    })
    expect(device.stats().peakBytes).toBeLessThan(1e6)
  })

  it('frees what it had made', async () => {
    await device.idle()
    expect(device.stats().liveTensors).toBe(0)
  })
})
