// Worker threads run compiled code, so these tests need a build (dist/).
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { openDataset } from '../../lib/data/dataset.js'
import { type EncodeOptions, type EncodeProgress, encodeDataset } from '../../lib/data/encode.js'
import { cachePath, type EncodingIdentity, encodingKey, readCache } from '../../lib/data/encode_cache.js'
import type { RowEncoder } from '../../lib/data/encoder.js'

const module = new URL('./fixtures/byte_encoder.mjs', import.meta.url)
const texts = Array.from({ length: 700 }, (_, i) => `${'x'.repeat(i % 7)}row ${i}`)
let directory: string
let file: string

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'caravan-encode-'))
  file = join(directory, 'rows.jsonl')
  await writeFile(file, texts.map((text) => JSON.stringify({ text })).join('\n'))
})
afterAll(() => rm(directory, { recursive: true }))

async function encode(options: Partial<EncodeOptions> = {}, path = file) {
  const dataset = await openDataset([path])
  return await encodeDataset(dataset, { encoder: { module, options: {} }, workers: 2, chunkRows: 50, ...options })
}

function textsOf({ examples }: Awaited<ReturnType<typeof encode>>): string[] {
  return Array.from({ length: examples.count }, (_, i) => Buffer.from(Uint8Array.from(examples.idsOf(i))).toString())
}

async function errorOf(promise: Promise<unknown>): Promise<CaravanError> {
  const error = await promise.then(
    () => undefined,
    (caught) => caught,
  )
  expect(error).toBeInstanceOf(CaravanError)
  return error
}

describe('encodeDataset', () => {
  it('keeps the order of the rows in worker threads, also when later chunks finish first', async () => {
    const result = await encode({ encoder: { module, options: { delayMs: 3 } }, workers: 3, chunkRows: 17 })
    expect(textsOf(result)).toEqual(texts)
    expect(result).toMatchObject({ badRows: 0, cacheUse: 'off' })
  })

  it('really works in several threads, or in this one when told so', async () => {
    const threads = async (workers: number) => {
      const { examples } = await encode({ encoder: { module, options: { markThread: true } }, workers, chunkRows: 10 })
      return new Set(Array.from({ length: examples.count }, (_, i) => examples.idsOf(i)[0]))
    }
    expect((await threads(2)).size).toBe(2)
    expect((await threads(0)).size).toBe(1)
  })

  it('takes a function, and passes rows of ids by it', async () => {
    const mixed = join(directory, 'mixed.jsonl')
    await writeFile(mixed, '{"text":"ab"}\n{"input_ids":[7,8],"labels":[-100,8]}\n{"prompt":"p","completion":"c"}')
    const seen: string[] = []
    const encoder: RowEncoder = async (rows) => {
      seen.push(...rows.map(({ kind }) => kind))
      return rows.map((_, i) => ({ ids: Int32Array.of(i), mask: Uint8Array.of(1) }))
    }
    const { examples } = await encode({ encoder }, mixed)
    expect(seen).toEqual(['text', 'messages'])
    expect(Array.from(examples.ids)).toEqual([0, 7, 8, 1])
    expect(Array.from(examples.mask)).toEqual([1, 0, 1, 1])
  })

  it('reports progress after each chunk', async () => {
    const seen: EncodeProgress[] = []
    await encode({ total: 700, chunkRows: 256, onProgress: (progress) => seen.push(progress) })
    expect(seen.map(({ rows }) => rows)).toEqual([256, 512, 700])
    expect(seen.at(-1)).toEqual({ rows: 700, total: 700, tokens: texts.join('').length })
  })

  it.each([0, 2])(
    'passes on code, details and hint of an encoder error, with file and line (%i workers)',
    async (workers) => {
      const error = await errorOf(encode({ encoder: { module, options: { failOn: 'row 333' } }, workers }))
      expect(error).toMatchObject({ code: 'ERR_TEMPLATE', hint: 'fix it', details: { file, line: 334, template: 't' } })
      expect(error.message).toBe(`${file}:334: the template does not render`)
    },
  )

  it.each([
    [1, ''],
    [2, ' or the next row'],
    [3, ' or one of the next 2 rows'],
  ])('says where the fault can be when the encoder does not know its row: %i rows', async (count, doubt) => {
    const place = join(directory, `unknown${count}.jsonl`)
    await writeFile(place, '{"text":"a"}\n'.repeat(count))
    const encoder: RowEncoder = async () => {
      throw new CaravanError('ERR_TEMPLATE', 'does not render')
    }
    expect((await errorOf(encode({ encoder }, place))).message).toBe(`${place}:1${doubt}: does not render`)
  })

  it('passes on errors of the data, and of a module that is no encoder or does not exist', async () => {
    const bad = join(directory, 'bad.jsonl')
    await writeFile(bad, '{"text":"a"}\n{"txt":"b"}\n')
    expect(await errorOf(encode({}, bad))).toMatchObject({ code: 'ERR_DATA', details: { file: bad, line: 2 } })
    for (const workers of [0, 1]) {
      const none = new URL('./fixtures/no_encoder.mjs', import.meta.url)
      expect((await errorOf(encode({ encoder: { module: none, options: {} }, workers }))).code).toBe('ERR_CONFIG')
    }
    const missing = new URL('./fixtures/missing.mjs', import.meta.url)
    expect((await errorOf(encode({ encoder: { module: missing, options: {} }, workers: 1 }))).code).toBe('ERR_INTERNAL')
  })

  it('ends with an error when a worker dies', async () => {
    const error = await errorOf(encode({ encoder: { module, options: { crashOn: 'row 400' } } }))
    expect(error.code).toBe('ERR_INTERNAL')
    expect(error.message).toContain('ended with code 3')
  })

  it('stops at once when aborted while a worker is busy', async () => {
    const controller = new AbortController()
    const running = encode({ encoder: { module, options: { delayMs: 20_000 } }, signal: controller.signal })
    setTimeout(() => controller.abort(new Error('enough')), 100)
    const started = performance.now()
    const error = await errorOf(running)
    expect(error).toMatchObject({ code: 'ERR_ABORTED', cause: new Error('enough') })
    expect(performance.now() - started).toBeLessThan(5000)
    expect((await errorOf(encode({ signal: controller.signal }))).code).toBe('ERR_ABORTED')
  })

  it('refuses an encoder that loses rows, and impossible options', async () => {
    expect((await errorOf(encode({ encoder: async () => [] }))).message).toContain('returned 0 results for 50 rows')
    expect((await errorOf(encode({ chunkRows: 0 }))).message).toContain('chunkRows must be an integer >= 1; got 0')
    expect((await errorOf(encode({ workers: 1.5 }))).message).toContain('workers')
  })
})

describe('the cache', () => {
  const identity: EncodingIdentity = {
    tokenizerHash: 't',
    templateHash: 'u',
    maxTokens: 99,
    options: { trainOn: 'all' },
  }

  /** Encodes through a cache of its own, counting how many rows the encoder sees. */
  function cached(cacheDirectory: string, change: Partial<EncodingIdentity> = {}) {
    let encoded = 0
    const encoder: RowEncoder = async (rows) => {
      encoded += rows.length
      return rows.map((row) => ({
        ids: Int32Array.from(Buffer.from(row.kind === 'text' ? row.text : '')),
        mask: new Uint8Array(row.kind === 'text' ? Buffer.byteLength(row.text) : 0).fill(1),
      }))
    }
    const run = () => encode({ encoder, cache: { directory: cacheDirectory, identity: { ...identity, ...change } } })
    return run().then((result) => ({ ...result, encoded, texts: textsOf(result) }))
  }

  it('is written once and used after, and gives the same examples', async () => {
    const folder = join(directory, 'once', 'deep')
    const first = await cached(folder)
    const second = await cached(folder)
    expect(first).toMatchObject({ cacheUse: 'written', encoded: 700, cacheProblem: undefined })
    expect(second).toMatchObject({ cacheUse: 'hit', encoded: 0 })
    expect(second.examples).toEqual(first.examples)
    expect(second.texts).toEqual(texts)
    expect(await readdir(folder)).toHaveLength(1)
  })

  it('has another key for anything that changes the result, and the same for another path', async () => {
    const copy = join(directory, 'copy.jsonl')
    await writeFile(copy, await readFile(file))
    const other = join(directory, 'other.jsonl')
    await writeFile(other, `${await readFile(file, 'utf8')}\n{"text":"more"}`)
    const key = await encodingKey([file], identity, { form: 'single' })
    expect(
      await encodingKey(
        [copy],
        { options: { trainOn: 'all' }, maxTokens: 99, templateHash: 'u', tokenizerHash: 't' },
        { form: 'single' },
      ),
    ).toBe(key)
    const others = await Promise.all([
      encodingKey([other], identity, { form: 'single' }),
      encodingKey([file, file], identity, { form: 'single' }),
      encodingKey([file], { ...identity, tokenizerHash: 'x' }, { form: 'single' }),
      encodingKey([file], { ...identity, templateHash: 'x' }, { form: 'single' }),
      encodingKey([file], { ...identity, maxTokens: 98 }, { form: 'single' }),
      encodingKey([file], { ...identity, options: { trainOn: 'last' } }, { form: 'single' }),
      encodingKey([file], identity, { form: 'single', fields: { text: 'x' } }),
      encodingKey([file], identity, { form: 'single', onError: 'skip-and-count' }),
    ])
    expect(new Set([key, ...others]).size).toBe(others.length + 1)
  })

  it('finds the flip of any bit and a cut at any place, and names file and offset', async () => {
    const folder = join(directory, 'damage')
    await cached(folder)
    const key = await encodingKey([file], identity, { form: 'single' })
    const path = cachePath(folder, key)
    const good = await readFile(path)
    const step = Math.floor(good.length / 97)
    for (let place = 0; place < good.length; place += place < 200 ? 9 : step) {
      const bad = Buffer.from(good)
      bad[place]! ^= 1 << (place % 8)
      for (const damaged of [bad, good.subarray(0, place)]) {
        await writeFile(path, damaged)
        const error = await errorOf(readCache(folder, key))
        expect(error).toMatchObject({ code: 'ERR_FORMAT', details: { file: path, offset: expect.any(Number) } })
      }
    }
    await writeFile(path, Buffer.concat([good, Buffer.from('x')]))
    expect((await errorOf(readCache(folder, key))).code).toBe('ERR_FORMAT')
  })

  it('is built again when damaged, and the fault is reported', async () => {
    const folder = join(directory, 'again')
    await cached(folder)
    const path = cachePath(folder, await encodingKey([file], identity, { form: 'single' }))
    const good = await readFile(path)
    await truncate(path, good.length >> 1)
    const again = await cached(folder)
    expect(again).toMatchObject({ cacheUse: 'written', encoded: 700, texts, cacheProblem: { code: 'ERR_FORMAT' } })
    expect(await readFile(path)).toEqual(good)
  })

  it('does no harm when it cannot be written', async () => {
    const blocked = join(directory, 'blocked')
    await writeFile(blocked, 'a file, not a folder')
    const result = await cached(join(blocked, 'cache'))
    expect(result).toMatchObject({ cacheUse: 'not-written', texts, cacheProblem: { code: 'ERR_FILE' } })
  })
})
