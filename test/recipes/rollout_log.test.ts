// The log of rollouts: exact after a round trip, and what a kill or a bit flip leaves of it.
import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { afterEach, beforeEach, expect, it } from 'vitest'
import type { Answer, LoggedGroup } from '../../lib/methods/rollout.js'
import { type LoggedPrompt, RolloutLog } from '../../lib/recipes/rollout_log.js'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'caravan-rollout-log-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const prompts: LoggedPrompt[] = [3, 4, 5].map((n) => ({ ids: Int32Array.of(1, 2, n), text: `prompt "${n}"\n` }))

function group(index: number, changed: Partial<Answer> = {}): LoggedGroup<LoggedPrompt> {
  const answer: Answer = {
    tokens: Int32Array.of(7, 8, index),
    // Numbers that have no short decimal form.
    logprobs: Float32Array.of(-0.1, -1e-30 / 3, -Math.PI * 1e5),
    finishReason: 'stop',
    reward: 1 / 3,
    score: 0.5,
    ...changed,
  }
  const other: Answer = { ...answer, tokens: Int32Array.of(9), logprobs: Float32Array.of(-2), finishReason: 'length' }
  return { index, prompt: prompts[index]!, answers: [answer, other], texts: ['a\nb', ''], reasons: ['right', 'cut'] }
}

const log = () => new RolloutLog(folder)
const fileOf = (rollout: number) => join(folder, `rollout-${String(rollout + 1).padStart(6, '0')}.jsonl`)

it('gives back every bit, by group', async () => {
  await Promise.all([2, 0].map((index) => log().append(4, group(index))))
  const values = Float32Array.of(0.1, -3.5e-38, 1e38)
  await log().appendNumbers(4, { values, other: Float32Array.of() })
  const { groups, numbers } = await log().read(4, prompts)
  expect([...groups.keys()].sort()).toEqual([0, 2])
  for (const index of [0, 2]) expect(groups.get(index)).toEqual(group(index).answers)
  expect(numbers).toEqual({ values, other: Float32Array.of() })
})

it('is JSON Lines with a CRC-32 that anyone can check', async () => {
  await log().append(0, group(1))
  const line = readFileSync(fileOf(0), 'utf8').trimEnd()
  const { crc32: sum, ...content } = JSON.parse(line)
  expect(content).toMatchObject({
    rollout: 0,
    group: 1,
    prompt: 'prompt "4"\n',
    answers: [{ text: 'a\nb', reason: 'right' }, {}],
  })
  expect(crc32(line.slice(0, line.lastIndexOf(',"crc32"')))).toBe(Number.parseInt(sum, 16))
})

it('has nothing where there is no file, and nothing of another rollout', async () => {
  await log().append(0, group(0))
  expect(await log().read(1, prompts)).toEqual({ groups: new Map(), numbers: undefined })
})

it('leaves out a line that was cut short, and goes on behind it', async () => {
  await log().append(0, group(0))
  await log().append(0, group(1))
  const text = readFileSync(fileOf(0), 'utf8')
  const second = text.indexOf('\n') + 1
  for (let cut = second + 1; cut < text.length - 1; cut += 13) {
    writeFileSync(fileOf(0), text.slice(0, cut))
    expect([...(await log().read(0, prompts)).groups.keys()]).toEqual([0])
  }
  await log().append(0, group(2))
  expect([...(await log().read(0, prompts)).groups.keys()]).toEqual([0, 2])
})

it('leaves out a line with a flipped bit', async () => {
  await log().append(0, group(0))
  const bytes = readFileSync(fileOf(0))
  for (const at of [5, 60, bytes.length - 20]) {
    const damaged = Buffer.from(bytes)
    damaged[at]! ^= 1
    writeFileSync(fileOf(0), damaged)
    expect((await log().read(0, prompts)).groups.size, `byte ${at}`).toBe(0)
  }
})

it('leaves out a group of another prompt', async () => {
  await log().append(0, group(0))
  const others = [{ ids: Int32Array.of(1, 2, 9) }, ...prompts.slice(1)]
  expect((await log().read(0, others)).groups.size).toBe(0)
})

it('survives lines that are none of its own', async () => {
  await log().append(0, group(0))
  appendFileSync(fileOf(0), 'not JSON\n{"rollout":0}\n\n')
  expect((await log().read(0, prompts)).groups.size).toBe(1)
})

it('keeps as many rollouts as it is told', async () => {
  const keeping = new RolloutLog(folder, { keep: 2 })
  for (const rollout of [0, 1, 2, 3]) {
    await keeping.read(rollout, prompts)
    await keeping.append(rollout, group(0))
  }
  expect(readdirSync(folder).sort()).toEqual(['rollout-000003.jsonl', 'rollout-000004.jsonl'])
})

it('says which file cannot be written', async () => {
  const file = join(folder, 'a-file')
  writeFileSync(file, '')
  await expect(new RolloutLog(file).append(0, group(0))).rejects.toMatchObject({
    code: 'ERR_FILE',
    message: expect.stringContaining('rollout-000001.jsonl'),
  })
})
