// How a command ends. Exit codes: 0 done, 1 the work failed, 2 the command line or a setting is wrong, 128 + n stopped
// by signal n. What went wrong and what to do is for the user; a stack is for us, and shown only when asked for.
import { CaravanError } from '../base/errors.js'
import type { Terminal } from './terminal.js'

export const exitCodes = { done: 0, failed: 1, usage: 2 } as const

/** The exit code for an error that ended a command. */
export function exitCodeOf(error: unknown): number {
  const isUsage = error instanceof CaravanError && (error.code === 'ERR_USAGE' || error.code === 'ERR_CONFIG')
  return isUsage ? exitCodes.usage : exitCodes.failed
}

/** Prints `error`: message, code and hint; for anything but a CaravanError that it is a fault of ours. */
export function printFailure(error: unknown, terminal: Terminal, environment = process.env): void {
  const { red, dim, bold, cyan } = terminal.color
  const debug = environment.CARAVAN_DEBUG === '1'
  if (error instanceof CaravanError) {
    terminal.line(`${red(bold('error:'))} ${error.message} ${dim(`[${error.code}]`)}`)
    if (error.hint) terminal.line(`${cyan('hint:')} ${error.hint}`)
  } else {
    const message = error instanceof Error ? error.message : String(error)
    terminal.line(`${red(bold('error:'))} ${message}`)
    terminal.line(
      `${cyan('hint:')} this is a bug in caravan, please report it${debug ? '' : '; CARAVAN_DEBUG=1 shows where'}`,
    )
  }
  if (debug && error instanceof Error) terminal.line(dim(debugText(error)))
}

function debugText(error: Error): string {
  const cause = error.cause instanceof Error ? `\ncaused by ${debugText(error.cause)}` : ''
  const details = error instanceof CaravanError ? `\ndetails: ${JSON.stringify(error.details)}` : ''
  return `${error.stack ?? error.message}${details}${cause}`
}

/** An error as a line of a JSON stream. */
export function failureEvent(error: unknown): object {
  if (error instanceof CaravanError) {
    const { code, message, hint, details } = error
    return { type: 'error', code, message, hint, details }
  }
  return { type: 'error', code: 'ERR_INTERNAL', message: error instanceof Error ? error.message : String(error) }
}
