import { existsSync } from 'node:fs'
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { makeFolder } from '../../lib/base/make_folder.js'

let root: string
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'caravan-folder-'))
})
afterAll(() => rm(root, { recursive: true }))

it('makes a folder and those above it, and is content with one that is there', async () => {
  const path = join(root, 'a', 'b', 'c')
  await makeFolder(path)
  await makeFolder(path)
  expect((await stat(path)).isDirectory()).toBe(true)
})

it('refuses a path through a file, and a file in the place of the folder', async () => {
  await writeFile(join(root, 'file'), '')
  await expect(makeFolder(join(root, 'file'))).rejects.toMatchObject({ code: 'EEXIST' })
  await expect(makeFolder(join(root, 'file', 'below'))).rejects.toMatchObject({ code: 'ENOTDIR' })
})

it.skipIf(!existsSync('/proc/self'))(
  'gives up where the file system says that a parent is not there though it is',
  async () => {
    await expect(makeFolder('/proc/no-such-folder')).rejects.toMatchObject({ code: 'ENOENT' })
  },
)
