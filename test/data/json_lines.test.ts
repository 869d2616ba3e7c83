import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { type JsonLinesOptions, type JsonRow, readJsonLines } from '../../lib/data/json_lines.js'

let directory: string
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'caravan-jsonl-'))
})
afterAll(() => rm(directory, { recursive: true }))

async function read(name: string, content: string | Uint8Array, options?: JsonLinesOptions): Promise<JsonRow[]> {
  const path = join(directory, name)
  await writeFile(path, content)
  const rows: JsonRow[] = []
  for await (const row of readJsonLines(path, options)) rows.push(row)
  return rows
}

async function errorOf(name: string, content: string | Uint8Array, options?: JsonLinesOptions): Promise<CaravanError> {
  const error = await read(name, content, options).then(
    () => undefined,
    (caught) => caught,
  )
  expect(error).toBeInstanceOf(CaravanError)
  return error
}

describe('readJsonLines', () => {
  it('gives rows with line and byte offset, over blank lines, CRLF and a missing last newline', async () => {
    const rows = await read('a.jsonl', '{"a":1}\r\n\n  \n{"ä":"\u{1f642}"}\n{"a":[2]}')
    expect(rows).toEqual([
      { row: { a: 1 }, line: 1, byteOffset: 0 },
      { row: { ä: '\u{1f642}' }, line: 4, byteOffset: 13 },
      { row: { a: [2] }, line: 5, byteOffset: 27 },
    ])
    expect(await read('empty.jsonl', '')).toEqual([])
  })

  it('passes over a byte order mark at the start of the file', async () => {
    expect(await read('bom.jsonl', '\ufeff{"a":1}\n{"a":2}')).toEqual([
      { row: { a: 1 }, line: 1, byteOffset: 3 },
      { row: { a: 2 }, line: 2, byteOffset: 11 },
    ])
  })

  it('puts characters together that lie across two chunks', async () => {
    const text = 'ä'.repeat(400_000)
    const rows = await read('long.jsonl', `{"x":"${text}"}\n{"x":"y${text}"}\n`)
    expect(rows.map(({ row }) => row.x)).toEqual([text, `y${text}`])
  })

  it.each([
    ['{"a":1}\n{"a":}\n', 2, 6, /expected a value, got `\}`/],
    ['{"a":1}\n{"a":1\n{"a":2}', 2, 7, /expected `\}`, got the end/],
    ['{"a":1} {"a":2}', 1, 9, /expected the end/],
    ["{'a':1}", 1, 2, /expected a string, got `'a':1\}`/],
    ['{"a":NaN}', 1, 6, /expected a value/],
    ['{"a":01}', 1, 6, /expected a value/],
    ['{"a":"\t"}', 1, 7, /control character/],
    ['{"a":"x\0y"}', 1, 8, /control character/],
    ['\0\0\0\0', 1, 1, /expected a value/],
    ['{"a":1}\n\ufeff{"a":2}', 2, 1, /expected a value/],
    ['{"a":"abc', 1, 10, /not closed/],
    ['[1,2]', 1, 1, /must be a JSON object; got an array/],
    ['null', 1, 1, /got null/],
    ['"text"', 1, 1, /got a string/],
    ['{"a":1}\n42', 2, 1, /got a number/],
  ])('says where %j is wrong', async (content, line, column, says) => {
    const error = await errorOf('bad.jsonl', content)
    const file = join(directory, 'bad.jsonl')
    expect(error.code).toBe('ERR_DATA')
    expect(error.message).toMatch(says)
    expect(error.message.startsWith(`${file}:${line}:${column}: `)).toBe(true)
    expect(error.details).toMatchObject({ file, line, column, byteOffset: expect.any(Number) })
  })

  it('refuses text that is not UTF-8, and says in which row and column', async () => {
    const latin1 = Buffer.concat([Buffer.from('{"a":1}\n{"a":"caf'), Buffer.from([0xe9]), Buffer.from('"}\n')])
    const error = await errorOf('latin1.jsonl', latin1)
    expect(error.message).toMatch(/latin1\.jsonl:2:6: the string is not valid UTF-8/)
    expect(error.details.byteOffset).toBe(13)
  })

  it('gives hints for a joined file, NUL bytes and a cut row', async () => {
    expect((await errorOf('j.jsonl', '{"a":1}\n\ufeff{"a":2}')).hint).toContain('byte order mark')
    expect((await errorOf('n.jsonl', '{"a":1}\n\0\0\0')).hint).toContain('NUL')
    expect((await errorOf('c.jsonl', '{"a":1}\n{"a":"x')).hint).toContain('incomplete')
    expect((await errorOf('a.jsonl', '[{"a":1}]')).hint).toContain('.json')
  })

  it('refuses a row over the limit without keeping it, and goes on after it when bad rows are skipped', async () => {
    const content = `{"a":1}\n{"a":"${'x'.repeat(600_000)}"}\n{"a":3}\n`
    const error = await errorOf('big.jsonl', content, { maxLineBytes: 1000 })
    expect(error).toMatchObject({ code: 'ERR_DATA', details: { line: 2, maxLineBytes: 1000 } })
    const errors: CaravanError[] = []
    const rows = await read('big.jsonl', content, { maxLineBytes: 1000, onBadRow: (bad) => errors.push(bad) })
    expect(rows.map(({ row }) => row.a)).toEqual([1, 3])
    expect(rows[1]).toMatchObject({ line: 3, byteOffset: content.lastIndexOf('{"a":3}') })
    expect(errors).toHaveLength(1)
    expect(await read('exact.jsonl', '{"a":1}', { maxLineBytes: 7 })).toHaveLength(1)
  })

  it('hands each bad row to onBadRow and keeps the good ones', async () => {
    const errors: CaravanError[] = []
    const rows = await read('mixed.jsonl', '{"a":1}\n{bad}\n[]\n{"a":4}\n', { onBadRow: (bad) => errors.push(bad) })
    expect(rows.map(({ row }) => row.a)).toEqual([1, 4])
    expect(errors.map(({ details }) => details.line)).toEqual([2, 3])
  })

  it('reads gzip whatever the name, several members and an empty one included', async () => {
    const members = [gzipSync('{"a":1}\n{"a"'), gzipSync(''), gzipSync(':2}\n{"a":3}')]
    const rows = await read('m.jsonl', Buffer.concat(members))
    expect(rows.map(({ row, byteOffset }) => [row.a, byteOffset])).toEqual([
      [1, 0],
      [2, 8],
      [3, 16],
    ])
  })

  it('gives the rows before a cut in gzip data, then ERR_FORMAT with the place', async () => {
    const lines = Array.from({ length: 20_000 }, (_, i) => `{"a":${i},"b":"${(i * 2654435761) % 4294967296}"}`)
    const packed = gzipSync(lines.join('\n'))
    const path = join(directory, 'cut.jsonl.gz')
    await writeFile(path, packed.subarray(0, packed.length - 100))
    let count = 0
    const reading = (async () => {
      for await (const { row } of readJsonLines(path)) expect(row.a).toBe(count++)
    })()
    await expect(reading).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      details: { file: path, offset: packed.length - 100 },
    })
    expect(count).toBeGreaterThan(1000)
    packed[packed.length >> 1]! ^= 0x55
    expect(await errorOf('bits.jsonl.gz', packed)).toMatchObject({
      details: { file: join(directory, 'bits.jsonl.gz') },
    })
  })

  it('reads a .json file that holds one array, however it is laid out', async () => {
    const values = [{ a: 1 }, { a: '],[{"\\' }, { a: [{ b: [1, 2] }, {}] }]
    for (const text of [
      JSON.stringify(values),
      JSON.stringify(values, null, 4),
      `\ufeff \n${JSON.stringify(values)}\n `,
    ]) {
      expect((await read('array.json', text)).map(({ row }) => row)).toEqual(values)
    }
    expect(await read('none.json', ' [ ] ')).toEqual([])
    expect((await read('packed.json.gz', gzipSync(JSON.stringify(values)))).map(({ row }) => row)).toEqual(values)
    const placed = await read('placed.json', '[\n  {"a":1},\n  {"a":2}\n]')
    expect(placed.map(({ line, byteOffset }) => [line, byteOffset])).toEqual([
      [2, 4],
      [3, 15],
    ])
    expect(await read('lines.json', '{"a":1}\n{"a":2}')).toHaveLength(2)
  })

  it.each([
    ['[{"a":1},\n  {"a":x}]', /:2:8: expected a value, got `x\}`/],
    ['[{"a":\n1,\n "b":?}]', /:3:6: expected a value/],
    ['[{"a":1}, 5]', /:1:11: a row must be a JSON object; got a number/],
    ['[{"a":1},,{"a":2}]', /:1: an element is missing/],
    ['[{"a":1},]', /:1: an element is missing/],
    ['[{"a":1}', /:1: the file ends inside its array/],
    ['[{"a":1}]\n[2]', /:2: there is text after the end of the array/],
    ['[{"a":1}}]', /:1: a bracket closes nothing/],
    ['[{"a":1]}', /expected `\}`, got the end|closes nothing|ends inside/],
  ])('says where the array %j is wrong', async (content, says) => {
    const error = await errorOf('bad.json', content)
    expect(error.code).toBe('ERR_DATA')
    expect(error.message).toMatch(says)
    expect(error.details).toMatchObject({ file: join(directory, 'bad.json'), line: expect.any(Number) })
  })

  it('closes the file when the reader stops early or is aborted', async () => {
    const path = join(directory, 'many.jsonl')
    await writeFile(path, '{"a":1}\n'.repeat(200_000))
    for await (const { line } of readJsonLines(path)) if (line === 3) break
    const controller = new AbortController()
    const reading = (async () => {
      for await (const { line } of readJsonLines(path, { signal: controller.signal }))
        if (line === 5) controller.abort()
    })()
    await expect(reading).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  })

  it('refuses what is no regular file, and a missing one', async () => {
    const reading = (path: string) => readJsonLines(path).next()
    await expect(reading('/dev/zero')).rejects.toMatchObject({ code: 'ERR_FORMAT' })
    await expect(reading(directory)).rejects.toMatchObject({ code: 'ERR_FORMAT' })
    await expect(reading(join(directory, 'no\0.jsonl'))).rejects.toMatchObject({ code: 'ERR_FORMAT' })
    await expect(reading(join(directory, 'none'))).rejects.toMatchObject({
      code: 'ERR_FILE',
      details: { errno: 'ENOENT' },
    })
  })
})
