// The file operations of a save, counted, one of them failing: the means to try every operation in turn.
import * as real from 'node:fs/promises'
import type { CheckpointFileSystem } from '../../lib/train/checkpoint.js'

export type Failure = 'ENOSPC' | 'EIO' | 'EDQUOT' | 'short write'

export interface FailingFileSystem extends CheckpointFileSystem {
  /** Operations so far, in order, as `write model.safetensors`. */
  readonly operations: string[]
}

/** Fails operation number `at` (from 0), or all from there on when `sticky`. Without `at` it only counts. */
export function failingFileSystem({ at = -1, failure = 'ENOSPC' as Failure, sticky = false } = {}): FailingFileSystem {
  const operations: string[] = []
  const meet = (operation: string, path: string): boolean => {
    const index = operations.length
    operations.push(`${operation} ${path.split('/').at(-1)}`)
    if (at < 0 || (sticky ? index < at : index !== at)) return false
    if (failure === 'short write' && operation === 'write') return true
    const errno = failure === 'short write' ? 'EIO' : failure
    throw Object.assign(new Error(`${errno}: injected, ${operation}`), { code: errno })
  }
  const wrapped = (handle: real.FileHandle, path: string): real.FileHandle =>
    new Proxy(handle, {
      get(target, key) {
        if (key === 'write') {
          return async (bytes: Uint8Array, offset: number, length: number) => {
            // A disk that fills up takes a part first, and nothing the next time.
            const short = meet('write', path)
            return short
              ? await target.write(bytes, offset, Math.floor(length / 2))
              : await target.write(bytes, offset, length)
          }
        }
        if (key === 'sync') {
          // Not carried out: a running process cannot see the difference, and it is slow.
          return async () => {
            meet('fsync', path)
          }
        }
        if (key === 'close') {
          return async () => {
            // The descriptor is gone even where close reports an error.
            await target.close()
            meet('close', path)
          }
        }
        const value = Reflect.get(target, key) as unknown
        return typeof value === 'function' ? value.bind(target) : value
      },
    })
  return {
    operations,
    open: (async (path: string, flags: string) => {
      meet('open', path)
      return wrapped(await real.open(path, flags), path)
    }) as CheckpointFileSystem['open'],
    rename: async (from, to) => {
      meet('rename', String(to))
      await real.rename(from, to)
    },
    unlink: async (path) => {
      meet('unlink', String(path))
      await real.unlink(path)
    },
    mkdir: (async (path: string, options: { recursive: boolean }) => {
      meet('mkdir', path)
      return await real.mkdir(path, options)
    }) as CheckpointFileSystem['mkdir'],
    rm: async (path, options) => {
      meet('rm', String(path))
      await real.rm(path, options)
    },
    readdir: (async (path: string) => {
      meet('readdir', path)
      return await real.readdir(path)
    }) as unknown as CheckpointFileSystem['readdir'],
  }
}
