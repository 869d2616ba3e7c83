// Runs a script of test/*/children in a process of its own, for what may end a process.
import { type ChildProcess, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

export interface Finished {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

/** Runs `script` (a path below test/) to its end. */
export async function runChild(
  script: string,
  args: readonly string[] = [],
  options: { env?: NodeJS.ProcessEnv; started?: (child: ChildProcess) => void } = {},
): Promise<Finished> {
  const path = fileURLToPath(new URL(`../${script}`, import.meta.url))
  const child = spawn(process.execPath, [path, ...args], { env: { ...process.env, ...options.env } })
  options.started?.(child)
  const text = { stdout: '', stderr: '' }
  child.stdout.on('data', (chunk) => {
    text.stdout += chunk
  })
  child.stderr.on('data', (chunk) => {
    text.stderr += chunk
  })
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ code, signal, ...text }))
  })
}
