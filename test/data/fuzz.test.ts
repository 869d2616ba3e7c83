// Any bytes give a value or a CaravanError that names file and place; never another exception, a hang, or a crash.
// Seeds are fixed; CARAVAN_TEST_FULL=1 runs ten times as many. The parquet part needs a build.
import { readFileSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { Random } from '../../lib/base/random.js'
import { openCheckpointShards } from '../../lib/data/checkpoint_shards.js'
import { readJsonLines } from '../../lib/data/json_lines.js'
import { ParquetDecoder, readParquet } from '../../lib/data/parquet.js'
import { convertRow } from '../../lib/data/rows.js'
import { parseSafetensors } from '../../lib/data/safetensors.js'
import { mutate } from './mutate.js'
import { makeFile, WICKED } from './wicked_safetensors.js'

const scale = process.env.CARAVAN_TEST_FULL === '1' ? 10 : 1
const golden = (name: string) => readFileSync(new URL(`../golden/${name}`, import.meta.url))
let directory: string

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'caravan-fuzz-'))
})
afterAll(() => rm(directory, { recursive: true }))

/** Checks the rule for one mutant; true when it was accepted. */
async function survives(label: string, file: string, read: () => unknown): Promise<boolean> {
  try {
    await read()
    return true
  } catch (error) {
    const place = error instanceof CaravanError ? error.details : undefined
    const named = [place?.offset, place?.line, place?.rowGroup, place?.part].some((value) => value !== undefined)
    if (!(error instanceof CaravanError && place?.file === file && named && error.message.includes(file))) {
      throw new Error(`${label}: not a typed error with its place: ${error}`, { cause: error })
    }
    return false
  }
}

it('safetensors: 4,000 mutants', async () => {
  const small =
    '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"c":{"dtype":"U8","shape":[],"data_offsets":[32,33]}}'
  const corpus = [
    makeFile(small, 33),
    golden('models/llama_gqa_rope3/model-00001-of-00003.safetensors'),
    ...WICKED.slice(20).map(({ bytes }) => bytes),
  ]
  const random = new Random(2026)
  const count = 4000 * scale
  let accepted = 0
  for (let i = 0; i < count; i++) {
    const pick = random.integer(0, 10)
    const whole = pick < 6 ? corpus[0]! : pick < 8 ? corpus[1]!.subarray(0, 2000) : random.choice(corpus.slice(2))
    const bytes = mutate(whole.length > 10_000 ? whole.subarray(0, 2000) : whole, random)
    if (await survives(`mutant ${i}`, 'f.safetensors', () => parseSafetensors('f.safetensors', bytes))) accepted++
  }
  expect(accepted).toBeGreaterThan(count / 200) // else the mutations are too rough to reach the later checks
  expect(accepted).toBeLessThan(count / 2)
})

it('index of shards: 300 mutants', async () => {
  const random = new Random(7)
  const original = golden('models/llama_gqa_rope3/model.safetensors.index.json')
  for (let i = 0; i < 300 * scale; i++) {
    const file = join(directory, 'model.safetensors.index.json')
    await writeFile(file, mutate(original, random))
    await survives(`mutant ${i}`, file, () => openCheckpointShards(directory)) // the shards are never there
  }
})

it('JSON lines, arrays and gzip: 900 mutants', async () => {
  const rows = [
    {
      messages: [
        { role: 'user', content: 'a "quoted" ä \\ text' },
        { role: 'assistant', content: 'b\nc' },
      ],
    },
    { prompt: 'p', completion: 'c', n: [1.5e3, -2, null, true] },
    { input_ids: [1, 2, 3], labels: [-100, 2, 3] },
  ]
  const lines = Buffer.from(rows.map((row) => JSON.stringify(row)).join('\n'))
  const corpus: [string, Uint8Array][] = [
    ['a.jsonl', lines],
    ['a.json', Buffer.from(JSON.stringify(rows, null, 1))],
    ['a.jsonl.gz', Buffer.concat([gzipSync(lines), gzipSync(lines)])],
  ]
  const random = new Random(11)
  let accepted = 0
  for (let i = 0; i < 900 * scale; i++) {
    const [name, original] = random.choice(corpus)
    const file = join(directory, name)
    await writeFile(file, mutate(original, random))
    const ok = await survives(`mutant ${i}`, file, async () => {
      for await (const { row, line } of readJsonLines(file)) convertRow(row, { file, line })
    })
    if (ok) accepted++
  }
  expect(accepted).toBeGreaterThan(20)
})

it('parquet: 150 mutants', async () => {
  const names = ['none', 'snappy', 'gzip', 'zstd', 'brotli', 'lz4', 'v2_zstd']
  const corpus = [
    ...names.map((name) => golden(`parquet/messages_${name}.parquet`)),
    golden('parquet/ids.parquet'),
    golden('parquet/nulls.parquet'),
  ]
  const random = new Random(13)
  const decoder = new ParquetDecoder({ maxMemoryMiB: 128, timeoutMs: 5000 })
  const file = join(directory, 'a.parquet')
  for (let i = 0; i < 150 * scale; i++) {
    const original = random.choice(corpus)
    // Cuts only destroy the footer: half of the mutants keep the length.
    let bytes = mutate(original, random)
    for (let tries = 0; i % 2 === 0 && bytes.length !== original.length && tries < 50; tries++)
      bytes = mutate(original, random)
    await writeFile(file, bytes)
    await survives(`mutant ${i}`, file, async () => {
      for await (const { row } of readParquet(file, { decoder, maxGroupBytes: 2 ** 24 }))
        expect(row).toBeTypeOf('object')
    })
  }
  decoder.close()
})
