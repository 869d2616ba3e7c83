// Learning-rate schedules against transformers' get_scheduler, step by step and past the end.
import { describe, expect, it } from 'vitest'
import { type ScheduleOptions, scheduleFactor, scheduleKind } from '../../lib/optim/schedule.js'
import { goldenJson } from '../train/golden_tensors.js'

interface GoldenSchedule {
  name: string
  kwargs: { num_warmup_steps?: number }
  values: number[]
}

const { schedules } = goldenJson<{ schedules: GoldenSchedule[] }>('optim/schedules.json')

/** The reference's schedules that the engine has too, as the engine says them. */
const known: { [name: string]: Omit<ScheduleOptions, 'totalSteps' | 'warmupSteps'> } = {
  linear: { kind: 'linear' },
  linear_no_warmup: { kind: 'linear' },
  cosine: { kind: 'cosine' },
  cosine_min: { kind: 'cosine', finalRatio: 0.1 },
  constant: { kind: 'constant' },
  constant_with_warmup: { kind: 'constant' },
  wsd_linear: { kind: 'wsd', finalRatio: 0.05, decaySteps: 10 },
}

const steps = 40

describe('schedule', () => {
  it.each(Object.entries(known))('%s has the values of the reference', (name, options) => {
    const { kwargs, values } = schedules.find((schedule) => schedule.name === name)!
    const warmupSteps = kwargs.num_warmup_steps ?? 0
    // After the last step the reference's cosine rises again; the engine's stays where it ended.
    const end = options.kind === 'cosine' ? steps + 1 : values.length
    // The reference warms wsd up from its final ratio; the engine warms everything up from 0.
    const start = options.kind === 'wsd' ? warmupSteps : 0
    expect(end - start).toBeGreaterThan(30)
    for (let step = start; step < end; step++) {
      const wanted = values[step]!
      const got = scheduleFactor(step, { ...options, warmupSteps, totalSteps: steps })
      expect(Math.abs(got - wanted), `${name}, step ${step}: ${got} for ${wanted}`).toBeLessThan(1e-14)
    }
  })

  it('stays at its end after the last step', () => {
    for (const kind of ['linear', 'cosine', 'wsd'] as const) {
      for (const step of [steps, steps + 1, steps + 100]) {
        const options = { kind, warmupSteps: 4, totalSteps: steps, finalRatio: 0.25 }
        expect(scheduleFactor(step, options), `${kind}, step ${step}`).toBeCloseTo(0.25, 14)
      }
    }
  })

  it('decays over the last fifth of wsd unless told otherwise', () => {
    const options = { kind: 'wsd', warmupSteps: 0, totalSteps: 50 } as const
    expect(scheduleFactor(40, options)).toBe(1)
    expect(scheduleFactor(41, options)).toBeCloseTo(0.9, 14)
    expect(scheduleFactor(45, options)).toBeCloseTo(0.5, 14)
    expect(scheduleFactor(50, options)).toBe(0)
  })

  it('is finite and between 0 and 1 for degenerate lengths', () => {
    for (const kind of ['linear', 'cosine', 'constant', 'wsd'] as const) {
      for (const [totalSteps, warmupSteps] of [
        [0, 0],
        [1, 0],
        [1, 1],
        [3, 3],
        [3, 9],
      ] as const) {
        for (let step = 0; step < 5; step++) {
          const factor = scheduleFactor(step, { kind, totalSteps, warmupSteps })
          expect(factor >= 0 && factor <= 1, `${kind} ${totalSteps} ${warmupSteps} ${step}: ${factor}`).toBe(true)
        }
      }
    }
  })

  it('names the nearest kind for a misspelt one', () => {
    expect(scheduleKind('cosine')).toBe('cosine')
    expect(() => scheduleKind('cosin')).toThrow(
      expect.objectContaining({ code: 'ERR_CONFIG', hint: "did you mean 'cosine'?" }),
    )
  })
})
