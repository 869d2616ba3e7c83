// A verifier that does not belong to the package: a module of the user's that exports `verifier`. It is named by its
// path, wherever a verifier is named. Importing it runs it, so the pool does that in a process that can be ended.
import { stat } from 'node:fs/promises'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { CaravanError } from '../base/errors.js'
import { findVerifier } from './registry.js'
import type { Verifier } from './verifier.js'

const EXPECTED = 'a module that exports `verifier`, an object { name, summary, verify(input) }'

/** Whether this names a module rather than a verifier of the package: it has a path separator, or ends as code does. */
export function isVerifierPath(name: string): boolean {
  return /[/\\]|\.[cm]?[jt]s$/.test(name)
}

/** The name as other processes understand it: paths absolute. ERR_CONFIG for an unknown verifier of the package. */
export function resolveVerifierName(name: string): string {
  return isVerifierPath(name) ? resolve(name) : findVerifier(name).name
}

/** The verifier of this name, ready for its first verdict. Errors as those of `loadVerifier`. */
export async function preparedVerifier(name: string): Promise<Verifier> {
  const verifier = await loadVerifier(name)
  if (!isVerifierPath(name)) {
    verifier.prepare?.()
    return verifier
  }
  try {
    verifier.prepare?.()
  } catch (cause) {
    throw moduleFault(resolve(name), `its \`prepare\` failed: ${cause instanceof Error ? cause.message : cause}`, cause)
  }
  return verifier
}

/**
 * The verifier of this name, or the one that the module at this path exports; that is run in this thread, without a
 * bound on its time. ERR_CONFIG where there is none.
 */
export async function loadVerifier(name: string): Promise<Verifier> {
  if (!isVerifierPath(name)) return findVerifier(name)
  const path = resolve(name)
  await checkFile(path)
  const exports = await importModule(path)
  if (!('verifier' in exports)) {
    const names = Object.keys(exports).join(', ') || 'nothing'
    throw moduleFault(path, `it exports ${names}, but no \`verifier\``)
  }
  return checkedVerifier(path, exports.verifier)
}

async function checkFile(path: string): Promise<void> {
  let isFile = false
  try {
    isFile = (await stat(path)).isFile()
  } catch (cause) {
    throw moduleFault(path, (cause as NodeJS.ErrnoException).code === 'ENOENT' ? 'there is no such file' : `${cause}`)
  }
  if (!isFile) throw moduleFault(path, 'it is not a file')
  // `features.typescript` came with the support; the types of older versions do not know it.
  const { typescript } = process.features as { typescript?: unknown }
  if (/\.[cm]?ts$/.test(path) && !typescript) {
    throw moduleFault(path, `Node ${process.version} does not run TypeScript, which takes 22.18 or later`)
  }
}

async function importModule(path: string): Promise<Record<string, unknown>> {
  try {
    return (await import(pathToFileURL(path).href)) as Record<string, unknown>
  } catch (cause) {
    const message = cause instanceof Error ? `${cause.name}: ${cause.message}` : String(cause)
    throw moduleFault(path, `it does not load: ${message}`, cause)
  }
}

function checkedVerifier(path: string, value: unknown): Verifier {
  const fault = (what: string, got: unknown) => moduleFault(path, `${what}; got ${shown(got)}`)
  if (typeof value !== 'object' || value === null) throw fault('its `verifier` must be an object', value)
  const { name, summary, prepare, verify } = value as Partial<Record<keyof Verifier, unknown>>
  if (typeof name !== 'string' || name === '') throw fault('`verifier.name` must be text', name)
  if (typeof summary !== 'string') throw fault('`verifier.summary` must be text', summary)
  if (prepare !== undefined && typeof prepare !== 'function') {
    throw fault('`verifier.prepare` must be a function, if there is one', prepare)
  }
  if (typeof verify !== 'function') throw fault('`verifier.verify` must be a function', verify)
  if (verify.constructor.name === 'AsyncFunction') {
    throw fault('`verifier.verify` must return its verdict, not a promise of one', verify)
  }
  return value as Verifier
}

function shown(value: unknown): string {
  if (value === undefined || value === null) return String(value)
  if (typeof value !== 'function') return typeof value === 'object' ? 'an object' : JSON.stringify(value)
  return value.constructor.name === 'AsyncFunction' ? 'an async function' : 'a function'
}

/** ERR_CONFIG for the module at `path`, saying what was expected of it. */
function moduleFault(path: string, what: string, cause?: unknown): CaravanError {
  return new CaravanError('ERR_CONFIG', `verifier ${path}: ${what}; expected ${EXPECTED}`, {
    details: { verifier: path },
    hint: 'a path is relative to the working directory; docs/verifiers.md has an example',
    cause,
  })
}
