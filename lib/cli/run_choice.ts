// Which recipe and which run folder a command line means.
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { CaravanError, nearestName } from '../base/errors.js'
import { type RunRecord, readRunRecord } from '../recipes/run_folder.js'
import type { Recipe } from '../recipes/stage.js'
import { tulu3 } from '../recipes/tulu3.js'
import type { TrainFlags } from './train.js'

interface RecipeOptions {
  scale: string
  algorithm?: string
}

const recipes: { [name: string]: (options: RecipeOptions) => Recipe } = { tulu3 }
const RUNS = 'runs'

/** The recipe at a scale, with an algorithm for its stage with rewards. ERR_CONFIG with the nearest name for one that
 *  does not exist. */
export function recipeNamed(name: string, options: RecipeOptions): Recipe {
  const make = Object.hasOwn(recipes, name) ? recipes[name] : undefined
  if (make) return make(options)
  const known = Object.keys(recipes)
  const nearest = nearestName(name, known)
  throw new CaravanError('ERR_CONFIG', `there is no recipe '${name}'; known: ${known.join(', ')}`, {
    hint: nearest && `did you mean '${nearest}'?`,
  })
}

/** A folder for a new run, named by what it is and when it began. */
export function newRunFolder(recipe: Recipe, now = new Date()): string {
  const time = now.toISOString().slice(0, 19).replaceAll(/[-:]/g, '').replace('T', '-')
  return join(RUNS, `${recipe.name}-${recipe.scale}-${time}`)
}

/** The flags of a run that goes on: what the command line leaves open is taken from the run's recipe.json. */
export async function resumedRun(flags: TrainFlags): Promise<TrainFlags> {
  const directory = typeof flags.resume === 'string' ? flags.resume : (flags.out ?? (await newestRun()))
  if (flags.out !== undefined && typeof flags.resume === 'string' && flags.out !== flags.resume) {
    throw new CaravanError('ERR_USAGE', `--resume ${flags.resume} and --out ${flags.out} name two run folders`, {
      hint: 'a run continues in its own folder: leave --out out',
    })
  }
  const record = await readRunRecord(directory)
  return {
    ...flags,
    out: directory,
    recipe: record.recipe,
    scale: record.scale,
    algorithm: flags.algorithm ?? algorithmOf(record),
    stage: flags.stage ?? record.stages.map(({ name }) => name),
    model: flags.model ?? record.model,
    data: flags.data ?? (record.data.length > 0 ? record.data : undefined),
    fields: flags.fields ?? (Object.keys(record.fields).length > 0 ? record.fields : undefined),
    set: { ...record.overrides, ...flags.set },
    seed: flags.seed ?? record.seed,
    dtype: flags.dtype ?? (record.dtype === 'f32' ? 'fp32' : record.dtype),
  }
}

/** The algorithm that a run was started with, where it has a stage with rewards. */
function algorithmOf({ stages }: RunRecord): string | undefined {
  const algorithm = stages.find(({ kind }) => kind === 'rlvr')?.settings.algorithm
  return typeof algorithm === 'string' ? algorithm : undefined
}

/** The run folder under runs/ that was written to last. */
async function newestRun(): Promise<string> {
  const names = await readdir(RUNS).catch(() => [])
  let newest: { directory: string; time: number } | undefined
  for (const name of names) {
    const directory = join(RUNS, name)
    const time = await stat(join(directory, 'recipe.json')).then(
      (status) => status.mtimeMs,
      () => undefined,
    )
    if (time !== undefined && (newest === undefined || time > newest.time)) newest = { directory, time }
  }
  if (newest) return newest.directory
  throw new CaravanError('ERR_USAGE', `there is no run to resume in ${RUNS}/`, {
    hint: 'name the folder of the run: --resume DIR',
  })
}
