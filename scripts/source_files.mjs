// The source files of the project, for the checks, and how their findings are printed.
import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'

const skipped = new Set(['node_modules', 'dist', 'build', 'golden', '.git'])

/** Paths, relative to `root`, of the files below its folders `folders` that end in one of `extensions`. */
export function sourceFiles(root, folders, extensions) {
  const found = []
  const visit = (folder) => {
    let entries = []
    try {
      entries = readdirSync(folder, { withFileTypes: true })
    } catch {
      return // a folder is created when its first file is needed
    }
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const path = join(folder, entry.name)
      if (entry.isDirectory()) {
        if (!skipped.has(entry.name)) visit(path)
      } else if (extensions.some((extension) => entry.name.endsWith(extension))) found.push(relative(root, path))
    }
  }
  for (const folder of folders) visit(join(root, folder))
  return found
}

export function readSource(root, file) {
  return readFileSync(join(root, file), 'utf8')
}

/** The value of `--root DIR`, else the folder above this one. */
export function rootFromArguments(argv, fallback) {
  const at = argv.indexOf('--root')
  return at >= 0 ? argv[at + 1] : fallback
}

/** Prints findings and sets the exit code. */
export function report(name, faults) {
  for (const fault of faults) console.error(fault)
  if (faults.length > 0) process.exitCode = 1
  console.log(`${name}: ${faults.length === 0 ? 'ok' : `${faults.length} fault${faults.length > 1 ? 's' : ''}`}`)
}
