// Makes a folder and the folders above it. Node's own recursive mkdir goes round for ever, at full speed, where a file
// system says "no such file" for a folder that cannot be made (Linux's /proc), so this one goes up by itself.
import { mkdir, stat } from 'node:fs/promises'
import { dirname } from 'node:path'

/** Makes `path` with its parents; a folder that is there already is fine. Throws the operating system's error. */
export async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EEXIST' && (await stat(path)).isDirectory()) return
    const parent = dirname(path)
    if (code !== 'ENOENT' || parent === path) throw error
    const parentIsThere = await stat(parent).then(
      () => true,
      () => false,
    )
    if (parentIsThere) throw error
    await makeFolder(parent)
    await mkdir(path)
  }
}
