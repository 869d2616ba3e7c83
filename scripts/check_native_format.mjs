// Native sources against .clang-format, where a clang-format is on PATH. It is no dependency of the project: its
// absence, or an old version that formats otherwise, is said and is no fault.
import { spawnSync } from 'node:child_process'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { report, rootFromArguments, sourceFiles } from './source_files.mjs'

const OLDEST = 14

/** The faults, or why they are not known. */
export function checkNativeFormat(root, command = 'clang-format') {
  const { stdout, error } = spawnSync(command, ['--version'], { encoding: 'utf8' })
  const version = Number(/version (\d+)/.exec(stdout ?? '')?.[1])
  if (error || !(version >= OLDEST)) {
    const found = error ? `no ${command} on PATH` : `${command} is version ${version || 'unknown'}`
    return {
      faults: [],
      unknown: `${found}, ${OLDEST} or newer is needed; the format of native sources is not checked`,
    }
  }
  const files = sourceFiles(root, ['native', 'test/native', 'bench/native'], ['.cc', '.h', '.cu'])
  const { stderr } = spawnSync(command, ['--dry-run', '--Werror', ...files], { cwd: root, encoding: 'utf8' })
  const places = [...(stderr ?? '').matchAll(/^(.+?:\d+):\d+: (?:error|warning): (.+?)(?: \[.*\])?$/gm)]
  return { faults: places.map(([, place, message]) => `${place}: ${message}`), unknown: undefined }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const root = rootFromArguments(process.argv, dirname(dirname(fileURLToPath(import.meta.url))))
  const { faults, unknown } = checkNativeFormat(root)
  if (unknown) console.log(unknown)
  else report('native format', faults)
}
