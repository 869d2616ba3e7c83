// Saving and finding checkpoints: the round trip, what is kept, and that damage anywhere in any file is found and the
// checkpoint before it used.
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { Random } from '../../lib/base/random.js'
import { openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'
import { Tensor } from '../../lib/tensor/index.js'
import {
  type CheckpointState,
  findCheckpoint,
  removeTemporaries,
  restoreTensors,
  saveCheckpoint,
  type TensorGroups,
  verifyCheckpoint,
} from '../../lib/train/checkpoint.js'
import { type Failure, failingFileSystem } from './failing_file_system.js'
import { hashOf } from './small_runs.js'

// Seconds on a quiet machine; a busy one takes its time.
vi.setConfig({ testTimeout: 240_000 })

let device: Device
let base: string
let root: string
let number = 0
beforeAll(() => {
  device = openDevice({ threads: 2 })
  base = mkdtempSync(join(tmpdir(), 'caravan-checkpoint-'))
})
beforeEach(() => {
  root = join(base, `case-${number++}`)
})
afterAll(async () => {
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
  device.close()
  rmSync(base, { recursive: true, force: true })
})

/** Tensors of every element type that training has, with values that depend on `seed`. */
function someTensors(seed: number): TensorGroups {
  const random = new Random(seed)
  const f32 = (count: number) => Float32Array.from({ length: count }, () => random.normal())
  return {
    model: new Map([
      ['embedding', Tensor.from(device, f32(60), [12, 5])],
      [
        'half',
        Tensor.from(
          device,
          Uint16Array.from({ length: 21 }, () => random.integer(0, 0x7f80)),
          [7, 3],
        ),
      ],
      ['norm', Tensor.from(device, Float32Array.of(Number.NaN, -0, 1e-42, Number.POSITIVE_INFINITY), [4])],
    ]),
    optimizer: new Map([
      ['embedding.m', Tensor.from(device, f32(60), [12, 5])],
      ['embedding.v', Tensor.from(device, new Float64Array(f32(3)), [3])],
    ]),
  }
}

const stateOf = (step: number): CheckpointState => ({
  stage: 'sft',
  step,
  batches: { done: step, loader: { epoch: 1, position: 7 } },
  optimizer: step - 1,
  skippedInARow: 1,
  settings: { lr: 1e-3, name: 'é "quoted"' },
})

async function hashOfGroups(groups: TensorGroups): Promise<string[]> {
  return Promise.all(Object.values(groups).map(hashOf))
}

function dispose(groups: TensorGroups): void {
  for (const tensors of Object.values(groups)) for (const tensor of tensors.values()) tensor.dispose()
}

/** Saves step `step` with values that depend on it; returns their hashes. */
async function saved(step: number, keep = 5): Promise<string[]> {
  const groups = someTensors(step)
  try {
    await saveCheckpoint(root, { state: stateOf(step), groups, keep })
    return await hashOfGroups(groups)
  } finally {
    dispose(groups)
  }
}

const names = () => readdirSync(root).sort()

describe('a checkpoint', () => {
  it('comes back bit for bit, with its state', async () => {
    const wanted = await saved(6)
    const { checkpoint, skipped } = await findCheckpoint(root)
    expect(skipped).toEqual([])
    expect(checkpoint?.state).toEqual(stateOf(6))
    const groups = someTensors(99)
    expect(await hashOfGroups(groups)).not.toEqual(wanted)
    await restoreTensors(checkpoint!.directory, groups)
    expect(await hashOfGroups(groups)).toEqual(wanted)
    dispose(groups)
  })

  it('is written as safetensors, JSON and a manifest: nothing that could be code', async () => {
    await saved(1)
    const directory = join(root, 'step-1')
    expect(readdirSync(directory).sort()).toEqual([
      'MANIFEST.json',
      'model.safetensors',
      'optimizer.safetensors',
      'state.json',
    ])
    const manifest = JSON.parse(readFileSync(join(directory, 'MANIFEST.json'), 'utf8'))
    expect(manifest).toMatchObject({ format: 2, step: 1 })
    for (const { name, bytes } of manifest.files) expect(statSync(join(directory, name)).size).toBe(bytes)
  })

  it('is the newest of those kept, and at least two are', async () => {
    for (const step of [2, 4, 6, 8, 10]) await saved(step, 3)
    expect(names()).toEqual(['step-10', 'step-6', 'step-8'])
    await saved(12, 0)
    expect(names()).toEqual(['step-10', 'step-12'])
    expect((await findCheckpoint(root)).checkpoint?.state.step).toBe(12)
  })

  it('saved again after a fall back replaces what did not verify, and later ones do not crowd out good ones', async () => {
    for (const step of [3, 6, 9]) await saved(step)
    truncateSync(join(root, 'step-9', 'model.safetensors'), 10)
    expect((await findCheckpoint(root)).checkpoint?.state.step).toBe(6)
    // The run goes on from 6 with another interval.
    await saved(8, 2)
    expect(names()).toEqual(['step-6', 'step-8'])
  })

  it('of which there are none is none, also where the folder is missing', async () => {
    expect(await findCheckpoint(root)).toEqual({ checkpoint: undefined, skipped: [] })
  })

  it('is not looked for where the folder is a file', async () => {
    writeFileSync(root, '')
    await expect(findCheckpoint(root)).rejects.toMatchObject({ code: 'ERR_FILE', details: { errno: 'ENOTDIR' } })
  })

  it('of another model is refused by the name of the tensor', async () => {
    await saved(1)
    const groups = someTensors(1)
    const other = { model: new Map([['embedding', groups.model!.get('norm')!]]) }
    await expect(restoreTensors(join(root, 'step-1'), other)).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_CORRUPT',
      message: expect.stringContaining('F32[12,5] for embedding, f32[4] is needed'),
    })
    const missing = { model: new Map([['absent', groups.model!.get('norm')!]]) }
    await expect(restoreTensors(join(root, 'step-1'), missing)).rejects.toThrow(/holds nothing for absent/)
    dispose(groups)
  })

  it('leaves stale temporaries to be removed, and only those', async () => {
    await saved(1)
    mkdirSync(join(root, '.tmp-step-4-999'))
    writeFileSync(join(root, '.tmp-step-4-999', 'model.safetensors'), 'half')
    writeFileSync(join(root, 'notes.txt'), 'mine')
    expect((await findCheckpoint(root)).checkpoint?.state.step).toBe(1)
    await removeTemporaries(root)
    expect(names()).toEqual(['notes.txt', 'step-1'])
  })
})

/** Damages `path` in one way drawn from `random`; returns what was done. */
function damage(path: string, random: Random): string {
  const bytes = readFileSync(path)
  const offset = random.integer(0, bytes.length)
  const kind = random.integer(0, 4)
  if (kind === 0) {
    truncateSync(path, offset)
    return `cut at ${offset}`
  }
  if (kind === 1) {
    appendFileSync(path, Buffer.alloc(1 + random.integer(0, 8)))
    return 'longer'
  }
  if (kind === 2) {
    const length = Math.min(1 + random.integer(0, 512), bytes.length - offset)
    const before = Buffer.from(bytes)
    bytes.fill(0, offset, offset + length)
    // Zeros over zeros are no damage.
    if (before.equals(bytes)) bytes[offset]! ^= 1
    writeFileSync(path, bytes)
    return `zeros at ${offset}`
  }
  const bit = random.integer(0, 8)
  bytes[offset]! ^= 1 << bit
  writeFileSync(path, bytes)
  return `bit ${bit} of byte ${offset} flipped`
}

const isText = (file: string) => file.endsWith('.json')

describe('damage', () => {
  it('at 240 random places of all files is found, named, and passed over for the checkpoint before', async () => {
    const earlier = await saved(3)
    await saved(6)
    const good = join(base, 'good')
    cpSync(join(root, 'step-6'), good, { recursive: true })
    const random = new Random(2024)
    const files = readdirSync(good)
    for (let i = 0; i < 240; i++) {
      const file = files[i % files.length]!
      rmSync(join(root, 'step-6'), { recursive: true })
      cpSync(good, join(root, 'step-6'), { recursive: true })
      const what = `${file}: ${damage(join(root, 'step-6', file), random)}`
      const { checkpoint, skipped } = await findCheckpoint(root)
      if (checkpoint?.state.step === 6 && file === 'MANIFEST.json') {
        // White space of the manifest carries nothing; everything else in it must count.
        const same = JSON.stringify(JSON.parse(readFileSync(join(root, 'step-6', file), 'utf8')))
        expect(same, what).toBe(JSON.stringify(JSON.parse(readFileSync(join(good, file), 'utf8'))))
        continue
      }
      expect(checkpoint?.state.step, what).toBe(3)
      expect(skipped.length, what).toBe(1)
      expect(skipped[0], what).toBeInstanceOf(CaravanError)
      expect(skipped[0]!.code, what).toBe('ERR_CHECKPOINT_CORRUPT')
      expect(skipped[0]!.message, what).toContain(join(root, 'step-6'))
      if (!isText(file)) expect(skipped[0]!.details.file, what).toBe(file)
    }
    const groups = someTensors(50)
    await restoreTensors(join(root, 'step-3'), groups)
    expect(await hashOfGroups(groups)).toEqual(earlier)
    dispose(groups)
  })

  it('at every single byte of the manifest is found', async () => {
    await saved(6)
    const path = join(root, 'step-6', 'MANIFEST.json')
    const good = readFileSync(path)
    const meaning = JSON.stringify(JSON.parse(good.toString()))
    for (let offset = 0; offset < good.length; offset++) {
      const bytes = Buffer.from(good)
      bytes[offset]! ^= 1 << (offset % 8)
      writeFileSync(path, bytes)
      const found = await verifyCheckpoint(join(root, 'step-6')).catch((error) => error as unknown)
      if (found instanceof CaravanError) continue
      expect(found, `byte ${offset}`).toEqual(stateOf(6))
      expect(JSON.stringify(JSON.parse(bytes.toString())), `byte ${offset}`).toBe(meaning)
    }
  })

  it.each([
    ['null', 'null'],
    ['a number', '7'],
    ['a list', '[]'],
    ['no files', '{"format":2,"step":6}'],
    ['files that are no list', '{"format":2,"step":6,"files":{}}'],
    ['an empty list of files', '{"format":2,"step":6,"files":[]}'],
    ['a null in the list', '{"format":2,"step":6,"files":[null]}'],
    ['a file outside', '{"format":2,"step":6,"files":[{"name":"../../x","bytes":1,"sha256":""}]}'],
    ['a newer format', '{"format":2,"step":6,"files":[]}'],
    ['deep nesting', '['.repeat(100_000)],
    ['nothing', ''],
  ])('that makes the manifest %s is ERR_CHECKPOINT_CORRUPT', async (_, text) => {
    await saved(6)
    writeFileSync(join(root, 'step-6', 'MANIFEST.json'), text)
    await expect(verifyCheckpoint(join(root, 'step-6'))).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_CORRUPT' })
    expect((await findCheckpoint(root)).checkpoint).toBeUndefined()
  })

  it('that takes a file away, or adds one that nothing vouches for, is found', async () => {
    for (const file of ['MANIFEST.json', 'state.json', 'model.safetensors', 'optimizer.safetensors']) {
      await saved(6)
      rmSync(join(root, 'step-6', file))
      const { checkpoint, skipped } = await findCheckpoint(root)
      expect(checkpoint, file).toBeUndefined()
      expect(skipped[0]!.details.file).toBe(file)
    }
    await saved(6)
    writeFileSync(join(root, 'step-6', 'extra.safetensors'), '')
    expect((await findCheckpoint(root)).skipped[0]?.message).toContain('extra.safetensors is not listed')
  })

  it('to all of them leaves none, with a reason for each', async () => {
    for (const step of [2, 4, 6]) {
      await saved(step)
      truncateSync(join(root, `step-${step}`, 'optimizer.safetensors'), 0)
    }
    const { checkpoint, skipped } = await findCheckpoint(root)
    expect(checkpoint).toBeUndefined()
    expect(skipped.map(({ details }) => String(details.directory).split('-').at(-1))).toEqual(['6', '4', '2'])
  })
})

describe('a failing disk', () => {
  const failures: Failure[] = ['ENOSPC', 'EIO', 'EDQUOT', 'short write']

  /** Saves step 6 beside a good step 3 through `fileSystem`. */
  async function attempt(fileSystem: ReturnType<typeof failingFileSystem>) {
    const groups = someTensors(6)
    const outcome = await saveCheckpoint(root, { state: stateOf(6), groups, keep: 2, fileSystem }).catch(
      (error) => error as unknown,
    )
    dispose(groups)
    return outcome
  }

  it('at every file operation leaves the checkpoint before intact, and a whole new one or none', async () => {
    await saved(1)
    await saved(3)
    const before = join(base, 'before')
    cpSync(root, before, { recursive: true })
    const counting = failingFileSystem()
    expect(await attempt(counting)).toMatchObject({ directory: join(root, 'step-6'), pruneProblem: undefined })
    const count = counting.operations.length
    expect(count).toBeGreaterThan(30)
    const seen = { failed: 0, saved: 0 }
    for (let at = 0; at < count; at++) {
      for (const [index, failure] of failures.entries()) {
        for (const sticky of [false, true]) {
          // Each operation meets a full disk that stays full, and one other failure; with CARAVAN_TEST_FULL all of
          // them.
          const chosen = (sticky && failure === 'ENOSPC') || (!sticky && index === at % failures.length)
          if (!chosen && process.env.CARAVAN_TEST_FULL !== '1') continue
          rmSync(root, { recursive: true })
          cpSync(before, root, { recursive: true })
          const what = `${failure}${sticky ? ' from' : ' at'} operation ${at} (${counting.operations[at]})`
          const outcome = await attempt(failingFileSystem({ at, failure, sticky }))
          expect(await verifyCheckpoint(join(root, 'step-3')), what).toEqual(stateOf(3))
          const { checkpoint, skipped } = await findCheckpoint(root)
          expect(skipped, what).toEqual([])
          if (outcome instanceof Error) {
            seen.failed++
            expect(outcome, what).toMatchObject({ code: 'ERR_CHECKPOINT_WRITE', details: { step: 6 } })
            const errno = failure === 'short write' ? expect.any(String) : failure
            expect((outcome as CaravanError).details, what).toMatchObject({ errno })
            expect((outcome as CaravanError).hint, what).toBeTruthy()
            // The rename may already have happened when the folder cannot be synced.
            expect([3, 6], what).toContain(checkpoint?.state.step)
            if (!sticky)
              expect(
                readdirSync(root).filter((name) => name.startsWith('.')),
                what,
              ).toEqual([])
          } else {
            seen.saved++
            expect(checkpoint?.state.step, what).toBe(6)
          }
        }
      }
    }
    // Short writes that go on, and pruning: everything else must have failed.
    expect(seen.failed).toBeGreaterThan(seen.saved)
  })

  it('that cannot remove an old checkpoint has saved the new one all the same, and says so', async () => {
    await saved(1)
    await saved(3)
    const before = join(base, 'before-pruning')
    cpSync(root, before, { recursive: true })
    const counting = failingFileSystem()
    await attempt(counting)
    const at = counting.operations.lastIndexOf('rm step-1')
    expect(at).toBeGreaterThan(0)
    rmSync(root, { recursive: true })
    cpSync(before, root, { recursive: true })
    const outcome = await attempt(failingFileSystem({ at, failure: 'EIO' }))
    expect(outcome).toMatchObject({
      directory: join(root, 'step-6'),
      pruneProblem: { code: 'ERR_FILE', details: { errno: 'EIO' } },
    })
    expect(existsSync(join(root, 'step-1'))).toBe(true)
    expect((await findCheckpoint(root)).checkpoint?.state.step).toBe(6)
  })
})
