// Names that a file gives for other files, held inside the folder they belong to: compared by real path, after links.
import { realpath, stat } from 'node:fs/promises'
import { basename, dirname, join, sep } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { fileError } from './atomic_file.js'
import { quote } from './json_scanner.js'

/**
 * The path of `name` (a relative path that `referrer` gives) inside `directory`; ERR_PATH_ESCAPE when it leaves it,
 * also through a link. A link may leave the folder in one case, the layout of the Hugging Face cache:
 * `models--x/snapshots/<revision>/file -> ../../blobs/<hash>`.
 */
export async function pathInside(directory: string, name: string, referrer: string): Promise<string> {
  const parts = name.split('/')
  const bad = name.includes('\\') || name.includes('\0') || parts.some((part) => part === '' || /^\.\.?$/.test(part))
  if (bad) throw pathEscape(referrer, name, 'must be a plain relative path')
  const path = join(directory, name)
  try {
    const root = await realpath(directory)
    const target = await realpath(path)
    const blobs = join(dirname(dirname(root)), 'blobs')
    const inCache = basename(dirname(root)) === 'snapshots' && target.startsWith(blobs + sep)
    if (target.startsWith(root + sep) || inCache) return path
    throw pathEscape(referrer, name, 'is a link to a file outside the folder')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return path
    throw fileError('resolve', path, error)
  }
}

/** True when there is something at `path`; ERR_FILE when the system will not say. */
export async function exists(path: string): Promise<boolean> {
  try {
    await stat(path)
    return true
  } catch (error) {
    const errno = (error as NodeJS.ErrnoException).code
    if (errno === 'ENOENT' || errno === 'ENOTDIR') return false
    throw fileError('stat', path, error)
  }
}

function pathEscape(referrer: string, name: string, why: string): CaravanError {
  return new CaravanError('ERR_PATH_ESCAPE', `${referrer}: the file name ${quote(name)} ${why}`, {
    details: { file: referrer, name },
    hint: 'a folder may refer only to its own files: put a copy of the file into the folder',
  })
}
