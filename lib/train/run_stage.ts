// One stage of a run: the loop, with checkpoints, metrics, evaluation and resuming round it. Knows no algorithm.
import { join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { makeFolder } from '../base/make_folder.js'
import { fileError } from '../data/atomic_file.js'
import type { Method } from '../methods/method.js'
import type { Optimizer } from '../optim/optimizer.js'
import type { ScheduleOptions } from '../optim/schedule.js'
import type { Device } from '../runtime/index.js'
import type { Tensor } from '../tensor/index.js'
import {
  type CheckpointFileSystem,
  findCheckpoint,
  removeTemporaries,
  restoreTensors,
  type SaveOptions,
  saveCheckpoint,
  type TensorGroups,
} from './checkpoint.js'
import type { RunEvent, StepEvent } from './events.js'
import { type Step, trainLoop } from './loop.js'
import { MetricsLog, type MetricsRow } from './metrics.js'

export interface StageSettings {
  lr: number
  schedule: Omit<ScheduleOptions, 'totalSteps'>
  maxNorm: number
  maxSkippedInARow: number
  /** Steps between checkpoints; 0 = only when stopped. */
  checkpointEvery: number
  keepCheckpoints: number
  /** Steps between evaluations; 0 = only at the end. */
  evaluateEvery: number
}

export interface StageRun<Models, Micro> {
  stage: string
  device: Device
  method: Method<Models, Micro>
  models: Models
  /** The trained parameters by name. */
  parameters: ReadonlyMap<string, Tensor>
  /** Further tensors that checkpoints hold, by group and name. */
  saved?: TensorGroups
  optimizer: Optimizer
  settings: StageSettings
  /** The run folder. */
  directory: string
  /** Continue from the newest checkpoint of this stage, if there is one. */
  resume: boolean
  /** Held-out loss and the like, by name. */
  evaluate?: (signal?: AbortSignal) => Promise<Record<string, number>>
  /** Operations of the model's products for one trained token, for GFLOP/s. */
  flopsPerToken: number
  /** Stops at once, without a checkpoint. */
  signal?: AbortSignal
  /** Stops after the step under way, with a checkpoint; the stage then throws ERR_ABORTED with details.checkpoint. */
  stop?: AbortSignal
  /** For checkpoints; tests put a failing one in its place. */
  fileSystem?: CheckpointFileSystem
}

/** Runs a stage to its end. */
export async function* runStage<Models, Micro>(run: StageRun<Models, Micro>): AsyncGenerator<RunEvent> {
  const { stage, method, settings, parameters, optimizer, directory } = run
  const root = join(directory, 'checkpoints', stage)
  await makeFolder(root).catch((cause) => {
    throw fileError('mkdir', root, cause)
  })
  const metrics = new MetricsLog(directory)
  const groups: TensorGroups = { model: parameters, optimizer: optimizer.tensors(), ...run.saved }
  const start = await resume(run, root, groups)
  await metrics.rewind(stage, start.step)
  const count = [...parameters.values()].reduce((sum, tensor) => sum + tensor.count, 0)
  yield {
    type: 'stage',
    stage,
    totalSteps: method.totalSteps,
    parameters: count,
    resumedFrom: start.step || undefined,
    notes: start.notes,
  }
  const { lr, schedule, maxNorm, maxSkippedInARow, checkpointEvery, keepCheckpoints, evaluateEvery } = settings
  const position = { firstStep: start.step, skippedInARow: start.skippedInARow }
  let [done, skippedInARow] = [start.step, start.skippedInARow]
  async function* saveNow(): AsyncGenerator<RunEvent, string | CaravanError> {
    const state = { stage, step: done, batches: method.state(), optimizer: optimizer.state(), skippedInARow, settings }
    return yield* save(root, { state, groups, keep: keepCheckpoints, fileSystem: run.fileSystem })
  }
  const pace = new Pace(method.totalSteps, run.flopsPerToken)
  for await (const step of trainLoop({ ...run, lr, schedule, maxNorm, maxSkippedInARow, ...position })) {
    ;[done, skippedInARow] = [step.step, step.skippedInARow]
    const event = pace.event(stage, step)
    yield* record(metrics, metricsRow(event))
    yield event
    const stopping = run.stop?.aborted ?? false
    const last = step.step >= method.totalSteps
    // Before the checkpoint, so that no kill can leave a checkpoint whose evaluation is missing.
    if (run.evaluate && (last || (evaluateEvery > 0 && step.step % evaluateEvery === 0))) {
      const results = await run.evaluate(run.signal)
      yield* record(metrics, { stage, step: step.step, ...results })
      yield { type: 'evaluation', stage, step: step.step, metrics: results }
    }
    const saving = !last && ((checkpointEvery > 0 && step.step % checkpointEvery === 0) || stopping)
    // A checkpoint must not be ahead of the rows that survive a loss of power with it.
    if (saving || last) yield* settle(metrics, { stage, fileSystem: run.fileSystem })
    if (saving) {
      const saved = yield* saveNow()
      if (stopping) throw stopped(done, saved)
    }
  }
  // A method that makes its own data may be stopped while it does, between two steps.
  if (done < method.totalSteps && run.stop?.aborted) {
    yield* settle(metrics, { stage, fileSystem: run.fileSystem })
    throw stopped(done, yield* saveNow())
  }
}

interface Start {
  step: number
  skippedInARow: number
  notes: string[]
}

async function resume<Models, Micro>(
  { resume: wanted, method, optimizer }: StageRun<Models, Micro>,
  root: string,
  groups: TensorGroups,
): Promise<Start> {
  await removeTemporaries(root)
  if (!wanted) return { step: 0, skippedInARow: 0, notes: [] }
  const { checkpoint, skipped } = await findCheckpoint(root)
  const notes = skipped.map((error) => `passed over: ${error.message}`)
  if (!checkpoint) return { step: 0, skippedInARow: 0, notes }
  const { state, directory } = checkpoint
  await restoreTensors(directory, groups)
  method.restore(state.batches)
  optimizer.restore(state.optimizer)
  return { step: state.step, skippedInARow: state.skippedInARow, notes }
}

/** A save that fails is a warning while training goes on: the one before is intact, the next interval tries again. */
async function* save(root: string, options: SaveOptions): AsyncGenerator<RunEvent, string | CaravanError> {
  const { stage, step } = options.state
  const started = performance.now()
  try {
    const { directory, bytes, pruneProblem } = await saveCheckpoint(root, options)
    const seconds = (performance.now() - started) / 1000
    yield { type: 'checkpoint', stage, step, directory, bytes, seconds }
    if (pruneProblem) yield warningOf(stage, pruneProblem, 'an old checkpoint stays')
    return directory
  } catch (error) {
    if (!(error instanceof CaravanError)) throw error
    yield warningOf(stage, error, 'training goes on')
    return error
  }
}

/** A row that cannot be written is a warning too: it is kept, and written with the next one. */
async function* record(metrics: MetricsLog, row: MetricsRow): AsyncGenerator<RunEvent> {
  try {
    await metrics.append(row)
  } catch (error) {
    if (!(error instanceof CaravanError)) throw error
    yield warningOf(row.stage, error, 'training goes on')
  }
}

/** Makes the metrics durable. That this fails is a warning too: a checkpoint is worth more than rows. */
async function* settle(
  metrics: MetricsLog,
  { stage, fileSystem }: { stage: string; fileSystem: CheckpointFileSystem | undefined },
): AsyncGenerator<RunEvent> {
  try {
    await metrics.sync(fileSystem)
  } catch (error) {
    if (!(error instanceof CaravanError)) throw error
    yield warningOf(stage, error, 'rows of the newest steps may be lost with the power; training goes on')
  }
}

function warningOf(stage: string, { message, code }: CaravanError, consequence: string): RunEvent {
  return { type: 'warning', stage, message: `${message}; ${consequence}`, code }
}

/** `saved` is the folder of the checkpoint, or why there is none. */
function stopped(step: number, saved: string | CaravanError): CaravanError {
  if (saved instanceof CaravanError) {
    return new CaravanError('ERR_ABORTED', `stopped after step ${step}, without a checkpoint: ${saved.message}`, {
      details: { ...saved.details, step },
      hint: 'the checkpoint before it is intact: continue from there with --resume',
      cause: saved,
    })
  }
  return new CaravanError('ERR_ABORTED', `stopped after step ${step}; everything is in ${saved}`, {
    details: { step, checkpoint: saved },
    hint: 'continue with --resume',
  })
}

function metricsRow(event: StepEvent) {
  const { stage, step, loss, lr, gradientNorm, metrics, skipped, tokens, tokensPerSecond, peakMiB, gflops } = event
  const base = { stage, step, loss, lr, gradNorm: gradientNorm, ...metrics }
  return { ...base, skipped, tokens, tokensPerSecond, gflops, peakMiB }
}

/** Throughput and time left, smoothed over recent steps, with what lies between them. */
class Pace {
  #secondsPerStep: number | undefined
  #before = performance.now()

  constructor(
    private readonly totalSteps: number,
    private readonly flopsPerToken: number,
  ) {}

  event(stage: string, step: Step): StepEvent {
    const now = performance.now()
    const seconds = (now - this.#before) / 1000
    this.#before = now
    this.#secondsPerStep = this.#secondsPerStep === undefined ? seconds : 0.9 * this.#secondsPerStep + 0.1 * seconds
    const tokensPerSecond = step.tokens / step.seconds
    return {
      type: 'step',
      stage,
      ...step,
      tokensPerSecond,
      gflops: (tokensPerSecond * this.flopsPerToken) / 1e9,
      peakMiB: step.peakBytes / 2 ** 20,
      secondsLeft: (this.totalSteps - step.step) * this.#secondsPerStep,
    }
  }
}
