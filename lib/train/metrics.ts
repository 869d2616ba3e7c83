// metrics.jsonl: one row a step or evaluation. After a crash the rows past the resumed step are cut off, so the file
// reads as if the crash had not happened.
import * as nodeFileSystem from 'node:fs/promises'
import { appendFile, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type FileSystem, fileError, writeFileAtomic } from '../data/atomic_file.js'

export interface MetricsRow {
  stage: string
  step: number
  [name: string]: number | string | boolean | null
}

export class MetricsLog {
  readonly path: string
  /** Text that could not be written yet. */
  #waiting = ''

  constructor(directory: string) {
    this.path = join(directory, 'metrics.jsonl')
  }

  /** Adds a row. With ERR_FILE the row is kept and written together with the next one. */
  async append(row: MetricsRow): Promise<void> {
    // The failed write may have left half a line, which the line break ends.
    const before = this.#waiting === '' ? '' : `\n${this.#waiting}`
    this.#waiting += `${JSON.stringify(row)}\n`
    try {
      await appendFile(this.path, `${before}${JSON.stringify(row)}\n`)
      this.#waiting = ''
    } catch (cause) {
      throw fileError('append', this.path, cause)
    }
  }

  /** Makes the rows so far durable: they survive a loss of power. ERR_FILE when the disk refuses; rows that are still
   *  waiting are none, as append() has reported. */
  async sync(fileSystem: Pick<FileSystem, 'open'> = nodeFileSystem): Promise<void> {
    if (this.#waiting !== '') return
    try {
      const handle = await fileSystem.open(this.path, 'r+')
      try {
        await handle.sync()
      } finally {
        await handle.close()
      }
    } catch (cause) {
      throw fileError('fsync', this.path, cause)
    }
  }

  /** All rows; a last line that a kill cut short is left out. */
  async rows(): Promise<MetricsRow[]> {
    const text = await readFile(this.path, 'utf8').catch((cause) => {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return ''
      throw fileError('read', this.path, cause)
    })
    return text.split('\n').flatMap((line) => {
      try {
        return line === '' ? [] : [JSON.parse(line) as MetricsRow]
      } catch {
        return []
      }
    })
  }

  /** Drops the rows of `stage` after step `step`. */
  async rewind(stage: string, step: number): Promise<void> {
    const kept = (await this.rows()).filter((row) => row.stage !== stage || row.step <= step)
    await writeFileAtomic(this.path, kept.map((row) => `${JSON.stringify(row)}\n`).join(''))
  }
}
