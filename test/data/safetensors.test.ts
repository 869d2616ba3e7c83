import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import * as fs from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { bf16ToF32 } from '../../lib/base/half.js'
import { openCheckpointShards } from '../../lib/data/checkpoint_shards.js'
import {
  openSafetensors,
  parseSafetensors,
  readTensorBytes,
  SAFETENSORS_DTYPE_BITS,
  type SafetensorsDtype,
} from '../../lib/data/safetensors.js'
import { type TensorSource, writeSafetensors, writeSafetensorsShards } from '../../lib/data/safetensors_writer.js'
import { makeFile, WICKED } from './wicked_safetensors.js'

const golden = fileURLToPath(new URL('../golden/models/', import.meta.url))
let directory: string

beforeAll(async () => {
  directory = await fs.mkdtemp(join(tmpdir(), 'caravan-safetensors-'))
})
afterAll(() => fs.rm(directory, { recursive: true }))

/** A fresh folder for one test. */
const folder = (name: string) => fs.mkdtemp(join(directory, `${name}-`))

async function errorOf(promise: Promise<unknown>): Promise<CaravanError> {
  const error = await promise.then(
    () => undefined,
    (caught) => caught,
  )
  expect(error).toBeInstanceOf(CaravanError)
  return error
}

/** All tensors of a folder as sources for the writer, in the order of their names. */
async function sourcesOf(model: string): Promise<TensorSource[]> {
  const { tensors } = await openCheckpointShards(join(golden, model))
  return [...tensors].map(([name, entry]) => ({
    name,
    dtype: entry.dtype,
    shape: entry.shape,
    bytes: () => readTensorBytes(entry.path, entry),
  }))
}

describe('openSafetensors', () => {
  it('reads a file of the reference writer: names, shapes, places and values', async () => {
    const path = join(golden, 'llama_bf16/model.safetensors')
    const file = await openSafetensors(path)
    expect(file.metadata).toEqual(new Map([['format', 'pt']]))
    expect(file.tensors.get('lm_head.weight')).toEqual({
      dtype: 'BF16',
      shape: [363, 40],
      byteOffset: 8 + 2128,
      byteLength: 29040,
    })
    const norm = file.tensors.get('model.layers.0.input_layernorm.weight')!
    expect(norm).toEqual({ dtype: 'BF16', shape: [40], byteOffset: 8 + 2128 + 58080, byteLength: 80 })
    const bytes = await readTensorBytes(path, norm)
    expect(bytes).toEqual(readFileSync(path).subarray(norm.byteOffset, norm.byteOffset + 80))
    const values = bf16ToF32(new Uint16Array(bytes.buffer, bytes.byteOffset, 40))
    expect(values.every((value) => Math.abs(value) < 4)).toBe(true)
    expect(file.dataOffset).toBe(2136)
  })

  it('accepts what the format allows', () => {
    expect(parseSafetensors('f', makeFile('{}')).tensors.size).toBe(0)
    expect(parseSafetensors('f', makeFile('{"__metadata__":{}}   ')).tensors.size).toBe(0)
    const scalar = parseSafetensors('f', makeFile('{"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}', 8))
    expect(scalar.tensors.get('s')).toMatchObject({ shape: [], byteLength: 8 })
    const empty =
      '{"e":{"dtype":"F32","shape":[3,0],"data_offsets":[4,4]},"a":{"data_offsets":[0,4],"dtype":"F32","shape":[1]}}'
    expect([...parseSafetensors('f', makeFile(empty, 4)).tensors.keys()]).toEqual(['e', 'a'])
    const named = parseSafetensors('f', makeFile('{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1))
    expect(named.tensors.get('__proto__')).toMatchObject({ dtype: 'U8' })
    const packed = parseSafetensors('f', makeFile('{"q":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}', 2))
    expect(packed.tensors.get('q')!.byteLength).toBe(2)
  })

  it.each(WICKED.map((wicked) => [wicked.name, wicked] as const))('refuses: %s', async (_, wicked) => {
    const path = join(directory, 'wicked.safetensors')
    await fs.writeFile(path, wicked.bytes)
    const error = await errorOf(openSafetensors(path))
    expect(error.code).toBe('ERR_FORMAT')
    expect(error.message).toMatch(wicked.says)
    expect(error.message).toContain(path)
    expect(error.details.file).toBe(path)
    expect(error.details.offset).toBeTypeOf('number')
    if (wicked.offset !== undefined) expect(error.details.offset).toBe(wicked.offset)
    if (wicked.tensor !== undefined) expect(error.details.tensor).toBe(wicked.tensor)
    expect(() => parseSafetensors(path, wicked.bytes)).toThrow(error.message)
  })

  it('has at least forty wicked files', () => expect(WICKED.length).toBeGreaterThanOrEqual(40))

  it('refuses pickles, folders, devices and pipes without waiting on them', async () => {
    expect(await errorOf(openSafetensors(join(directory, 'pytorch_model.bin')))).toMatchObject({
      code: 'ERR_FORMAT',
      hint: expect.stringContaining('safetensors'),
    })
    const fifo = join(await folder('fifo'), 'model.safetensors')
    execFileSync('mkfifo', [fifo])
    for (const path of [fifo, directory, '/dev/zero']) {
      expect((await errorOf(openSafetensors(path))).message).toContain('not a regular file')
    }
    const missing = await errorOf(openSafetensors(join(directory, 'none.safetensors')))
    expect(missing).toMatchObject({ code: 'ERR_FILE', details: { errno: 'ENOENT', operation: 'open' } })
  })

  it('says where a file that shrank after it was opened ends', async () => {
    const path = join(await folder('shrunk'), 'a.safetensors')
    await fs.writeFile(path, makeFile('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 4))
    const { tensors } = await openSafetensors(path)
    await fs.truncate(path, tensors.get('a')!.byteOffset + 1)
    const error = await errorOf(readTensorBytes(path, tensors.get('a')!))
    expect(error).toMatchObject({ code: 'ERR_FORMAT', details: { offset: tensors.get('a')!.byteOffset + 1 } })
  })
})

describe('openCheckpointShards', () => {
  const index = 'model.safetensors.index.json'

  /** A copy of the sharded golden model with its index changed. */
  async function changed(change: (index: { weight_map: Record<string, unknown>; metadata?: unknown }) => void) {
    const path = await folder('shards')
    await fs.cp(join(golden, 'llama_gqa_rope3'), path, { recursive: true })
    const content = JSON.parse(readFileSync(join(path, index), 'utf8'))
    change(content)
    await fs.writeFile(join(path, index), JSON.stringify(content))
    return path
  }

  it('gathers the tensors of all shards', async () => {
    const shards = await openCheckpointShards(join(golden, 'llama_gqa_rope3'))
    const listed = JSON.parse(readFileSync(join(golden, 'llama_gqa_rope3', index), 'utf8'))
    expect([...shards.tensors.keys()].sort()).toEqual(Object.keys(listed.weight_map).sort())
    for (const [name, file] of Object.entries(listed.weight_map)) {
      expect(shards.tensors.get(name)!.path).toBe(join(golden, 'llama_gqa_rope3', file as string))
    }
    const bytes = [...shards.tensors.values()].reduce((sum, entry) => sum + entry.byteLength, 0)
    expect(bytes).toBe(listed.metadata.total_size)
    expect(shards).toMatchObject({ unlisted: [], wrongTotalBytes: undefined })
    expect(shards.files).toHaveLength(3)
  })

  it('opens a single file, and a stem of another name', async () => {
    expect((await openCheckpointShards(join(golden, 'llama_bf16'))).files).toHaveLength(1)
    const path = await folder('adapter')
    await fs.copyFile(join(golden, 'llama_bf16/model.safetensors'), join(path, 'adapter_model.safetensors'))
    expect((await openCheckpointShards(path, { stem: 'adapter_model' })).tensors.size).toBeGreaterThan(0)
    expect(await errorOf(openCheckpointShards(path))).toMatchObject({ code: 'ERR_MODEL' })
  })

  it('names a missing shard, and a tensor that is not where the index says', async () => {
    const missing = await changed(() => {})
    await fs.rm(join(missing, 'model-00002-of-00003.safetensors'))
    const gone = await errorOf(openCheckpointShards(missing))
    expect(gone).toMatchObject({ code: 'ERR_MODEL', details: { shard: 'model-00002-of-00003.safetensors' } })

    const misplaced = await changed((content) => {
      content.weight_map['lm_head.weight'] = 'model-00001-of-00003.safetensors'
    })
    const error = await errorOf(openCheckpointShards(misplaced))
    expect(error).toMatchObject({ code: 'ERR_FORMAT', details: { tensor: 'lm_head.weight' } })
    expect(error.details.offset).toBeGreaterThan(0)
  })

  it('refuses a tensor that lies in two shards', async () => {
    const path = await changed((content) => {
      content.weight_map.extra = 'extra.safetensors'
    })
    const twice = ['extra', 'lm_head.weight'].map((name) => ({
      name,
      dtype: 'U8' as const,
      shape: [1],
      bytes: () => new Uint8Array(1),
    }))
    await writeSafetensors(join(path, 'extra.safetensors'), twice)
    const error = await errorOf(openCheckpointShards(path))
    expect(error).toMatchObject({ code: 'ERR_FORMAT', details: { tensor: 'lm_head.weight' } })
  })

  it('leaves out and reports tensors the index does not name, and a wrong total', async () => {
    const path = await changed((content) => {
      delete content.weight_map['model.norm.weight']
      content.metadata = { total_size: 5 }
    })
    const shards = await openCheckpointShards(path)
    expect(shards.unlisted).toEqual(['model.norm.weight'])
    expect(shards.tensors.has('model.norm.weight')).toBe(false)
    expect(shards.wrongTotalBytes).toBe(5)
    const float = await changed((content) => {
      content.metadata = { total_size: 320448.5, note: { deep: [1, null, true] } }
    })
    expect((await openCheckpointShards(float)).wrongTotalBytes).toBeUndefined()
  })

  const escapes = [
    '../x.safetensors',
    '/etc/passwd',
    'a/../../b',
    'a//b',
    '',
    '.',
    '..',
    'a\\..\\b',
    'a\0b',
    './x',
    'a/',
  ]
  it.each(escapes)('refuses the shard name %j', async (name) => {
    const path = await changed((content) => {
      content.weight_map['lm_head.weight'] = name
    })
    const error = await errorOf(openCheckpointShards(path))
    expect(error).toMatchObject({ code: 'ERR_PATH_ESCAPE', details: { name } })
    expect(error.message).toContain(index)
  })

  it('refuses links that leave the folder, for a shard, a single file, and the index', async () => {
    for (const name of ['model-00001-of-00003.safetensors', 'model.safetensors', index]) {
      const path = await changed(() => {})
      await fs.rm(join(path, name), { force: true })
      await fs.symlink(join(golden, 'llama_bf16/model.safetensors'), join(path, name))
      expect((await errorOf(openCheckpointShards(path))).code).toBe('ERR_PATH_ESCAPE')
    }
  })

  it('follows links inside the folder, and those of the Hugging Face cache', async () => {
    const inside = await changed(() => {})
    await fs.rename(join(inside, 'model-00001-of-00003.safetensors'), join(inside, 'first'))
    await fs.symlink('first', join(inside, 'model-00001-of-00003.safetensors'))
    expect((await openCheckpointShards(inside)).files).toHaveLength(3)

    const cache = await folder('models--x')
    await fs.mkdir(join(cache, 'blobs'))
    await fs.mkdir(join(cache, 'snapshots/abc'), { recursive: true })
    await fs.copyFile(join(golden, 'llama_bf16/model.safetensors'), join(cache, 'blobs/123'))
    await fs.symlink('../../blobs/123', join(cache, 'snapshots/abc/model.safetensors'))
    expect((await openCheckpointShards(join(cache, 'snapshots/abc'))).files).toHaveLength(1)
  })

  it.each([
    ['[]', /expected `\{`/],
    ['{}', /`weight_map` is missing/],
    ['{"weight_map":{}}', /names no tensor/],
    ['{"weight_map":{"a":1}}', /expected a string/],
    ['{"weight_map":{"a":"b","a":"c"}}', /key "a" occurs twice/],
    ['{"weight_map":{"a":"b"}', /expected `\}`, got the end/],
    [`{"metadata":${'['.repeat(100_000)}`, /expected `\{`/],
    [`{"x":${'['.repeat(100_000)}`, /nested deeper than 64/],
    ['{"x":nul}', /expected a value, got `nul\}`/],
  ])('refuses the index %.40s', async (text, says) => {
    const path = await folder('index')
    await fs.writeFile(join(path, index), text)
    const error = await errorOf(openCheckpointShards(path))
    expect(error.code).toBe('ERR_FORMAT')
    expect(error.message).toMatch(says)
    expect(error.details).toMatchObject({ file: join(path, index), offset: expect.any(Number) })
  })

  it('refuses a folder that has only pickles, and says what to do', async () => {
    const path = await folder('pickle')
    await fs.writeFile(join(path, 'pytorch_model.bin'), 'x')
    const error = await errorOf(openCheckpointShards(path))
    expect(error).toMatchObject({ code: 'ERR_FORMAT', hint: expect.stringContaining('safe_serialization') })
  })
})

describe('writeSafetensors', () => {
  it.each(['llama_bf16/model.safetensors', 'llama_gqa_rope3/model-00001-of-00003.safetensors'])(
    'writes %s byte for byte as the reference writer did, whatever the order given',
    async (name) => {
      const original = join(golden, name)
      const { tensors } = await openSafetensors(original)
      const sources = [...tensors].reverse().map(([tensor, entry]) => ({
        name: tensor,
        dtype: entry.dtype,
        shape: entry.shape,
        bytes: () => readTensorBytes(original, entry),
      }))
      const copy = join(await folder('copy'), 'model.safetensors')
      const written = await writeSafetensors(copy, sources)
      expect(readFileSync(copy).equals(readFileSync(original))).toBe(true)
      expect(written.byteLength).toBe(readFileSync(original).length)
    },
  )

  it('writes every element type, the widest first', async () => {
    const path = join(await folder('types'), 'a.safetensors')
    const dtypes = Object.keys(SAFETENSORS_DTYPE_BITS) as SafetensorsDtype[]
    const sources = dtypes.map((dtype, i) => {
      const bytes = new Uint8Array((SAFETENSORS_DTYPE_BITS[dtype] * 8) / 8).fill(i)
      return { name: `t.${dtype}`, dtype, shape: [2, 4], bytes: () => bytes }
    })
    await writeSafetensors(path, sources, { metadata: { a: 'ä"\n', b: '' } })
    const file = await openSafetensors(path)
    expect(file.metadata).toEqual(
      new Map([
        ['a', 'ä"\n'],
        ['b', ''],
      ]),
    )
    expect([...file.tensors.keys()][0]).toBe('t.U64')
    for (const [name, entry] of file.tensors) {
      const index = dtypes.indexOf(name.slice(2) as SafetensorsDtype)
      expect((await readTensorBytes(path, entry)).every((byte) => byte === index)).toBe(true)
    }
  })

  it('keeps the old file when a tensor does not fit its shape', async () => {
    const path = join(await folder('old'), 'a.safetensors')
    await fs.writeFile(path, 'old')
    const short = [{ name: 'a', dtype: 'F32' as const, shape: [3], bytes: () => new Uint8Array(11) }]
    const error = await errorOf(writeSafetensors(path, short))
    expect(error).toMatchObject({ code: 'ERR_SHAPE', details: { tensor: 'a' } })
    expect(error.message).toContain('F32[3] takes 12 bytes; got 11')
    expect(readFileSync(path, 'utf8')).toBe('old')
  })

  it('refuses a name twice, the reserved name, and an impossible shape', async () => {
    const tensor = (name: string, shape: number[]) => ({
      name,
      dtype: 'U8' as const,
      shape,
      bytes: () => new Uint8Array(1),
    })
    const path = join(directory, 'never.safetensors')
    expect((await errorOf(writeSafetensors(path, [tensor('a', [1]), tensor('a', [1])]))).message).toMatch(/given twice/)
    expect((await errorOf(writeSafetensors(path, [tensor('__metadata__', [1])]))).message).toMatch(/reserved/)
    expect((await errorOf(writeSafetensors(path, [tensor('a', [-1])]))).code).toBe('ERR_SHAPE')
    expect((await errorOf(writeSafetensors(path, [tensor('a', [2 ** 52, 2])]))).code).toBe('ERR_SHAPE')
  })
})

describe('writeSafetensorsShards', () => {
  it('writes an index like that of Hugging Face, and reads back every tensor', async () => {
    const path = await folder('sharded')
    const sources = await sourcesOf('llama_gqa_rope3')
    const written = await writeSafetensorsShards(path, sources, { maxShardBytes: 150_000 })
    const files = (await fs.readdir(path)).sort()
    const count = files.length - 1
    expect(count).toBeGreaterThan(1)
    expect(files[0]).toBe(`model-00001-of-0000${count}.safetensors`)
    expect(written.map((file) => file.path)).toHaveLength(files.length)
    const theirs = JSON.parse(readFileSync(join(golden, 'llama_gqa_rope3/model.safetensors.index.json'), 'utf8'))
    const ours = readFileSync(join(path, 'model.safetensors.index.json'), 'utf8')
    expect(JSON.parse(ours).metadata).toEqual(theirs.metadata)
    expect(Object.keys(JSON.parse(ours).weight_map)).toEqual(Object.keys(theirs.weight_map))
    expect(ours).toBe(`${JSON.stringify(JSON.parse(ours), null, 2)}\n`)
    const shards = await openCheckpointShards(path)
    expect(shards.wrongTotalBytes).toBeUndefined()
    for (const source of sources) {
      const entry = shards.tensors.get(source.name)!
      expect(Buffer.from(await readTensorBytes(entry.path, entry)).equals(await source.bytes())).toBe(true)
    }
    for (const file of shards.files) {
      const bytes = [...file.tensors.values()].reduce((sum, entry) => sum + entry.byteLength, 0)
      expect(bytes).toBeLessThanOrEqual(150_000)
    }
  })

  it('writes one file without an index when all fits, and removes what an earlier save left', async () => {
    const path = await folder('again')
    const sources = await sourcesOf('llama_gqa_rope3')
    await writeSafetensorsShards(path, sources, { maxShardBytes: 100_000 })
    await fs.writeFile(join(path, 'model-notes.safetensors'), 'not a shard')
    await writeSafetensorsShards(path, sources)
    expect((await fs.readdir(path)).sort()).toEqual(['model-notes.safetensors', 'model.safetensors'])
    await writeSafetensorsShards(path, sources, { maxShardBytes: 1 })
    expect((await openCheckpointShards(path)).files).toHaveLength(sources.length)
  })

  it('keeps tensor names that look like integers, and __proto__, in the index', async () => {
    const path = await folder('names')
    const names = ['b', '10', '__proto__', '2']
    const sources = names.map((name) => ({ name, dtype: 'U8' as const, shape: [1], bytes: () => new Uint8Array(1) }))
    await writeSafetensorsShards(path, sources, { maxShardBytes: 1 })
    const shards = await openCheckpointShards(path)
    expect([...shards.tensors.keys()].sort()).toEqual([...names].sort())
  })
})
