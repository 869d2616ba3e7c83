// `caravan train`: from options to a run, from its events to the screen, from its end to an exit code.
import { CaravanError } from '../base/errors.js'
import { type RunOptions, run } from '../recipes/run.js'
import type { Recipe } from '../recipes/stage.js'
import type { RunEvent } from '../train/events.js'
import { type DeviceFlag, type DtypeFlag, engineDtype } from './command_options.js'
import { exitCodes } from './failure.js'
import { newRunFolder, recipeNamed, resumedRun } from './run_choice.js'
import { StopSignals } from './stop_signals.js'
import { Terminal } from './terminal.js'
import { TrainView } from './train_view.js'

export interface TrainFlags {
  recipe: string
  scale: string
  algorithm?: string
  stage?: string[]
  model?: string
  data?: string[]
  fields?: { [name: string]: string }
  out?: string
  set?: { [path: string]: string }
  resume?: boolean | string
  seed?: number
  device?: DeviceFlag
  dtype?: DtypeFlag
  threads?: number
  memoryLimit?: number
  dryRun?: boolean
  quiet?: boolean
  json?: boolean
}

/** Runs a recipe, or shows its plan; the value is the exit code. */
export async function train(flags: TrainFlags): Promise<number> {
  const chosen = flags.resume ? await resumedRun(flags) : flags
  const recipe = recipeNamed(chosen.recipe, chosen)
  const options = runOptions(chosen, recipe)
  if (flags.dryRun) {
    const { showPlan } = await import('./train_plan.js')
    await showPlan(recipe, options, flags.json ?? false)
    return exitCodes.done
  }
  return follow(recipe, options, flags)
}

function runOptions(flags: TrainFlags, recipe: Recipe): RunOptions {
  const { stage, model, data, fields, set, resume, seed, device, dtype, threads, memoryLimit, out } = flags
  return {
    directory: out ?? newRunFolder(recipe),
    stages: stage,
    model,
    data,
    fields,
    overrides: set,
    resume: resume !== undefined && resume !== false,
    seed,
    device,
    dtype: engineDtype(dtype),
    threads,
    memoryBudgetBytes: memoryLimit,
  }
}

/** Shows the events of the run until it ends. */
async function follow(recipe: Recipe, options: RunOptions, flags: TrainFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const errors = new Terminal(process.stderr)
  const view = new TrainView(terminal, flags)
  const show = flags.json ? (event: RunEvent) => terminal.line(JSON.stringify(event)) : view.show.bind(view)
  const stopping = new StopSignals((signal) => {
    view.pause()
    errors.line(errors.color.yellow(`${signal}: finishing the step and saving; once more to stop without saving`))
  })
  let exitCode: number = exitCodes.done
  try {
    for await (const event of run(recipe, { ...options, stop: stopping.stop })) {
      show(event)
      if (event.type === 'warning' && (flags.json || flags.quiet)) warn(errors, event)
      if (event.type === 'done' && !event.gatesPassed) exitCode = exitCodes.failed
    }
    return exitCode
  } catch (error) {
    view.pause()
    if (stopping.exitCode === undefined || !wasStopped(error)) throw error
    if (flags.json) terminal.line(JSON.stringify({ type: 'stopped', message: error.message, ...error.details }))
    errors.line(errors.color.yellow(error.message))
    errors.line(`${errors.color.cyan('continue with:')} caravan train --resume ${options.directory}`)
    return stopping.exitCode
  } finally {
    view.pause()
    stopping.release()
  }
}

function wasStopped(error: unknown): error is CaravanError {
  return error instanceof CaravanError && error.code === 'ERR_ABORTED'
}

function warn(errors: Terminal, event: RunEvent & { type: 'warning' }): void {
  errors.line(`${errors.color.yellow('warning:')} ${event.stage}: ${event.message}`)
}
