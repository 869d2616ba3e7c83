// Which stages a run has, with which settings: shared by the run and by its plan.
import { CaravanError, nearestName } from '../base/errors.js'
import {
  type ChatSettings,
  checkOverrideStages,
  type Overrides,
  type Recipe,
  type ResolvedStage,
  resolveStage,
  type StageKind,
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
  /** Data files or folders for the first stage that reads any, in place of the recipe's own; without `stages` the run
   *  then has no other stage on data. */
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
export function resolveRun(recipe: Recipe, options: RunOptions): Map<string, ResolvedStage> {
  const chosen = chosenStages(recipe, options)
  const overrides = options.overrides ?? {}
  checkOverrideStages(
    overrides,
    recipe.stages.map(({ name }) => name),
  )
  // Data files are for the first stage that reads any; the others are given theirs by --set.
  const reader = chosen.find(({ kind }) => readsData(kind))
  return new Map(
    chosen.map((stage) => {
      const resolved = resolveStage(stage, overrides)
      const given: Partial<ChatSettings> = {}
      if (stage === reader) Object.assign(given, { data: options.data, fields: options.fields })
      if (stage === chosen[0] && options.model) given.model = options.model
      if (readsData(stage.kind)) apply(resolved, given)
      return [stage.name, resolved]
    }),
  )
}

/** Whether stages of this kind start from a model and read conversations. */
const readsData = (kind: StageKind) => kind !== 'pretrain' && kind !== 'eval'

function apply({ values, origins }: ResolvedStage, given: Partial<ChatSettings>): void {
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
    const nearest = nearestName(name, known)
    throw new CaravanError(
      'ERR_CONFIG',
      `${recipe.name} at scale ${recipe.scale} has no stage '${name}'; it has: ${known.join(', ')}`,
      {
        hint: nearest && `did you mean '${nearest}'?`,
      },
    )
  }
  const wanted = options.stages ?? (options.data ? withOwnData(recipe) : known)
  const chosen = recipe.stages.filter(
    ({ name, kind }) => wanted.includes(name) && !(options.model && kind === 'pretrain'),
  )
  if (options.model && options.stages?.some((name) => !chosen.some((stage) => stage.name === name))) {
    throw new CaravanError('ERR_CONFIG', 'a model folder replaces the base stage; leave it out of the stages')
  }
  return chosen
}

/** The stages up to the first one on data: the files that a user gives are for that one. */
function withOwnData({ stages }: Recipe): string[] {
  const first = stages.findIndex(({ kind }) => readsData(kind))
  return stages.slice(0, first + 1).map(({ name }) => name)
}
