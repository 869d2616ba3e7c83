// What run() refuses: every fault of what it is given is a typed error that says where, before the first step; and a
// disk that is full at the end.
import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import type { CaravanError } from '../../lib/base/errors.js'
import { planRun } from '../../lib/recipes/plan.js'
import type { RunOptions, StagePlan } from '../../lib/recipes/run.js'
import { tulu3 } from '../../lib/recipes/tulu3.js'
import { findCheckpoint } from '../../lib/train/checkpoint.js'
import { goldenModel } from '../train/golden_tensors.js'
import { leakedTensors } from '../train/small_runs.js'
import { chats, eventsOf, hashOfFile, modelFolder, outcomeOf, schoolProblems, sftRun, tinyPocket } from './small_run.js'

// Seconds on a quiet machine; a busy one takes its time.
vi.setConfig({ testTimeout: 240_000 })

let root: string
let number = 0
let directory: string
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'caravan-run-'))
})
beforeEach(() => {
  directory = join(root, `run-${number++}`)
})
afterAll(async () => {
  rmSync(root, { recursive: true, force: true })
  expect(await leakedTensors()).toBe(0)
})

describe('what cannot be run', () => {
  const refused = async (options: Partial<RunOptions>, wanted: object) => {
    const { error, events } = await outcomeOf({ directory, ...options })
    expect(error).toMatchObject(wanted)
    expect(error!.message.length).toBeGreaterThan(10)
    expect(eventsOf(events, 'step')).toEqual([])
  }

  it('stages', async () => {
    await refused({ stages: ['rlvr'] }, { code: 'ERR_CONFIG', message: expect.stringContaining('needs a model') })
    await refused({ stages: ['sfd'] }, { code: 'ERR_CONFIG', hint: "did you mean 'sft'?" })
    await refused(
      { stages: ['base'], model: modelFolder },
      { code: 'ERR_CONFIG', message: expect.stringContaining('replaces the base stage') },
    )
    await refused({ stages: ['dpo'] }, { code: 'ERR_CONFIG', message: expect.stringContaining('needs a model') })
    await refused({ stages: ['sft'] }, { code: 'ERR_CONFIG', message: expect.stringContaining('needs a model') })
  })

  it('settings', async () => {
    await refused({ overrides: { 'sft.lrr': '1' } }, { code: 'ERR_CONFIG', hint: "did you mean 'lr'?" })
    await refused({ overrides: { 'sfd.lr': '1' } }, { code: 'ERR_CONFIG', hint: "did you mean 'sft.lr'?" })
    await refused(
      { overrides: { 'sft.lr': 'fast' } },
      { code: 'ERR_CONFIG', message: expect.stringContaining('sft.lr must be a number') },
    )
    await refused(
      { threads: 0, overrides: tinyPocket },
      { code: 'ERR_CONFIG', message: expect.stringContaining('threads') },
    )
    process.env.CARAVAN_CUDA_MODULE = '/no/such/module.so'
    await refused({ device: 'cuda' }, { code: 'ERR_DEVICE' })
    expect(() => tulu3({ scale: '8B ' })).toThrow(
      expect.objectContaining({ code: 'ERR_CONFIG', hint: "did you mean '8b'?" }),
    )
  })

  it('models', async () => {
    await refused(sftRun(directory, chats(4), { model: join(root, 'nowhere') }), {
      message: expect.stringContaining('nowhere'),
    })
    const broken = join(root, 'broken-model')
    cpSync(modelFolder, broken, { recursive: true })
    writeFileSync(join(broken, 'model.safetensors'), 'no')
    await refused(sftRun(directory, chats(4), { model: broken }), {
      code: 'ERR_FORMAT',
      message: expect.stringContaining('model.safetensors'),
    })
  })

  it('a tokenizer larger than the embedding', async () => {
    const grown = join(root, 'grown-tokenizer')
    cpSync(modelFolder, grown, { recursive: true })
    const path = join(grown, 'tokenizer.json')
    const json = JSON.parse(readFileSync(path, 'utf8'))
    for (let i = 0; i < 20; i++) {
      json.added_tokens.push({
        id: 358 + i,
        content: `<|new${i}|>`,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      })
    }
    writeFileSync(path, JSON.stringify(json))
    await refused(sftRun(directory, chats(4), { model: grown }), {
      code: 'ERR_TOKENIZER',
      message: expect.stringMatching(/tokens, the model's embedding only 358 rows/),
    })
  })

  it('data', async () => {
    const line = (rows: unknown[]) => sftRun(directory, rows)
    for (const text of ['', '\n  \n\n']) {
      const empty = join(root, 'empty.jsonl')
      writeFileSync(empty, text)
      const named = { code: 'ERR_DATA', message: expect.stringContaining(`${empty}: no rows`) }
      await refused(sftRun(directory, chats(4), { data: [empty] }), named)
      const good = line(chats(4)).data![0]!
      await refused(sftRun(directory, chats(4), { data: [good, empty] }), named)
      await expect(planRun(tulu3(), sftRun(directory, [], { data: [good, empty] }) as RunOptions)).rejects.toThrow(
        `${empty}: no rows`,
      )
    }
    await refused(sftRun(directory, chats(4), { data: [join(root, 'nowhere.jsonl')] }), {
      code: 'ERR_FILE',
      details: { errno: 'ENOENT' },
    })
    const bad = line([chats(1)[0], chats(1)[0], '{"messages": [', chats(1)[0]])
    await refused(bad, {
      code: 'ERR_DATA',
      message: expect.stringContaining(`${bad.data![0]}:3`),
      details: { line: 3 },
    })
    const shapeless = line([chats(1)[0], { messages: 'hello' }])
    await refused(shapeless, { code: 'ERR_DATA', message: expect.stringContaining(`${shapeless.data![0]}:2`) })
    const roles = line([{ messages: [{ role: 'asistant', content: 'x' }] }])
    await refused(roles, { code: 'ERR_DATA', message: expect.stringContaining(':1') })
    const masked = line([
      { messages: [{ role: 'user', content: 'Nobody answers.' }] },
      { messages: [{ role: 'user', content: 'Nobody.' }] },
    ])
    await refused(masked, { code: 'ERR_DATA', hint: expect.stringContaining('assistant') })
    await refused(sftRun(directory, schoolProblems(3), { fields: { prompt: 'questoin', completion: 'answer' } }), {
      code: 'ERR_DATA',
    })
  })

  it('templates and folders', async () => {
    await refused(sftRun(directory, chats(4), { overrides: { 'sft.template': 'tuluu' } }), {
      code: 'ERR_TEMPLATE',
      hint: expect.stringContaining('tulu'),
    })
    writeFileSync(join(root, 'file'), '')
    await refused(sftRun(directory, chats(4), { directory: join(root, 'file') }), {
      code: expect.stringMatching(/ERR_(FILE|CONFIG)/),
    })
    await refused(sftRun(directory, chats(4), { directory: join(root, 'file', 'below') }), {
      code: 'ERR_FILE',
      details: { errno: 'ENOTDIR' },
    })
  })

  it('memory: a budget that does not suffice says what was wanted, and leaves the process sound', async () => {
    await refused(sftRun(directory, chats(4), { memoryBudgetBytes: 100_000 }), {
      code: 'ERR_OOM',
      hint: expect.stringContaining('micro-batch'),
    })
    expect((await outcomeOf(sftRun(directory, chats(8), { directory: `${directory}-after` }))).error).toBeUndefined()
  })

  it('memory: a run that its budget cannot hold is refused before it starts, with the mode that fits', async () => {
    const options = sftRun(directory, chats(4))
    const [{ checkpointing, memoryBytes, notes }] = (await planRun(tulu3(), options)).stages as [StagePlan]
    const { none, selective, full } = checkpointing
    expect([memoryBytes, selective < none, full < selective]).toEqual([none, true, true])
    expect(notes.join()).not.toContain('may be used')
    const budgets = [
      [none - 1, '--set sft.activationCheckpointing=selective would fit'],
      [selective - 1, '--set sft.activationCheckpointing=full would fit'],
      [full - 1, 'no sft.activationCheckpointing would fit'],
    ] as const
    for (const [memoryBudgetBytes, remedy] of budgets) {
      const hint = expect.stringContaining(remedy)
      const details = { stage: 'sft', neededBytes: none, budgetBytes: memoryBudgetBytes, checkpointing }
      await refused({ ...options, memoryBudgetBytes }, { code: 'ERR_OOM', details, hint })
      const { stages } = await planRun(tulu3(), { ...options, memoryBudgetBytes })
      expect(stages[0]!.notes).toContainEqual(hint)
      const word = /=(\w+) would/.exec(remedy)?.[1]
      if (word === undefined) continue
      const overrides = { ...options.overrides, 'sft.activationCheckpointing': word }
      expect((await outcomeOf({ ...options, overrides, memoryBudgetBytes })).error).toBeUndefined()
      directory = join(root, `run-${number++}`)
      options.directory = directory
    }
    await refused(sftRun(directory, chats(4), { overrides: { 'sft.activationCheckpointing': 'most' } }), {
      code: 'ERR_CONFIG',
      message: 'sft.activationCheckpointing must be one of none, selective, full; got "most"',
    })
  })

  it('without a tokenizer are refused by the file that is missing', async () => {
    const { error } = await outcomeOf(sftRun(directory, chats(4), { model: goldenModel('llama_gqa_rope3') }))
    expect(error?.message).toContain('tokenizer.json')
  })
})

/** A file system of `size` mounted on `folder`, or undefined where the test may not mount. */
function mounted(folder: string, size: string): (() => void) | undefined {
  mkdirSync(folder, { recursive: true })
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'none', folder], { stdio: 'ignore' })
    return () => execFileSync('umount', [folder])
  } catch {
    return undefined
  }
}

describe('a disk that is full', () => {
  it('at the final save is a typed error; the checkpoint is intact and the run can be finished from it', async (context) => {
    const rows = chats(20)
    const whole = join(root, 'with-room')
    // The data is a part of the record, so both runs name the same file.
    const options = sftRun(directory, rows, { overrides: { 'sft.keepCheckpoints': '2' } })
    expect((await outcomeOf({ ...options, directory: whole })).error).toBeUndefined()
    // Room for one checkpoint (model and two moments) and little more: not for a second one, nor for the model.
    const unmount = mounted(directory, '740k')
    if (!unmount) context.skip('no permission to mount a file system')
    let full: { error?: CaravanError; events: unknown[] }
    const rescued = `${directory}-rescued`
    try {
      full = await outcomeOf({ ...options, overrides: { ...options.overrides, 'sft.checkpointEvery': '1' } })
      const { checkpoint } = await findCheckpoint(join(directory, 'checkpoints', 'sft'))
      expect(checkpoint?.state.step).toBe(1)
      expect(existsSync(join(directory, 'sft'))).toBe(false)
      cpSync(directory, rescued, { recursive: true })
    } finally {
      unmount!()
    }
    expect(full.error).toMatchObject({
      code: 'ERR_FILE',
      details: { errno: 'ENOSPC' },
      hint: expect.stringContaining('free space'),
    })
    const rest = await outcomeOf({ ...options, directory: rescued, resume: true })
    expect(rest.error).toBeUndefined()
    expect(eventsOf(rest.events, 'stage')[0]?.resumedFrom).toBe(1)
    expect(hashOfFile(rescued, 'sft', 'model.safetensors')).toBe(hashOfFile(whole, 'sft', 'model.safetensors'))
  })
})
