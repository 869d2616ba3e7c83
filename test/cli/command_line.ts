// Runs the built command line as a user does: a process of its own, its output as text, its exit code.
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll } from 'vitest'

const repository = fileURLToPath(new URL('../../', import.meta.url))
export const goldenFolder = join(repository, 'test/golden')

export interface CommandResult {
  exitCode: number
  stdout: string
  stderr: string
}

export interface CommandOptions {
  environment?: { [name: string]: string | undefined }
  /** Called with the process and what it has printed so far. */
  onOutput?: (child: ChildProcess, stdout: string) => void
  /** `train.js` in place of the command line itself. */
  script?: string
  directory?: string
}

/** Runs `caravan ...words`. */
export function caravan(words: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
  const script = join(repository, options.script ?? 'dist/cli/main.js')
  const env = { ...process.env, FORCE_COLOR: undefined, NO_COLOR: undefined, CARAVAN_DEBUG: undefined, CI: undefined }
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [script, ...words], {
      cwd: options.directory ?? repository,
      env: { ...env, ...options.environment },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let [stdout, stderr] = ['', '']
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
      options.onOutput?.(child, stdout)
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
    })
    child.on('error', reject)
    child.on('close', (code, signal) => {
      if (signal) reject(new Error(`ended by ${signal}; stderr: ${stderr}`))
      else resolve({ exitCode: code ?? -1, stdout, stderr })
    })
  })
}

/** A folder that is removed after the tests of the file. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'caravan-cli-'))
  afterAll(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Writes rows as JSON lines and returns the path. */
export function writeRows(folder: string, name: string, rows: readonly unknown[]): string {
  const path = join(folder, name)
  writeFileSync(path, rows.map((row) => `${typeof row === 'string' ? row : JSON.stringify(row)}\n`).join(''))
  return path
}

export function jsonLines(text: string): { [key: string]: unknown }[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as { [key: string]: unknown })
}
