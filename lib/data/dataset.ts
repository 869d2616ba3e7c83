// A set of data files as one stream of rows. Formats are told by file name; a folder stands for the data files directly
// in it, in order of name, so that the same folder gives the same order everywhere.
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { fileError } from './atomic_file.js'
import { pathInside } from './folder.js'
import { type JsonObject, readJsonLines } from './json_lines.js'
import { ParquetDecoder, readParquet } from './parquet.js'
import { checkFieldMap, type FieldMap, type Row, type RowForm, singleRows } from './rows.js'

export interface DatasetOptions {
  /** Columns to take for fields, e.g. `{ prompt: 'question', completion: 'answer' }`. */
  fields?: FieldMap
  /** What the rows are; default singleRows. */
  form?: RowForm
  /** A bad row throws (default), or is left out and counted. A damaged file always throws. */
  onError?: 'throw' | 'skip-and-count'
  /** Longest row of a JSON file in bytes. Default 64 MiB. */
  maxLineBytes?: number
  signal?: AbortSignal
}

export interface DatasetRow {
  row: Row
  file: string
  /** Line of a text file, row of a parquet file, from 1. */
  line: number
}

/** What the last complete or running pass over the rows has met. */
export interface DatasetCounts {
  rows: number
  /** Bad rows that were skipped, and rows that their form leaves out. */
  badRows: number
  /** The first few errors of bad rows, for a report. */
  firstErrors: CaravanError[]
}

const MAX_KEPT_ERRORS = 10
const DATA_FILE = /\.(jsonl|ndjson|json)(\.gz)?$|\.parquet$/

/**
 * Opens data files and folders of data files. Nothing is read before the rows are asked for, but ERR_FILE for a missing
 * path, ERR_DATA for a name that is no data file or a folder without any, and ERR_CONFIG for a bad field map come at
 * once.
 */
export async function openDataset(paths: readonly string[], options: DatasetOptions = {}): Promise<Dataset> {
  checkFieldMap(options.fields ?? {}, (options.form ?? singleRows).shapes)
  const files: string[] = []
  for (const path of paths) files.push(...(await dataFiles(path)))
  if (files.length === 0) throw new CaravanError('ERR_CONFIG', 'a dataset needs at least one file')
  return new Dataset(files, options)
}

/** Rows of several files; iterate `rows()` as often as needed. */
export class Dataset {
  #counts: DatasetCounts = { rows: 0, badRows: 0, firstErrors: [] }

  constructor(
    readonly files: readonly string[],
    readonly options: DatasetOptions,
  ) {}

  get counts(): Readonly<DatasetCounts> {
    return this.#counts
  }

  /** All rows, file by file. ERR_DATA for a bad row unless they are skipped; ERR_FORMAT for a damaged file. */
  async *rows(): AsyncGenerator<DatasetRow> {
    const counts: DatasetCounts = { rows: 0, badRows: 0, firstErrors: [] }
    this.#counts = counts
    const { onError = 'throw', fields, form = singleRows } = this.options
    const onBadRow = (error: CaravanError) => {
      counts.badRows++
      if (counts.firstErrors.length < MAX_KEPT_ERRORS) counts.firstErrors.push(error)
    }
    const skip = onError === 'skip-and-count' ? onBadRow : undefined
    for (const file of this.files) {
      for await (const { row, line } of this.#rawRows(file, skip)) {
        const converted = convertOrSkip(() => form.convert(row, { file, line }, fields), skip)
        if (converted === undefined) continue
        if (converted.length === 0) counts.badRows++
        else counts.rows++
        for (const one of converted) yield { row: one, file, line }
      }
    }
  }

  /** Rows as the files have them, unconverted. */
  async *#rawRows(
    file: string,
    onBadRow?: (error: CaravanError) => void,
  ): AsyncGenerator<{ row: JsonObject; line: number }> {
    const { maxLineBytes, signal } = this.options
    if (!file.endsWith('.parquet')) {
      yield* readJsonLines(file, { onBadRow, maxLineBytes, signal })
      return
    }
    const decoder = new ParquetDecoder()
    try {
      yield* readParquet(file, { decoder, signal })
    } finally {
      decoder.close()
    }
  }
}

/** ERR_DATA that names the files, for those to whom a dataset is of no use when a whole pass over it met no row. */
export function withoutRows({ files, counts }: Dataset): CaravanError {
  const [first, ...others] = files
  const place = others.length === 0 ? first : `${first} and ${others.length} more`
  const why =
    counts.badRows > 0
      ? `all ${counts.badRows} rows are bad, the first: ${counts.firstErrors[0]?.message ?? 'an empty side'}`
      : 'nothing in it, or blank lines only'
  return new CaravanError('ERR_DATA', `${place}: no rows (${why})`, {
    details: { file: first, files },
    hint: 'give a data file with at least one row',
  })
}

function convertOrSkip(convert: () => Row[], onBadRow?: (error: CaravanError) => void): Row[] | undefined {
  try {
    return convert()
  } catch (error) {
    if (onBadRow === undefined || !(error instanceof CaravanError) || error.code !== 'ERR_DATA') throw error
    onBadRow(error)
    return undefined
  }
}

async function dataFiles(path: string): Promise<string[]> {
  try {
    if (!(await stat(path)).isDirectory()) {
      if (DATA_FILE.test(path)) return [path]
      throw new CaravanError('ERR_DATA', `${path}: not a data file by its name`, {
        details: { file: path },
        hint: 'data files end in .jsonl, .ndjson, .json (each also with .gz) or .parquet',
      })
    }
    const names = (await readdir(path)).filter((name) => DATA_FILE.test(name) && !name.startsWith('.')).sort()
    if (names.length === 0) {
      throw new CaravanError('ERR_DATA', `${path}: the folder has no data files`, {
        details: { file: path },
        hint: 'data files end in .jsonl, .ndjson, .json (each also with .gz) or .parquet',
      })
    }
    return await Promise.all(names.map((name) => pathInside(path, name, join(path, name))))
  } catch (error) {
    throw fileError('stat', path, error)
  }
}
