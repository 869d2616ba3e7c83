// Entry of the child process that decodes parquet. A process and not a thread: run lengths inside the pages can claim
// any number of values, and V8 answers an exhausted heap by aborting the process, also when a worker thread exhausts
// its own.
import { type AsyncBuffer, type Compressors, parquetMetadataAsync, parquetReadObjects } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'
import { CaravanError } from '../base/errors.js'
import { openRegularFile, readExactly } from './regular_file.js'

/** What the parent asks. `rows` asks for the next rows of the open file. */
export type ParquetRequest =
  | { kind: 'open'; file: string; maxGroupBytes: number; maxBatchRows: number }
  | { kind: 'rows' }

/** What the child answers, one answer for each request. */
export type ParquetReply =
  | { kind: 'opened'; rowCount: number; rowGroups: number }
  | { kind: 'rows'; rows: Record<string, unknown>[]; rowGroup: number; firstRow: number }
  | { kind: 'end' }
  | { kind: 'error'; code: CaravanError['code']; message: string; hint?: string; details: Record<string, unknown> }

type OpenRequest = Extract<ParquetRequest, { kind: 'open' }>
type RowsReply = Extract<ParquetReply, { kind: 'rows' }>

/** Bytes that pages of one row group may still expand to. */
interface Budget {
  left: number
}

class OpenParquet {
  #place: { rowGroup?: number } = {}

  private constructor(
    readonly request: OpenRequest,
    readonly rowCounts: number[],
    readonly rows: AsyncGenerator<RowsReply>,
  ) {}

  static async open(request: OpenRequest): Promise<OpenParquet> {
    const { file } = request
    const { handle, size } = await openRegularFile(file)
    const place: { rowGroup?: number } = {}
    try {
      const buffer = await checkedBuffer(file, handle, size)
      const metadata = await parquetMetadataAsync(buffer, { geoparquet: false })
      const rowCounts = metadata.row_groups.map((group) => Number(group.num_rows))
      if (rowCounts.some((count) => !Number.isSafeInteger(count) || count < 0)) {
        throw new Error('a row group has an impossible number of rows')
      }
      const source = { request, buffer, metadata, rowCounts, place }
      const opened = new OpenParquet(
        request,
        rowCounts,
        decodeGroups(source, () => handle.close()),
      )
      opened.#place = place
      return opened
    } catch (error) {
      await handle.close()
      throw damaged(file, place, error)
    }
  }

  async next(): Promise<ParquetReply> {
    try {
      const { value, done } = await this.rows.next()
      return done ? { kind: 'end' } : value
    } catch (error) {
      throw damaged(this.request.file, this.#place, error)
    }
  }
}

/** Access by byte ranges that stay inside the file. */
async function checkedBuffer(
  file: string,
  handle: Parameters<typeof readExactly>[0],
  size: number,
): Promise<AsyncBuffer> {
  if (size < 12) throw new Error('too short to be a parquet file')
  const magic = await readExactly(handle, file, { at: 0, length: 4 })
  if (magic.toString('latin1') !== 'PAR1') throw new Error('it does not begin with PAR1')
  return {
    byteLength: size,
    async slice(start, end = size) {
      if (!Number.isSafeInteger(start) || !Number.isSafeInteger(end) || start < 0 || end < start || end > size) {
        throw new Error(`a column chunk at bytes ${start} to ${end} lies outside the file of ${size} bytes`)
      }
      const bytes = await readExactly(handle, file, { at: start, length: end - start })
      return bytes.buffer
    },
  }
}

interface GroupSource {
  request: OpenRequest
  buffer: AsyncBuffer
  metadata: Awaited<ReturnType<typeof parquetMetadataAsync>>
  rowCounts: number[]
  place: { rowGroup?: number }
}

async function* decodeGroups(source: GroupSource, close: () => Promise<void>): AsyncGenerator<RowsReply> {
  const { request, buffer, metadata, rowCounts, place } = source
  try {
    let rowStart = 0
    for (const [rowGroup, count] of rowCounts.entries()) {
      place.rowGroup = rowGroup
      const options = {
        file: buffer,
        metadata,
        rowStart,
        rowEnd: rowStart + count,
        compressors: boundedCompressors({ left: request.maxGroupBytes }),
      }
      const rows = count === 0 ? [] : await parquetReadObjects(options)
      if (rows.length !== count) throw new Error(`the row group has ${rows.length} rows; its header says ${count}`)
      for (let at = 0; at < count; at += request.maxBatchRows) {
        yield { kind: 'rows', rows: rows.slice(at, at + request.maxBatchRows), rowGroup, firstRow: rowStart + at }
      }
      rowStart += count
    }
  } finally {
    await close()
  }
}

/** The decompressors, each held to the size that the page header states and to what is left of the group's budget. */
function boundedCompressors(budget: Budget): Compressors {
  const bounded: Compressors = {}
  for (const [codec, decompress] of Object.entries(compressors) as [keyof Compressors, DecompressPage][]) {
    bounded[codec] = (input, outputLength) => {
      budget.left -= outputLength
      if (!(outputLength >= 0 && budget.left >= 0)) throw new Error('the pages expand to more than the memory budget')
      return decompress(input, outputLength)
    }
  }
  return bounded
}

type DecompressPage = (input: Uint8Array, outputLength: number) => Uint8Array

function damaged(file: string, place: { rowGroup?: number }, cause: unknown): CaravanError {
  if (cause instanceof CaravanError) return cause
  const reason = cause instanceof Error ? cause.message : String(cause)
  const where = place.rowGroup === undefined ? 'footer' : `row group ${place.rowGroup}`
  return new CaravanError('ERR_FORMAT', `${file}: ${where}: not a readable parquet file: ${reason}`, {
    details: { file, ...place, part: where },
    hint: 'the file is damaged, incomplete or not parquet: copy or download it again',
  })
}

let current: OpenParquet | undefined

async function answer(request: ParquetRequest): Promise<ParquetReply> {
  try {
    if (request.kind === 'rows') return current === undefined ? { kind: 'end' } : await current.next()
    await current?.rows.return(undefined)
    current = await OpenParquet.open(request)
    const { rowCounts } = current
    return { kind: 'opened', rowCount: rowCounts.reduce((sum, n) => sum + n, 0), rowGroups: rowCounts.length }
  } catch (error) {
    const { code, message, hint, details } = error as CaravanError
    return { kind: 'error', code, message, hint, details }
  }
}

process.on('message', async (request: ParquetRequest) => {
  const reply = await answer(request)
  process.send?.(reply)
})
process.on('disconnect', () => process.exit(0))
