// The parquet part needs a build: its decoder runs from dist/.
import { existsSync } from 'node:fs'
import { copyFile, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type DatasetOptions, type DatasetRow, openDataset } from '../../lib/data/dataset.js'

let directory: string
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'caravan-dataset-'))
})
afterAll(() => rm(directory, { recursive: true }))

async function rowsOf(paths: string[], options?: DatasetOptions): Promise<DatasetRow[]> {
  const rows: DatasetRow[] = []
  for await (const row of (await openDataset(paths, options)).rows()) rows.push(row)
  return rows
}

describe('openDataset', () => {
  it('reads all data files of a folder in order of name, of every format, and nothing else', async () => {
    const folder = join(directory, 'all')
    await mkdir(join(folder, 'sub.jsonl'), { recursive: true })
    await rm(join(folder, 'sub.jsonl'), { recursive: true })
    await writeFile(join(folder, 'b.jsonl'), '{"text":"b1"}\n\n{"text":"b2"}\n')
    await writeFile(join(folder, 'a.json'), '[{"text":"a1"}]')
    await writeFile(join(folder, 'c.jsonl.gz'), gzipSync('{"text":"c1"}'))
    await copyFile(new URL('../golden/parquet/messages_zstd.parquet', import.meta.url), join(folder, 'd.parquet'))
    await writeFile(join(folder, 'README.md'), '# no data')
    await writeFile(join(folder, '.hidden.jsonl'), 'not read')
    const rows = await rowsOf([folder])
    const places = rows.slice(0, 6).map(({ file, line }) => `${file.slice(folder.length + 1)}:${line}`)
    expect(places).toEqual(['a.json:1', 'b.jsonl:1', 'b.jsonl:3', 'c.jsonl.gz:1', 'd.parquet:1', 'd.parquet:2'])
    expect(rows).toHaveLength(4 + 25)
    expect(rows[5]!.row).toMatchObject({
      kind: 'messages',
      messages: [{ role: 'user' }, { role: 'assistant', content: 'Answer 1.' }],
    })
  })

  it('can be read again, and counts rows and bad rows anew each time', async () => {
    const path = join(directory, 'bad.jsonl')
    await writeFile(path, '{"text":"1"}\n{"text":2}\n{oops\n{"text":"4"}\n')
    const dataset = await openDataset([path], { onError: 'skip-and-count' })
    for (let pass = 0; pass < 2; pass++) {
      const lines: number[] = []
      for await (const { line } of dataset.rows()) lines.push(line)
      expect(lines).toEqual([1, 4])
      expect(dataset.counts).toMatchObject({ rows: 2, badRows: 2 })
      expect(dataset.counts.firstErrors.map(({ details }) => details.line)).toEqual([2, 3])
    }
    await expect(rowsOf([path])).rejects.toMatchObject({ code: 'ERR_DATA', details: { file: path, line: 2 } })
  })

  it('throws for a damaged file even when bad rows are skipped', async () => {
    const path = join(directory, 'cut.jsonl.gz')
    await writeFile(path, gzipSync('{"text":"1"}\n').subarray(0, -4))
    await expect(rowsOf([path], { onError: 'skip-and-count' })).rejects.toMatchObject({ code: 'ERR_FORMAT' })
  })

  it('refuses missing paths, other files, empty folders, links that lead out, and bad field maps', async () => {
    const empty = join(directory, 'empty')
    await mkdir(empty)
    const links = join(directory, 'links')
    await mkdir(links)
    await symlink('/etc/passwd', join(links, 'x.jsonl'))
    await expect(openDataset([join(directory, 'none.jsonl')])).rejects.toMatchObject({ code: 'ERR_FILE' })
    await expect(openDataset([fileURLToPath(import.meta.url)])).rejects.toMatchObject({ code: 'ERR_DATA' })
    await expect(openDataset([empty])).rejects.toMatchObject({ code: 'ERR_DATA', details: { file: empty } })
    await expect(openDataset([links])).rejects.toMatchObject({ code: 'ERR_PATH_ESCAPE' })
    await expect(openDataset([])).rejects.toMatchObject({ code: 'ERR_CONFIG' })
    await expect(openDataset([empty], { fields: { promt: 'q' } as never })).rejects.toMatchObject({
      code: 'ERR_CONFIG',
    })
  })
})

const gsm8k = fileURLToPath(new URL('../../../shared/data/gsm8k/train.jsonl', import.meta.url))
// The published training set, openai/grade-school-math; it is not part of the project.
describe.skipIf(!existsSync(gsm8k))('GSM8K (skipped where ../shared/data/gsm8k is absent)', () => {
  it('reads all 7,473 rows by a field map', async () => {
    const rows = await rowsOf([gsm8k], { fields: { prompt: 'question', completion: 'answer' } })
    expect(rows).toHaveLength(7473)
    expect(rows[0]!.row).toMatchObject({
      messages: [
        { role: 'user', content: expect.stringMatching(/^Natalia sold clips to 48 of her friends/) },
        { role: 'assistant', content: expect.stringMatching(/#### 72$/) },
      ],
    })
    const answered = rows.filter(
      ({ row }) => row.kind === 'messages' && /\n#### [-\d,.]+$/.test(row.messages[1]!.content),
    )
    expect(answered).toHaveLength(7473)
  })
})
