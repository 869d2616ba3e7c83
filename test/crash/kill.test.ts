// Killed at seeded random moments, half of them inside a save, and continued until it is done, a run ends with the same
// bits as one that nobody disturbed. Stopped by a signal, it saves first, and ends with the same bits too.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { type CommandEvent, type Ended, resultOf, train } from './command.js'

const SEED = Number(process.env.CARAVAN_CRASH_SEED ?? 11)
const KILLS = process.env.CARAVAN_TEST_FULL === '1' ? 100 : 10
const MINUTES = 60_000

let root: string
let undisturbed: Awaited<ReturnType<typeof resultOf>>
beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), 'caravan-crash-'))
  const ended = await train(join(root, 'undisturbed'))
  expect(ended, ended.errors).toMatchObject({ code: 0 })
  undisturbed = await resultOf(join(root, 'undisturbed'))
  expect(undisturbed.rows.length).toBe(34)
}, 2 * MINUTES)
afterAll(() => rmSync(root, { recursive: true, force: true }))

/** Names of what saves in progress have left behind. */
function leftovers(directory: string): string[] {
  try {
    return readdirSync(directory, { recursive: true }).filter((name) => /\.tmp-/.test(String(name))) as string[]
  } catch {
    return []
  }
}

const isSave = ({ type, step }: CommandEvent) => type === 'step' && step! % 3 === 0

/** Longest wait for what a save leaves while it is under way. */
const SAVE_MS = 200

/** Calls `then` when a save is seen to be under way, or when none has been for a while. */
function withinSave(directory: string, then: () => void): void {
  const until = performance.now() + SAVE_MS
  const look = () => {
    if (leftovers(directory).length > 0 || performance.now() > until) then()
    else setImmediate(look)
  }
  look()
}

/** Lets a process live until a moment drawn from `random`: some events on and up to 60 ms, or a save under way. */
async function shortLife(directory: string, random: Random): Promise<Ended> {
  const atSave = random.chance(0.5)
  const wanted = atSave ? random.integer(1, 4) : random.integer(0, 16)
  const delay = random.integer(0, 60)
  let seen = 0
  const kill = (child: { kill: (signal: 'SIGKILL') => void }) => {
    if (atSave) withinSave(directory, () => child.kill('SIGKILL'))
    else setTimeout(() => child.kill('SIGKILL'), delay)
  }
  return await train(directory, (event, { child }) => {
    if ((!atSave || isSave(event)) && seen++ === wanted) kill(child)
  })
}

describe('SIGKILL', () => {
  it(
    `${KILLS} times at random moments (seed ${SEED}) changes nothing`,
    async () => {
      const directory = join(root, 'killed')
      const random = new Random(SEED)
      let [kills, insideSaves, lives] = [0, 0, 0]
      // A life that was not killed in time has finished the run; the next chain starts in a fresh folder.
      let target = directory
      for (let chain = 0; kills < KILLS; chain++) {
        target = `${directory}-${chain}`
        for (;;) {
          expect(lives++, 'processes').toBeLessThan(20 * KILLS)
          const ended = await shortLife(target, random)
          if (ended.signal === 'SIGKILL') {
            kills++
            if (leftovers(target).length > 0) insideSaves++
            if (kills < KILLS) continue
            expect(await train(target)).toMatchObject({ code: 0 })
          } else {
            expect(ended, ended.errors).toMatchObject({ code: 0 })
          }
          break
        }
        expect(await resultOf(target), `chain ${chain}, replay with CARAVAN_CRASH_SEED=${SEED}`).toEqual(undisturbed)
        expect(leftovers(target)).toEqual([])
      }
      expect(insideSaves, `kills inside a save, of ${kills}`).toBeGreaterThan(0)
    },
    KILLS * MINUTES,
  )
})

describe.each([
  ['SIGTERM', 143],
  ['SIGINT', 130],
] as const)('%s', (signal, code) => {
  it(
    `finishes the step, saves, exits with ${code}; continued, the run ends with the same bits`,
    async () => {
      const directory = join(root, signal)
      const ended = await train(directory, (event, { child }) => {
        if (event.type === 'step' && event.stage === 'base' && event.step === 4) child.kill(signal)
      })
      expect(ended, ended.errors).toMatchObject({ code, signal: null })
      const saved = ended.events.filter(({ type }) => type === 'checkpoint').at(-1)!
      const stopped = ended.events.find(({ type }) => type === 'stopped')
      expect(stopped).toMatchObject({ checkpoint: saved.directory, step: saved.step })
      expect(saved.step).toBe(ended.events.filter(({ type }) => type === 'step').at(-1)!.step)
      expect(ended.errors).toContain('--resume')
      const rest = await train(directory)
      expect(rest, rest.errors).toMatchObject({ code: 0 })
      expect(rest.events.find(({ type }) => type === 'stage')).toMatchObject({ resumedFrom: saved.step })
      expect(await resultOf(directory)).toEqual(undisturbed)
    },
    2 * MINUTES,
  )
})

describe('a second SIGINT', () => {
  it(
    'ends the process at once; the checkpoint before is intact',
    async () => {
      const directory = join(root, 'twice')
      const ended = await train(directory, (event, { child, mark }) => {
        if (event.type !== 'step' || event.stage !== 'base' || event.step !== 5) return
        child.kill('SIGINT')
        child.stderr!.once('data', () => {
          mark()
          child.kill('SIGINT')
        })
      })
      // 130 either way; what differs is that nothing is waited for.
      expect(ended, ended.errors).toMatchObject({ code: 130, signal: null })
      expect(ended.sinceMark).toBeLessThan(1000)
      const rest = await train(directory)
      expect(rest, rest.errors).toMatchObject({ code: 0 })
      expect(await resultOf(directory)).toEqual(undisturbed)
    },
    2 * MINUTES,
  )

  it(
    'during the preparation, SIGTERM ends it before the first step',
    async () => {
      const directory = join(root, 'early')
      const ended = await train(directory, (event, { child, mark }) => {
        if (event.type !== 'progress') return
        mark()
        child.kill('SIGTERM')
      })
      expect(ended.code, ended.errors).toBe(143)
      expect(ended.events.filter(({ type }) => type === 'step')).toEqual([])
      const rest = await train(directory)
      expect(rest, rest.errors).toMatchObject({ code: 0 })
      expect(await resultOf(directory)).toEqual(undisturbed)
    },
    2 * MINUTES,
  )
})
