// metrics.jsonl: rows survive kills, rewinding and a disk that is full for a while.
import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MetricsLog } from '../../lib/train/metrics.js'

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'caravan-metrics-'))
})
afterEach(() => {
  chmodSync(directory, 0o700)
  rmSync(directory, { recursive: true, force: true })
})

const row = (stage: string, step: number) => ({ stage, step, loss: step / 8 })

describe('MetricsLog', () => {
  it('has no rows before the first, and then those appended, one a line', async () => {
    const log = new MetricsLog(directory)
    expect(await log.rows()).toEqual([])
    for (let step = 1; step <= 3; step++) await log.append(row('sft', step))
    expect(await log.rows()).toEqual([1, 2, 3].map((step) => row('sft', step)))
    expect(readFileSync(log.path, 'utf8').split('\n').length).toBe(4)
  })

  it('leaves out a last line that a kill cut short, and goes on after it', async () => {
    const log = new MetricsLog(directory)
    await log.append(row('sft', 1))
    appendFileSync(log.path, '{"stage":"sft","st')
    const after = new MetricsLog(directory)
    expect(await after.rows()).toEqual([row('sft', 1)])
    await after.rewind('sft', 1)
    await after.append(row('sft', 2))
    expect(await after.rows()).toEqual([1, 2].map((step) => row('sft', step)))
  })

  it('drops only the later rows of the stage that is rewound', async () => {
    const log = new MetricsLog(directory)
    for (const [stage, step] of [
      ['base', 1],
      ['base', 2],
      ['sft', 1],
      ['sft', 2],
      ['sft', 3],
    ] as const) {
      await log.append(row(stage, step))
    }
    await log.rewind('sft', 1)
    expect(await log.rows()).toEqual([row('base', 1), row('base', 2), row('sft', 1)])
    await log.rewind('base', 0)
    expect(await log.rows()).toEqual([row('sft', 1)])
  })

  it('keeps rows that cannot be written and writes them with the next one', async () => {
    const log = new MetricsLog(directory)
    // A folder in its place: every append fails, whoever runs the test.
    mkdirSync(log.path)
    await expect(log.append(row('sft', 1))).rejects.toMatchObject({
      code: 'ERR_FILE',
      details: { errno: 'EISDIR', path: log.path },
    })
    await expect(log.append(row('sft', 2))).rejects.toMatchObject({ code: 'ERR_FILE' })
    rmdirSync(log.path)
    // What a disk that filled up in the middle of a line leaves.
    writeFileSync(log.path, '{"stage":"sft","step":1,"lo')
    await log.append(row('sft', 3))
    expect(await log.rows()).toEqual([1, 2, 3].map((step) => row('sft', step)))
    await log.append(row('sft', 4))
    expect((await log.rows()).length).toBe(4)
  })
})
