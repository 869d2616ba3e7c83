// `caravan verify`: scores given completions with a verifier, as training with verifiable rewards does. No model is
// loaded. A row that the verifier cannot use ends the command; a completion, whatever it says, never does.
import { CaravanError, throwIfAborted } from '../base/errors.js'
import { writeFileAtomic } from '../data/atomic_file.js'
import { type JsonObject, readJsonLines } from '../data/json_lines.js'
import { findVerifier } from '../verify/registry.js'
import { guardedVerify, type Verdict, type Verifier, type VerifyInput } from '../verify/verifier.js'
import { runFileCommand } from './file_command.js'
import { durationText, grouped, percentText } from './format.js'
import type { Terminal } from './terminal.js'

export interface VerifyFlags {
  verifier: string
  input: string
  output: string
  quiet?: boolean
  json?: boolean
}

/** What came out, over all rows. */
export interface VerifySummary {
  rows: number
  /** Rows with the full score. */
  accepted: number
  scoreSum: number
  seconds: number
  /** For verifiers of instructions. */
  instructions?: InstructionSummary
}

interface InstructionSummary {
  count: number
  strict: number
  loose: number
  /** Rows of which every instruction is followed. */
  promptsStrict: number
  promptsLoose: number
}

/** Lines that are written to the file at once. */
const CHUNK_ROWS = 64

/** Verifies the rows of a file; the value is the exit code. */
export async function verify(flags: VerifyFlags): Promise<number> {
  const verifier = findVerifier(flags.verifier)
  return await runFileCommand<VerifySummary>({
    flags,
    work: (signal, show) =>
      verifyFile(verifier, flags, {
        signal,
        onProgress: ({ rows, scoreSum }) => {
          const parts = ['verifying', `${grouped(rows)} rows`, `mean score ${(scoreSum / rows).toFixed(3)}`]
          show({ id: 'verify', done: rows, parts })
        },
      }),
    values: (summary) => ({ ...summaryValues(verifier.name, summary), output: flags.output }),
    print: (summary, terminal) => printSummary(terminal, summary, flags.output),
  })
}

interface VerifyRun {
  signal: AbortSignal
  onProgress: (done: VerifySummary) => void
}

/** Writes one line a row to the output, which appears whole or not at all. ERR_DATA with file:line for a bad row. */
async function verifyFile(
  verifier: Verifier,
  { input, output }: VerifyFlags,
  { signal, onProgress }: VerifyRun,
): Promise<VerifySummary> {
  const started = performance.now()
  const summary: VerifySummary = { rows: 0, accepted: 0, scoreSum: 0, seconds: 0 }
  await writeFileAtomic(output, async (append) => {
    let lines: string[] = []
    const flush = async () => {
      await append(Buffer.from(lines.join('')))
      lines = []
      onProgress(summary)
      // A timer's turn: signals are heard between chunks, for verifying itself never waits.
      await new Promise((resolve) => setImmediate(resolve))
      throwIfAborted(signal)
    }
    for await (const { row, line } of readJsonLines(input, { signal })) {
      const verdict = verdictOf(verifier, row, `${input}:${line}`)
      addTo(summary, verdict)
      lines.push(`${JSON.stringify(verdict)}\n`)
      if (lines.length >= CHUNK_ROWS) await flush()
    }
    if (lines.length > 0) await flush()
  })
  summary.seconds = (performance.now() - started) / 1000
  return summary
}

function verdictOf(verifier: Verifier, row: JsonObject, place: string): Verdict {
  try {
    return guardedVerify(verifier, inputOf(row))
  } catch (error) {
    if (!(error instanceof CaravanError)) throw error
    const separator = place.lastIndexOf(':')
    throw new CaravanError(error.code, `${place}: ${error.message}`, {
      details: { ...error.details, file: place.slice(0, separator), line: Number(place.slice(separator + 1)) },
      hint: error.hint,
      cause: error,
    })
  }
}

function inputOf(row: JsonObject): VerifyInput {
  const { completion, prompt, ground_truth, token_count } = row
  return {
    completion: completion as string,
    prompt: typeof prompt === 'string' ? prompt : undefined,
    groundTruth: ground_truth,
    tokenCount: typeof token_count === 'number' ? token_count : undefined,
    row,
  }
}

function addTo(summary: VerifySummary, { score, strict, loose }: Verdict): void {
  summary.rows++
  summary.scoreSum += score
  if (score === 1) summary.accepted++
  if (strict === undefined || loose === undefined) return
  summary.instructions ??= { count: 0, strict: 0, loose: 0, promptsStrict: 0, promptsLoose: 0 }
  const { instructions } = summary
  instructions.count += strict.length
  instructions.strict += strict.filter(Boolean).length
  instructions.loose += loose.filter(Boolean).length
  if (strict.length > 0 && strict.every(Boolean)) instructions.promptsStrict++
  if (loose.length > 0 && loose.every(Boolean)) instructions.promptsLoose++
}

/** The numbers of a summary, named for programs; a share of no rows is null. */
function summaryValues(verifier: string, { rows, accepted, scoreSum, seconds, instructions }: VerifySummary): object {
  const share = (count: number, of: number) => (of === 0 ? null : count / of)
  const values = { verifier, rows, accepted, meanScore: share(scoreSum, rows), seconds }
  if (instructions === undefined) return values
  return {
    ...values,
    promptStrict: share(instructions.promptsStrict, rows),
    promptLoose: share(instructions.promptsLoose, rows),
    instructionStrict: share(instructions.strict, instructions.count),
    instructionLoose: share(instructions.loose, instructions.count),
  }
}

function printSummary(terminal: Terminal, summary: VerifySummary, output: string): void {
  const { rows, accepted, scoreSum, seconds, instructions } = summary
  const mean = rows === 0 ? '-' : (scoreSum / rows).toFixed(3)
  terminal.line(`${grouped(rows)} rows in ${durationText(seconds)} -> ${output}`)
  terminal.line(
    `accepted ${grouped(accepted)} (${rows === 0 ? '-' : percentText(accepted / rows)}), mean score ${mean}`,
  )
  if (instructions === undefined || instructions.count === 0) return
  const { count, strict, loose, promptsStrict, promptsLoose } = instructions
  terminal.line(`prompts       strict ${percentText(promptsStrict / rows)}, loose ${percentText(promptsLoose / rows)}`)
  terminal.line(`instructions  strict ${percentText(strict / count)}, loose ${percentText(loose / count)}`)
}
