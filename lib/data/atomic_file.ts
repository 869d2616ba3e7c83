// Writes a file so that a reader sees the old content or the new, whole: temporary beside it, fsync, rename, directory
// fsync. After a failed fsync the descriptor is never retried: the kernel may have dropped the pages and report
// success.
import { createHash } from 'node:crypto'
import * as nodeFileSystem from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { CaravanError } from '../base/errors.js'

/** The part of node:fs/promises that writing needs; tests put a failing one in its place. */
export type FileSystem = Pick<typeof nodeFileSystem, 'open' | 'rename' | 'unlink'>

export interface AtomicWriteOptions {
  fileSystem?: FileSystem
}

/** What was written: size and SHA-256 (hex) of the whole file. */
export interface WrittenFile {
  path: string
  byteLength: number
  sha256: string
}

/** Appends bytes to the file under way; resolves when all of them are with the operating system. */
export type AppendBytes = (bytes: Uint8Array) => Promise<void>

const HINTS: Record<string, string> = {
  ENOSPC: 'free space on this file system, or write somewhere else',
  EDQUOT: 'the disk quota is used up: delete files, or write somewhere else',
  EACCES: 'check the permissions of the file and its folder',
  EPERM: 'check the permissions of the file and its folder',
  EROFS: 'the file system is mounted read-only: write somewhere else',
  ENOENT: 'check the path: the file or its folder does not exist',
  ENOTDIR: 'check the path: one of its parts is a file, not a folder',
  EISDIR: 'the path is a folder where a file is expected',
  EMFILE: 'too many files are open: raise `ulimit -n`',
  EIO: 'the disk reports a hardware error: check the system log',
  ELOOP: 'the path is a symbolic link, or a chain of them, that cannot be followed here',
}

/** The operating system's refusal as ERR_FILE; details: path, operation, errno (a name such as ENOSPC). */
export function fileError(operation: string, path: string, cause: unknown): CaravanError {
  if (cause instanceof CaravanError) return cause
  const errno = (cause as NodeJS.ErrnoException | undefined)?.code ?? 'UNKNOWN'
  const reason = cause instanceof Error ? cause.message : String(cause)
  return new CaravanError('ERR_FILE', `${path}: ${operation} failed with ${errno}: ${reason}`, {
    details: { path, operation, errno },
    hint: HINTS[errno],
    cause,
  })
}

/**
 * Replaces `path` by what `content` gives (bytes, text, or a function that appends piece by piece), atomically and
 * durably. On any failure the old file is untouched, the temporary is removed, and ERR_FILE (or what `content` threw)
 * is thrown. A symbolic link at `path` is replaced, not followed.
 */
export async function writeFileAtomic(
  path: string,
  content: Uint8Array | string | ((append: AppendBytes) => Promise<void>),
  options: AtomicWriteOptions = {},
): Promise<WrittenFile> {
  const fileSystem = options.fileSystem ?? nodeFileSystem
  const { handle, temporary } = await openTemporary(path, fileSystem)
  const hash = createHash('sha256')
  let byteLength = 0
  const append: AppendBytes = async (bytes) => {
    await writeFully(handle, bytes, temporary)
    hash.update(bytes)
    byteLength += bytes.byteLength
  }
  try {
    try {
      if (typeof content === 'function') await content(append)
      else await append(typeof content === 'string' ? Buffer.from(content) : content)
      await attempt('fsync', temporary, () => handle.sync())
    } finally {
      await attempt('close', temporary, () => handle.close())
    }
    await attempt('rename', path, () => fileSystem.rename(temporary, path))
  } catch (error) {
    await fileSystem.unlink(temporary).catch(() => {}) // the first error is the one to report
    throw error
  }
  await syncDirectory(dirname(path), { fileSystem })
  return { path, byteLength, sha256: hash.digest('hex') }
}

/** Makes the names inside `directory` durable; ERR_FILE when the file system refuses. */
export async function syncDirectory(directory: string, options: AtomicWriteOptions = {}): Promise<void> {
  const fileSystem = options.fileSystem ?? nodeFileSystem
  const handle = await attempt('open', directory, () => fileSystem.open(directory, 'r'))
  try {
    await handle.sync()
  } catch (error) {
    // Some network and FUSE file systems cannot sync a directory; they order renames themselves.
    const errno = (error as NodeJS.ErrnoException).code
    if (errno !== 'EINVAL' && errno !== 'ENOTSUP') throw fileError('fsync of folder', directory, error)
  } finally {
    await handle.close()
  }
}

type Handle = nodeFileSystem.FileHandle

async function openTemporary(path: string, fileSystem: FileSystem): Promise<{ handle: Handle; temporary: string }> {
  const { threadId } = process.getBuiltinModule('node:worker_threads') // Loaded when it is needed: it takes long.
  const stem = `.${basename(path)}.tmp-${process.pid}-${threadId}`
  for (let attemptNumber = 0; ; attemptNumber++) {
    const temporary = join(dirname(path), `${stem}-${attemptNumber}`)
    try {
      return { handle: await fileSystem.open(temporary, 'wx'), temporary }
    } catch (error) {
      // A name left by a dead process with the same id, or one in use by another write of this process.
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST' || attemptNumber >= 1000) {
        throw fileError('create', temporary, error)
      }
    }
  }
}

async function writeFully(handle: Handle, bytes: Uint8Array, path: string): Promise<void> {
  let done = 0
  while (done < bytes.byteLength) {
    const { bytesWritten } = await attempt('write', path, () => handle.write(bytes, done, bytes.byteLength - done))
    if (bytesWritten === 0) {
      throw new CaravanError('ERR_FILE', `${path}: write stopped after ${done} of ${bytes.byteLength} bytes`, {
        details: { path, operation: 'write', errno: 'ESHORT' },
        hint: HINTS.ENOSPC,
      })
    }
    done += bytesWritten
  }
}

async function attempt<T>(operation: string, path: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action()
  } catch (error) {
    throw fileError(operation, path, error)
  }
}
