// Learning-rate schedules as pure functions of the step, with the values of transformers' get_scheduler.
import { CaravanError, nearestName } from '../base/errors.js'

export interface ScheduleOptions {
  /** linear, cosine and wsd go down to `finalRatio` of the peak; constant does not. */
  kind: 'linear' | 'cosine' | 'constant' | 'wsd'
  /** Steps of linear warm-up from 0. */
  warmupSteps: number
  totalSteps: number
  /** Where the schedule ends, as a share of the peak. Default 0. */
  finalRatio?: number
  /** wsd: steps of the decay at the end. Default a fifth of all steps. */
  decaySteps?: number
}

export const scheduleKinds = ['linear', 'cosine', 'constant', 'wsd'] as const

/** Factor of the peak learning rate at `step` (from 0). During warm-up step / warmupSteps, so the first step has 0. */
export function scheduleFactor(step: number, options: ScheduleOptions): number {
  const { kind, warmupSteps, totalSteps, finalRatio = 0 } = options
  if (step < warmupSteps) return step / Math.max(1, warmupSteps)
  if (kind === 'constant') return 1
  if (kind === 'wsd') {
    const decaySteps = options.decaySteps ?? Math.max(1, Math.floor(totalSteps / 5))
    const left = totalSteps - step
    return left >= decaySteps ? 1 : finalRatio + (1 - finalRatio) * Math.max(0, left / decaySteps)
  }
  const progress = Math.min(1, (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps))
  const down = kind === 'linear' ? 1 - progress : 0.5 * (1 + Math.cos(Math.PI * progress))
  return finalRatio + (1 - finalRatio) * Math.max(0, down)
}

/** The schedule kind named `name`; ERR_CONFIG with the nearest one otherwise. */
export function scheduleKind(name: string): ScheduleOptions['kind'] {
  const kind = scheduleKinds.find((known) => known === name)
  if (kind) return kind
  const nearest = nearestName(name, scheduleKinds)
  throw new CaravanError('ERR_CONFIG', `unknown schedule '${name}'; known: ${scheduleKinds.join(', ')}`, {
    hint: nearest && `did you mean '${nearest}'?`,
  })
}
