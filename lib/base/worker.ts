// Where a worker's compiled entry file lies. From a build that is beside the caller; when the TypeScript sources run
// directly (tests) it is the same path under dist/.
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/** URL of the compiled worker `relative` (ends in .js), seen from the module `moduleUrl`. */
export function workerUrl(moduleUrl: string, relative: string): URL {
  const beside = new URL(relative, moduleUrl)
  if (existsSync(fileURLToPath(beside))) return beside
  return new URL(beside.href.replace(/\/lib\/(?!.*\/lib\/)/, '/dist/'))
}
