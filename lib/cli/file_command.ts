// The frame of a command that turns one file or folder into another: progress while it runs, signals that end it, and a
// summary at the end, for people or as JSON.
import { exitCodes } from './failure.js'
import { countText, durationText, grouped } from './format.js'
import { ProgressLine } from './progress_line.js'
import { StopSignals } from './stop_signals.js'
import { Terminal } from './terminal.js'

export interface FileCommand<Summary extends object> {
  flags: { quiet?: boolean; json?: boolean }
  /** Does it; `show` draws the progress line, `signal` ends it. */
  work(signal: AbortSignal, show: ProgressLine['show']): Promise<Summary>
  /** The summary as an object of one JSON line. */
  values(summary: Summary): object
  /** The summary for people. */
  print(summary: Summary, terminal: Terminal): void
}

/** Runs the command; the value is the exit code. */
export async function runFileCommand<Summary extends object>(command: FileCommand<Summary>): Promise<number> {
  const { quiet, json } = command.flags
  const terminal = new Terminal(process.stdout)
  const progress = new ProgressLine(terminal)
  const stopping = new StopSignals(() => {})
  try {
    const summary = await command.work(stopping.stop, (state) => {
      if (!quiet && !json) progress.show(state)
    })
    progress.clear()
    if (json) terminal.line(JSON.stringify(command.values(summary)))
    else if (!quiet) command.print(summary, terminal)
    return exitCodes.done
  } catch (error) {
    if (stopping.exitCode === undefined) throw error
    return stopping.exitCode
  } finally {
    progress.clear()
    stopping.release()
  }
}

/** Summary of a command whose model sees the tokens of rows. */
export function rowSummary(
  output: string,
): Pick<FileCommand<{ rows: number; tokens: number; seconds: number }>, 'values' | 'print'> {
  return {
    values: (summary) => ({ ...summary, output }),
    print({ rows, tokens, seconds }, terminal) {
      const rate = `${countText(Math.round(tokens / seconds))} tokens/s`
      terminal.line(
        `${grouped(rows)} rows, ${grouped(tokens)} tokens in ${durationText(seconds)} (${rate}) -> ${output}`,
      )
    },
  }
}
