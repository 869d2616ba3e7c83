// Finds and reads the rows of tasks. Files are found by name inside the data folder, in the layouts in which the data
// sets are published (their own archives, folders of the Hugging Face Hub) or simply as task.jsonl.
import { readdir, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { fileError } from '../data/atomic_file.js'
import { type JsonObject, readJsonLines } from '../data/json_lines.js'
import { readParquet } from '../data/parquet.js'
import type { RowPlace } from '../data/rows.js'
import { readCsv } from './csv.js'
import type { TaskData } from './task.js'

export interface TaskFiles {
  files: string[]
  /** Files of worked examples; none where there are none. */
  shotFiles: string[]
}

/** Preferred first: data that is there in several formats counts once. */
const FORMATS = [/\.(?:jsonl|ndjson)(?:\.gz)?$/, /\.json(?:\.gz)?$/, /\.parquet$/, /\.csv$/]

/** The files of a task. ERR_FILE with the names that are looked for when there are none. */
export async function findTaskFiles(task: { name: string; data: TaskData }, directory: string): Promise<TaskFiles> {
  const { data } = task
  if ('file' in data) {
    await checkedFile(data.file)
    if (data.shotsFile !== undefined) await checkedFile(data.shotsFile)
    return { files: [data.file], shotFiles: data.shotsFile === undefined ? [] : [data.shotsFile] }
  }
  if (await isFile(directory)) return { files: [directory], shotFiles: [] }
  const files = await findSplit(data.names, data.splits, { directory, alone: true })
  if (files.length === 0) throw notFound(task.name, data, directory)
  return { files, shotFiles: await findSplit(data.names, data.shotSplits ?? [], { directory, alone: false }) }
}

async function findSplit(
  names: readonly string[],
  splits: readonly string[],
  { directory, alone }: { directory: string; alone: boolean },
): Promise<string[]> {
  for (const split of splits) {
    for (const name of names) {
      const folder = join(directory, name)
      const inside = await namesIn(folder)
      for (const pattern of [new RegExp(`^${split}(?:-\\d+-of-\\d+)?\\.`, 'i'), new RegExp(`[-_]${split}\\.`, 'i')]) {
        const found = ofOneFormat(inside.filter((file) => pattern.test(file)))
        if (found.length > 0) return found.map((file) => join(folder, file))
      }
    }
    const beside = new RegExp(`^(?:${topNames(names).join('|')})[-_.]${split}\\.`, 'i')
    const found = ofOneFormat((await namesIn(directory)).filter((file) => beside.test(file)))
    if (found.length > 0) return found.map((file) => join(directory, file))
  }
  if (!alone) return []
  const whole = new RegExp(`^(?:${topNames(names).join('|')})\\.`, 'i')
  return ofOneFormat((await namesIn(directory)).filter((file) => whole.test(file))).map((file) => join(directory, file))
}

function topNames(names: readonly string[]): string[] {
  return names.filter((name) => !name.includes('/'))
}

function ofOneFormat(names: readonly string[]): string[] {
  for (const format of FORMATS) {
    const found = names.filter((name) => format.test(name))
    if (found.length > 0) return found.sort()
  }
  return []
}

/** Names in a folder; none where there is no such folder. */
async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') return []
    throw fileError('read', folder, error)
  }
}

async function isFile(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isFile()
  } catch (error) {
    throw fileError('stat', path, error)
  }
}

async function checkedFile(path: string): Promise<void> {
  if (await isFile(path)) return
  throw new CaravanError('ERR_FILE', `${path}: not a file`, { details: { path } })
}

function notFound(task: string, data: Extract<TaskData, { names: unknown }>, directory: string): CaravanError {
  const [name, split] = [data.names[0]!, data.splits[0]!]
  const looked = [`${name}/${split}.jsonl`, `${name}/${split}-00000-of-00001.parquet`, `${name}_${split}.jsonl`]
  const others = data.splits.length > 1 ? `; also the parts ${data.splits.slice(1).join(', ')}` : ''
  const names = data.names.length > 1 ? `; also the names ${data.names.slice(1).join(', ')}` : ''
  return new CaravanError('ERR_FILE', `${directory}: no data for the task ${task}`, {
    details: { path: directory, task, names: data.names, splits: data.splits },
    hint:
      `looked for ${[...looked, `${name}.jsonl`].join(', ')} (also .json, .jsonl.gz, .parquet` +
      `${task === 'mmlu' ? ', .csv' : ''})${others}${names}`,
  })
}

/** All rows of some files, in order. ERR_DATA for a bad row, ERR_FORMAT for a damaged file. */
export async function* taskRows(
  files: readonly string[],
  signal?: AbortSignal,
): AsyncGenerator<{ row: JsonObject; place: RowPlace }> {
  for (const file of files) {
    if (file.endsWith('.csv')) {
      for (const { cells, line } of await readCsv(file)) {
        const place = { file, line }
        yield { row: mmluRow(cells, place), place }
      }
      continue
    }
    if (file.endsWith('.parquet')) {
      for await (const { row, line } of readParquet(file, { signal })) {
        yield { row: withNumbers(row) as JsonObject, place: { file, line } }
      }
    } else {
      for await (const { row, line } of readJsonLines(file, { signal })) yield { row, place: { file, line } }
    }
  }
}

/** The value as JSON would have it: 64-bit integers of columnar files are numbers there. */
function withNumbers(value: unknown): unknown {
  if (typeof value === 'bigint') return Number(value)
  if (Array.isArray(value)) return value.map(withNumbers)
  if (typeof value !== 'object' || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, withNumbers(one)]))
}

/** A line of MMLU's own files: question, choices, letter; the subject is in the file's name. */
function mmluRow(cells: readonly string[], { file, line }: RowPlace): JsonObject {
  if (cells.length < 4) {
    const wanted = 'a question, at least two choices and a letter'
    throw new CaravanError('ERR_DATA', `${file}:${line}: must have ${wanted}; got ${cells.length} cells`, {
      details: { file, line },
    })
  }
  const subject = /^(.*)[-_][a-z]+\.csv$/i.exec(basename(file))?.[1]
  return { question: cells[0], choices: cells.slice(1, -1), answer: cells.at(-1), subject }
}
