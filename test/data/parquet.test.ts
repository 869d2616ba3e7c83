// Needs a build: the decoder runs as a process of its own, from dist/. The golden files were written by pyarrow 25.
import { readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { ParquetDecoder, type ParquetOptions, type ParquetRow, readParquet } from '../../lib/data/parquet.js'
import { convertRow } from '../../lib/data/rows.js'

const golden = (name: string) => fileURLToPath(new URL(`../golden/parquet/${name}`, import.meta.url))
const decoder = new ParquetDecoder({ maxMemoryMiB: 256 })
let directory: string

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'caravan-parquet-'))
})
afterAll(async () => {
  decoder.close()
  await rm(directory, { recursive: true })
})

async function read(file: string, options: ParquetOptions = { decoder }): Promise<ParquetRow[]> {
  const rows: ParquetRow[] = []
  for await (const row of readParquet(file, options)) rows.push(row)
  return rows
}

async function errorOf(bytes: Uint8Array, options?: ParquetOptions): Promise<CaravanError> {
  const file = join(directory, 'bad.parquet')
  await writeFile(file, bytes)
  const error = await read(file, options).then(
    () => undefined,
    (caught) => caught,
  )
  expect(error).toBeInstanceOf(CaravanError)
  expect(error.details.file).toBe(file)
  expect(error.message).toContain(file)
  return error
}

describe('readParquet', () => {
  const expected = JSON.parse(readFileSync(golden('messages.json'), 'utf8')) as Record<string, unknown>[]

  it.each(['none', 'snappy', 'gzip', 'zstd', 'brotli', 'lz4', 'v2_zstd'])(
    'reads what pyarrow wrote with %s',
    async (codec) => {
      const rows = await read(golden(`messages_${codec}.parquet`))
      expect(rows.map(({ row }) => ({ ...row, score: row.score ?? null, n: Number(row.n) }))).toEqual(expected)
      expect(rows.map(({ line }) => line)).toEqual(expected.map((_, i) => i + 1))
      expect(rows.map(({ rowGroup }) => rowGroup)).toEqual(expected.map((_, i) => Math.floor(i / 10)))
      expect(convertRow(rows[3]!.row, { file: 'f', line: 4 })).toEqual({
        kind: 'messages',
        messages: expected[3]!.messages,
      })
    },
  )

  it('reads ids and labels for training as they are', async () => {
    const rows = await read(golden('ids.parquet'))
    expect(rows.map(({ row, line }) => convertRow(row, { file: 'f', line }))).toEqual([
      { kind: 'ids', inputIds: Int32Array.of(1, 2, 3), labels: Int32Array.of(-100, 2, 3) },
      { kind: 'ids', inputIds: Int32Array.of(4, 5), labels: Int32Array.of(-100, 5) },
    ])
  })

  it('starts a decoder of its own, stops early, and can be aborted', async () => {
    for await (const { line } of readParquet(golden('messages_snappy.parquet'))) if (line === 2) break
    const controller = new AbortController()
    controller.abort()
    await expect(read(golden('ids.parquet'), { decoder, signal: controller.signal })).rejects.toMatchObject({
      code: 'ERR_ABORTED',
    })
  })

  it('refuses what is not parquet, cut files, and missing ones', async () => {
    const whole = readFileSync(golden('messages_snappy.parquet'))
    expect((await errorOf(new Uint8Array(0))).message).toContain('too short')
    expect((await errorOf(Buffer.from('{"a":1}\n{"a":2}\n'))).message).toContain('does not begin with PAR1')
    expect(await errorOf(whole.subarray(0, -1))).toMatchObject({ code: 'ERR_FORMAT', details: { part: 'footer' } })
    expect((await errorOf(whole.subarray(0, whole.length >> 1))).code).toBe('ERR_FORMAT')
    await expect(read('/dev/zero')).rejects.toMatchObject({ code: 'ERR_FORMAT' })
    await expect(read(join(directory, 'none.parquet'))).rejects.toMatchObject({
      code: 'ERR_FILE',
      details: { errno: 'ENOENT' },
    })
  })

  it('names the row group that is damaged, and still reads other files', async () => {
    const bytes = readFileSync(golden('messages_zstd.parquet'))
    const magic = Buffer.from('28b52ffd', 'hex') // of a zstd frame: damage the last page
    const at = bytes.lastIndexOf(magic)
    bytes.fill(0xff, at + 4, at + 12)
    const error = await errorOf(bytes)
    expect(error).toMatchObject({ code: 'ERR_FORMAT', details: { rowGroup: 2 } })
    expect(error.message).toContain('row group 2')
    expect(await read(golden('ids.parquet'))).toHaveLength(2)
  })

  it('ends a file whose run lengths claim billions of values, and goes on with the next', async () => {
    const bytes = readFileSync(golden('nulls.parquet'))
    const levels = bytes.indexOf(Buffer.from('050000008080800100', 'hex')) // length, run of 2^20, value 0
    expect(levels).toBeGreaterThan(0)
    bytes.set([0xfe, 0xff, 0xff, 0x7f], levels + 4) // a run of 2^27 - 1
    const small = new ParquetDecoder({ maxMemoryMiB: 96 })
    const error = await errorOf(bytes, { decoder: small })
    expect(error.code).toBe('ERR_FORMAT')
    expect(error.message).toContain('needs more than 96 MiB')
    expect(await read(golden('ids.parquet'), { decoder: small })).toHaveLength(2)
    small.close()
  })

  it('refuses a row group that expands to more than its budget, and one that takes too long', async () => {
    const file = golden('messages_gzip.parquet')
    await expect(read(file, { decoder, maxGroupBytes: 100 })).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      details: { rowGroup: 0 },
    })
    await expect(read(file, { timeoutMs: 1 })).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      message: expect.stringContaining('took longer than 1 ms'),
    })
  })
})
