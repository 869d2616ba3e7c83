// Rows of comma-separated text (RFC 4180) without a header, as MMLU is published. Small files: read whole.
import { readFile } from 'node:fs/promises'
import { CaravanError } from '../base/errors.js'
import { fileError } from '../data/atomic_file.js'

export interface CsvRow {
  cells: string[]
  /** Line where the row begins, from 1. */
  line: number
}

/** The rows of a file. ERR_FILE when it cannot be read, ERR_DATA for a quote that does not end. */
export async function readCsv(file: string): Promise<CsvRow[]> {
  const text = await readFile(file, 'utf8').catch((error: unknown) => {
    throw fileError('read', file, error)
  })
  return parseCsv(text.replace(/^\ufeff/, ''), file)
}

/** Quoted cells may hold commas, line breaks and doubled quotes; blank lines are left out. */
export function parseCsv(text: string, file: string): CsvRow[] {
  const rows: CsvRow[] = []
  // A cell, quoted or not, and what ends it; a quote that does not end matches neither.
  const cell = /(?:"((?:[^"]|"")*)"|([^",\r\n][^,\r\n]*|))(,|\r?\n|$)/y
  let [line, begin] = [1, 1]
  let cells: string[] = []
  while (cell.lastIndex < text.length || cells.length > 0) {
    const match = cell.exec(text)
    if (!match) {
      throw new CaravanError('ERR_DATA', `${file}:${line}: a quoted cell does not end, or goes on behind its quote`, {
        details: { file, line },
        hint: 'a quote inside a quoted cell must be doubled',
      })
    }
    const [whole, quoted, plain, ending] = match
    cells.push(quoted?.replaceAll('""', '"') ?? plain!)
    line += whole.split('\n').length - 1
    if (ending === ',') continue
    if (cells.length > 1 || cells[0] !== '') rows.push({ cells, line: begin })
    cells = []
    begin = line
    if (ending === '') break
  }
  return rows
}
