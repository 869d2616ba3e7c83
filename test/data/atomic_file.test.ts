import { createHash } from 'node:crypto'
import * as fs from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { type FileSystem, writeFileAtomic } from '../../lib/data/atomic_file.js'

let directory: string
let path: string

beforeEach(async () => {
  directory = await fs.mkdtemp(join(tmpdir(), 'caravan-atomic-'))
  path = join(directory, 'state.bin')
})
afterEach(() => fs.rm(directory, { recursive: true }))

type Fault = 'ENOSPC' | 'EIO' | 'short' | 'none'

/** A file system that counts its operations, logs them, and does `fault` at operation number `at`. */
function faultyFileSystem(at: number, fault: Fault) {
  const log: string[] = []
  const step = (name: string) => {
    log.push(name)
    if (log.length - 1 !== at || fault === 'none' || fault === 'short') return
    throw Object.assign(new Error(`${fault}: injected`), { code: fault })
  }
  const wrap = (handle: fs.FileHandle, label: string): fs.FileHandle =>
    new Proxy(handle, {
      get(target, key) {
        if (key === 'write') {
          return async (bytes: Uint8Array, offset: number, length: number) => {
            step('write')
            const shortened = log.length - 1 === at && fault === 'short' ? Math.min(3, length) : length
            return await target.write(bytes, offset, shortened)
          }
        }
        if (key === 'sync') {
          return async () => {
            step(`fsync ${label}`)
            await target.sync()
          }
        }
        const value = Reflect.get(target, key)
        return typeof value === 'function' ? value.bind(target) : value
      },
    })
  const fileSystem = {
    async open(name: string, flags: string) {
      const label = flags === 'r' ? 'folder' : 'file'
      step(`open ${label}`)
      return wrap(await fs.open(name, flags), label)
    },
    async rename(from: string, to: string) {
      step('rename')
      await fs.rename(from, to)
    },
    unlink: fs.unlink,
  } as FileSystem
  return { fileSystem, log }
}

describe('writeFileAtomic', () => {
  it('writes bytes, text and streamed pieces, and reports size and hash', async () => {
    const written = await writeFileAtomic(path, async (append) => {
      await append(Buffer.from('hello '))
      await append(Buffer.from('world'))
    })
    expect(await fs.readFile(path, 'utf8')).toBe('hello world')
    expect(written).toEqual({
      path,
      byteLength: 11,
      sha256: createHash('sha256').update('hello world').digest('hex'),
    })
    await writeFileAtomic(path, 'text ä')
    expect(await fs.readFile(path, 'utf8')).toBe('text ä')
    expect(await fs.readdir(directory)).toEqual(['state.bin'])
  })

  it('syncs the file, renames, then syncs the folder, in this order', async () => {
    const { fileSystem, log } = faultyFileSystem(-1, 'none')
    await writeFileAtomic(path, 'x', { fileSystem })
    expect(log).toEqual(['open file', 'write', 'fsync file', 'rename', 'open folder', 'fsync folder'])
  })

  it('survives ENOSPC and EIO at every operation: old or new content whole, a typed error, no temporary left', async () => {
    for (const fault of ['ENOSPC', 'EIO'] as const) {
      for (let at = 0; at < 6; at++) {
        await fs.writeFile(path, 'old')
        const { fileSystem, log } = faultyFileSystem(at, fault)
        const error = await writeFileAtomic(path, 'new content', { fileSystem }).catch((caught) => caught)
        expect(error, `operation ${at}`).toBeInstanceOf(CaravanError)
        expect(error.code).toBe('ERR_FILE')
        expect(error.details).toMatchObject({ errno: fault, path: expect.stringContaining(directory) })
        expect(error.hint).toBeTypeOf('string')
        const renamed = log.slice(0, at).includes('rename')
        expect(await fs.readFile(path, 'utf8')).toBe(renamed ? 'new content' : 'old')
        expect(await fs.readdir(directory)).toEqual(['state.bin'])
      }
    }
  })

  it('goes on after a short write', async () => {
    const { fileSystem, log } = faultyFileSystem(1, 'short')
    const written = await writeFileAtomic(path, 'a longer text', { fileSystem })
    expect(log.filter((name) => name === 'write')).toHaveLength(2)
    expect(await fs.readFile(path, 'utf8')).toBe('a longer text')
    expect(written.byteLength).toBe(13)
  })

  it('keeps the old file and passes the error on when the content fails', async () => {
    await fs.writeFile(path, 'old')
    const failing = writeFileAtomic(path, async (append) => {
      await append(Buffer.from('half'))
      throw new RangeError('no more')
    })
    await expect(failing).rejects.toThrow(new RangeError('no more'))
    expect(await fs.readFile(path, 'utf8')).toBe('old')
    expect(await fs.readdir(directory)).toEqual(['state.bin'])
  })

  it('names path, operation and errno when the folder is missing', async () => {
    const missing = join(directory, 'none', 'state.bin')
    const error = await writeFileAtomic(missing, 'x').catch((caught) => caught)
    expect(error).toMatchObject({ code: 'ERR_FILE', details: { operation: 'create', errno: 'ENOENT' } })
    expect(error.message).toContain(join(directory, 'none'))
  })

  it('does not trip over the temporary of a dead process, nor over a second write at the same time', async () => {
    const stale = `.state.bin.tmp-${process.pid}-0-0`
    await fs.writeFile(join(directory, stale), 'left behind')
    await Promise.all(['first', 'other'].map((text) => writeFileAtomic(path, text)))
    expect(['first', 'other']).toContain(await fs.readFile(path, 'utf8'))
    expect((await fs.readdir(directory)).sort()).toEqual([stale, 'state.bin'])
  })
})
