#!/usr/bin/env node
// The command line. Everything it can do is a call into the library; what is here is reading options, showing events
// and choosing the exit code.
import { realpathSync } from 'node:fs'
import module from 'node:module'
import { fileURLToPath } from 'node:url'
import { CommanderError } from 'commander'
import { CaravanError } from '../base/errors.js'
import { exitCodeOf, exitCodes, failureEvent, printFailure } from './failure.js'
import { createProgram } from './program.js'
import { type OutputStream, Terminal } from './terminal.js'

/** Runs the command line `argv` (without node and script) and sets the exit code of the process. Never throws. */
export async function main(argv: readonly string[] = process.argv.slice(2)): Promise<void> {
  survivePipe(process.stdout)
  survivePipe(process.stderr)
  process.on('uncaughtException', (error) => {
    printFailure(error, new Terminal(process.stderr))
    process.exit(exitCodes.failed)
  })
  process.exitCode = await execute(argv, process)
}

/** Runs `argv`, writes a failure to the streams, and returns the exit code. */
export async function execute(
  argv: readonly string[],
  streams: { stdout: OutputStream; stderr: OutputStream },
): Promise<number> {
  try {
    return await runCommand(argv)
  } catch (error) {
    if (argv.includes('--json')) streams.stdout.write(`${JSON.stringify(failureEvent(error))}\n`)
    printFailure(error, new Terminal(streams.stderr))
    return exitCodeOf(error)
  }
}

async function runCommand(argv: readonly string[]): Promise<number> {
  let exitCode: number = exitCodes.done
  const program = createProgram((code) => {
    exitCode = code
  })
  try {
    await program.parseAsync([...argv], { from: 'user' })
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    if (error.exitCode === 0) return exitCodes.done // --help and --version
    throw usageError(error, argv)
  }
  return exitCode
}

/** A fault that commander found, in our words: "unknown option '--recpie'" with "did you mean" as the hint. */
function usageError(error: CommanderError, argv: readonly string[]): CaravanError {
  const message = error.message.replace(/^error: /, '')
  const suggestion = /\n\(Did you mean (.+?)\?\)/.exec(message)?.[1]
  const command = argv.find((word) => !word.startsWith('-'))
  const help = `run \`caravan ${command && error.code !== 'commander.unknownCommand' ? `${command} ` : ''}--help\``
  const [first] = message.split('\n')
  const isHelpShown = error.code === 'commander.help'
  return new CaravanError('ERR_USAGE', isHelpShown ? 'a command is needed' : first!, {
    hint: suggestion ? `did you mean ${suggestion}?` : `${help} for what there is`,
  })
}

/** A reader that goes away (`| head`) must not end a run; what is written after that is lost, and that is its wish. */
function survivePipe(stream: NodeJS.WriteStream): void {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
  })
}

/** Has Node keep what it compiles of a command's code (from 22.1 on), which saves a later start some 40 ms. */
function keepCompiled(): void {
  const { enableCompileCache } = module as { enableCompileCache?: () => unknown }
  enableCompileCache?.()
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  keepCompiled()
  await main()
}
