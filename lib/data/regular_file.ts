// Opening and reading files that come from outside: never waits on a FIFO or a device, never returns fewer bytes than
// were asked for.
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { CaravanError } from '../base/errors.js'
import { fileError } from './atomic_file.js'

/** Opens `path` for reading; ERR_FILE when the system refuses, ERR_FORMAT when it is not a regular file. */
export async function openRegularFile(path: string): Promise<{ handle: FileHandle; size: number; mtimeMs: number }> {
  if (path.includes('\0')) throw notRegular(path, 'the path holds a NUL')
  let handle: FileHandle
  try {
    handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (error) {
    throw fileError('open', path, error)
  }
  try {
    const status = await handle.stat()
    if (status.isFile()) return { handle, size: status.size, mtimeMs: status.mtimeMs }
    throw notRegular(path, 'not a regular file')
  } catch (error) {
    await handle.close()
    throw fileError('stat', path, error)
  }
}

/** The bytes `at .. at + length` of an open file; ERR_FORMAT with the offset where it ends too early. */
export async function readExactly(
  handle: FileHandle,
  path: string,
  range: { at: number; length: number },
): Promise<Buffer<ArrayBuffer>> {
  const bytes = Buffer.allocUnsafeSlow(range.length)
  let done = 0
  while (done < range.length) {
    const chunk = Math.min(range.length - done, 2 ** 30)
    const { bytesRead } = await handle.read(bytes, done, chunk, range.at + done).catch((error) => {
      throw fileError('read', path, error)
    })
    if (bytesRead === 0) throw truncated(path, range.at + done, range.at + range.length)
    done += bytesRead
  }
  return bytes
}

/** ERR_FORMAT: the file ends at `offset` but should have had `wanted` bytes. */
export function truncated(path: string, offset: number, wanted: number): CaravanError {
  return new CaravanError('ERR_FORMAT', `${path}: byte ${offset}: the file ends here; expected ${wanted} bytes`, {
    details: { file: path, offset, wanted },
    hint: 'the file is incomplete: copy or download it again',
  })
}

function notRegular(path: string, why: string): CaravanError {
  return new CaravanError('ERR_FORMAT', `${path}: byte 0: ${why}`, { details: { file: path, offset: 0 } })
}
