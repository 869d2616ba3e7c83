// Which stages a run has, with which settings: shared by the run and by its plan.
import { CaravanError, nearestName } from '../base/errors.js'
import {
  checkOverrideStages,
  type Overrides,
  type PretrainSettings,
  type Recipe,
  type Resolved,
  resolveStage,
  type SftSettings,
  type StageRecipe,
} from './stage.js'

export interface RunOptions {
  /** The run folder. */
  directory: string
  /** Names of the stages to run; default all that the recipe has and the other options leave in. */
  stages?: string[]
  overrides?: Overrides
  /** Folder of the model to start from, in place of the recipe's own base stage. */
  model?: string
  /** Data files or folders for the SFT stage, in place of the recipe's own. */
  data?: string[]
  /** Names of the fields to read, such as { prompt: 'question' }. */
  fields?: { [name: string]: string }
  /** Continue the run in `directory` from its newest checkpoints. */
  resume?: boolean
  seed?: number
  device?: 'cpu' | 'cuda'
  dtype?: 'f32' | 'bf16'
  threads?: number
  memoryBudgetBytes?: number
  /** Stops at once, within a micro-batch. */
  signal?: AbortSignal
  /** Stops after the step under way, with a checkpoint. */
  stop?: AbortSignal
}

/** Which stages run, with their settings. Shared by run and planRun. */
export function resolveRun(recipe: Recipe, options: RunOptions): Map<string, Resolved<SftSettings | PretrainSettings>> {
  const chosen = chosenStages(recipe, options)
  const overrides = options.overrides ?? {}
  checkOverrideStages(
    overrides,
    recipe.stages.map(({ name }) => name),
  )
  return new Map(
    chosen.map((stage) => {
      const resolved = resolveStage(stage, overrides)
      const first = stage === chosen[0]
      if (stage.kind === 'sft') applyOptions(resolved as Resolved<SftSettings>, options, first)
      return [stage.name, resolved]
    }),
  )
}

function applyOptions({ values, origins }: Resolved<SftSettings>, options: RunOptions, first: boolean): void {
  const given: Partial<SftSettings> = { data: options.data, fields: options.fields }
  if (first && options.model) given.model = options.model
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined) continue
    Object.assign(values, { [key]: value })
    origins[key] = 'flag'
  }
}

function chosenStages(recipe: Recipe, options: RunOptions): StageRecipe[] {
  const known = recipe.stages.map(({ name }) => name)
  for (const name of options.stages ?? []) {
    if (known.includes(name)) continue
    if (recipe.notBuilt.includes(name)) {
      throw new CaravanError(
        'ERR_CONFIG',
        `stage '${name}' of ${recipe.name} is not part of this version; it has: ${known.join(', ')}`,
      )
    }
    const nearest = nearestName(name, [...known, ...recipe.notBuilt])
    throw new CaravanError(
      'ERR_CONFIG',
      `${recipe.name} at scale ${recipe.scale} has no stage '${name}'; it has: ${known.join(', ')}`,
      {
        hint: nearest && `did you mean '${nearest}'?`,
      },
    )
  }
  const wanted = options.stages ?? known
  const chosen = recipe.stages.filter(
    ({ name, kind }) => wanted.includes(name) && !(options.model && kind === 'pretrain'),
  )
  if (options.model && options.stages?.some((name) => !chosen.some((stage) => stage.name === name))) {
    throw new CaravanError('ERR_CONFIG', 'a model folder replaces the base stage; leave it out of the stages')
  }
  return chosen
}
