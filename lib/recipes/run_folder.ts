// The run folder: recipe.json (resolved, with where each value came from), metrics.jsonl, checkpoints/<stage>/step-N/,
// one Hugging Face folder per finished stage, samples.jsonl, result.json and report.html.
import { readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { makeFolder } from '../base/make_folder.js'
import { fileError, syncDirectory, writeFileAtomic } from '../data/atomic_file.js'
import type { Origin, Overrides, Recipe, ResolvedStage, Setting } from './stage.js'

/** What decides the outcome of a run; kept in recipe.json and compared when the run is resumed. */
export interface RunRecord {
  format: 1
  recipe: string
  scale: string
  dtype: 'f32' | 'bf16'
  seed: number
  model: string | undefined
  data: string[]
  fields: { [name: string]: string }
  overrides: Overrides
  stages: { name: string; kind: string; settings: { [key: string]: Setting }; origins: { [key: string]: Origin } }[]
}

/** Settings that may differ between a run and its continuation: they do not change the result. */
const harmless = new Set(
  ['checkpointEvery', 'keepCheckpoints', 'evaluateEvery', 'activationCheckpointing'].concat([
    'evalTasks',
    'evalData',
    'evalLimit',
    'keepRollouts',
  ]),
)

export function runRecord(
  recipe: Recipe,
  resolved: ReadonlyMap<string, ResolvedStage>,
  options: Pick<RunRecord, 'dtype' | 'seed' | 'model' | 'data' | 'fields' | 'overrides'>,
): RunRecord {
  const { dtype, seed, model, data, fields, overrides } = options
  return {
    format: 1,
    recipe: recipe.name,
    scale: recipe.scale,
    dtype,
    seed,
    model,
    data,
    fields,
    overrides,
    stages: recipe.stages
      .filter((stage) => resolved.has(stage.name))
      .map(({ name, kind }) => {
        const { values, origins } = resolved.get(name)!
        return { name, kind, settings: values as unknown as { [key: string]: Setting }, origins }
      }),
  }
}

/** recipe.json of a run folder. ERR_CONFIG when there is none. */
export async function readRunRecord(directory: string): Promise<RunRecord> {
  const path = join(directory, 'recipe.json')
  try {
    return JSON.parse(await readFile(path, 'utf8')) as RunRecord
  } catch (cause) {
    throw new CaravanError('ERR_CONFIG', `${directory} cannot be resumed: ${path} cannot be read`, {
      details: { directory },
      hint: 'give the folder of an earlier run (--out of that run)',
      cause,
    })
  }
}

/** Prepares the folder. A new run needs one in which nothing has been trained yet, so that a run that was refused for
 *  its  data, say, can be started again; a resumed run must match what the folder holds. */
export async function openRunFolder(directory: string, record: RunRecord, resume: boolean): Promise<void> {
  const existing = await stat(join(directory, 'recipe.json')).catch(() => undefined)
  if (resume && existing) {
    checkSame(await readRunRecord(directory), record)
    await removeTemporaries(directory)
    return
  }
  if (existing && (await hasTrained(directory))) {
    throw new CaravanError('ERR_CONFIG', `${directory} already holds a run`, {
      details: { directory },
      hint: 'continue it with --resume, or choose another folder with --out',
    })
  }
  try {
    await makeFolder(directory)
    // Of an attempt with other settings, perhaps.
    if (existing) await rm(join(directory, 'tokenizer'), { recursive: true, force: true })
  } catch (cause) {
    throw fileError('mkdir', directory, cause)
  }
  await writeFileAtomic(join(directory, 'recipe.json'), `${JSON.stringify(record, null, 2)}\n`)
}

/** Whether a step has been made in this folder. */
async function hasTrained(directory: string): Promise<boolean> {
  return stat(join(directory, 'metrics.jsonl')).then(
    (status) => status.size > 0,
    () => false,
  )
}

/** Removes files and folders that a killed process had not finished. */
async function removeTemporaries(directory: string): Promise<void> {
  try {
    for (const name of await readdir(directory)) {
      if (/\.tmp-\d+/.test(name)) await rm(join(directory, name), { recursive: true, force: true })
    }
  } catch (cause) {
    throw fileError('clean up', directory, cause)
  }
}

function checkSame(before: RunRecord, now: RunRecord): void {
  const differ = (what: string, then: unknown, current: unknown) =>
    new CaravanError(
      'ERR_CONFIG',
      `this run was started with ${what} = ${JSON.stringify(then)}, not ${JSON.stringify(current)}`,
      {
        hint: 'resume with the settings of the run, or start a new one with another --out',
        details: { what, before: then, now: current },
      },
    )
  for (const key of ['recipe', 'scale', 'dtype', 'seed', 'model', 'data', 'fields'] as const) {
    if (JSON.stringify(before[key]) !== JSON.stringify(now[key])) throw differ(key, before[key], now[key])
  }
  for (const stage of now.stages) {
    const then = before.stages.find(({ name }) => name === stage.name)
    for (const [key, value] of Object.entries(then ? stage.settings : {})) {
      if (harmless.has(key) || JSON.stringify(then!.settings[key]) === JSON.stringify(value)) continue
      throw differ(`${stage.name}.${key}`, then!.settings[key], value)
    }
  }
}

/** Lets `fill` write a folder that appears under its name whole or not at all. */
export async function folderAtomic(directory: string, fill: (temporary: string) => Promise<void>): Promise<void> {
  const temporary = `${directory}.tmp-${process.pid}`
  try {
    await rm(temporary, { recursive: true, force: true })
    await makeFolder(temporary)
    await fill(temporary)
    await syncDirectory(temporary)
    await rename(temporary, directory)
    await syncDirectory(join(directory, '..'))
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true }).catch(() => {})
    throw fileError('save', directory, cause)
  }
}

export async function folderExists(directory: string): Promise<boolean> {
  return stat(directory).then(
    (status) => status.isDirectory(),
    () => false,
  )
}
