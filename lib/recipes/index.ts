// What runs a recipe, loaded at its first call: stages and their data are a quarter of the package's code, and half of
// the programs that import the package train by other means or not at all.
import type { RunEvent } from '../train/events.js'
import type { RunPlan } from './plan.js'
import type { RunOptions } from './resolve_run.js'
import type { Recipe } from './stage.js'

export type { RunPlan, StagePlan } from './plan.js'
export type { RunOptions } from './resolve_run.js'

/** Runs `recipe` and yields what happens. Stop iterating, or use `signal` or `stop`, to end it early. */
export async function* run(recipe: Recipe, options: RunOptions): AsyncGenerator<RunEvent> {
  const module = await import('./run.js')
  yield* module.run(recipe, options)
}

/** Plans `recipe` without training. Errors as run() would give them before its first step. */
export async function planRun(recipe: Recipe, options: RunOptions): Promise<RunPlan> {
  const module = await import('./plan.js')
  return module.planRun(recipe, options)
}
