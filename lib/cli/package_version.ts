// The version of the package, as its manifest has it.
import { readFileSync } from 'node:fs'

export function packageVersion(): string {
  const manifest = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
  return (manifest as { version: string }).version
}
