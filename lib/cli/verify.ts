// `caravan verify`: scores given completions with a verifier, as training with verifiable rewards does. No model is
// loaded. A row that the verifier cannot use ends the command; a completion, whatever it says, never does, and neither
// does a verifier of the user's that hangs on one: they run in a pool.
import { CaravanError } from '../base/errors.js'
import { writeFileAtomic } from '../data/atomic_file.js'
import { type JsonObject, readJsonLines } from '../data/json_lines.js'
import type { Verdict, VerifyInput } from '../verify/verifier.js'
import { VerifierPool } from '../verify/verifier_pool.js'
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

/** Rows that are verified, and lines that are written, at once. */
const CHUNK_ROWS = 256

/** Verifies the rows of a file; the value is the exit code. */
export async function verify(flags: VerifyFlags): Promise<number> {
  const pool = new VerifierPool()
  try {
    await pool.load([flags.verifier])
    return await runFileCommand<VerifySummary>({
      flags,
      work: (signal, show) =>
        verifyFile(pool, flags, {
          signal,
          onProgress: ({ rows, scoreSum }) => {
            const parts = ['verifying', `${grouped(rows)} rows`, `mean score ${(scoreSum / rows).toFixed(3)}`]
            show({ id: 'verify', done: rows, parts })
          },
        }),
      values: (summary) => ({ ...summaryValues(flags.verifier, summary), output: flags.output }),
      print: (summary, terminal) => printSummary(terminal, summary, flags.output),
    })
  } finally {
    await pool.dispose()
  }
}

interface VerifyRun {
  signal: AbortSignal
  onProgress: (done: VerifySummary) => void
}

interface Chunk {
  inputs: VerifyInput[]
  lines: number[]
}

/** Writes one line a row to the output, which appears whole or not at all. ERR_DATA with file:line for a bad row. */
async function verifyFile(
  pool: VerifierPool,
  { verifier, input, output }: VerifyFlags,
  { signal, onProgress }: VerifyRun,
): Promise<VerifySummary> {
  const started = performance.now()
  const summary: VerifySummary = { rows: 0, accepted: 0, scoreSum: 0, seconds: 0 }
  await writeFileAtomic(output, async (append) => {
    let inWork: { lines: number[]; verdicts: Promise<Verdict[]> } | undefined
    const finish = async () => {
      if (inWork === undefined) return
      const verdicts = await inWork.verdicts.catch((error) => Promise.reject(atLine(error, input, inWork!.lines)))
      for (const verdict of verdicts) addTo(summary, verdict)
      await append(Buffer.from(verdicts.map((verdict) => `${JSON.stringify(verdict)}\n`).join('')))
      onProgress(summary)
    }
    for await (const { inputs, lines } of chunksOf(input, signal)) {
      const verdicts = pool.verify(
        inputs.map((one) => ({ verifier, input: one })),
        signal,
      )
      verdicts.catch(() => {}) // reported when its turn has come
      await finish()
      inWork = { lines, verdicts }
    }
    await finish()
  })
  summary.seconds = (performance.now() - started) / 1000
  return summary
}

/** Rows, and the lines that they are on. */
async function* chunksOf(file: string, signal: AbortSignal): AsyncGenerator<Chunk> {
  let inputs: VerifyInput[] = []
  let lines: number[] = []
  for await (const { row, line } of readJsonLines(file, { signal })) {
    inputs.push(inputOf(row))
    lines.push(line)
    if (inputs.length < CHUNK_ROWS) continue
    yield { inputs, lines }
    inputs = []
    lines = []
  }
  if (inputs.length > 0) yield { inputs, lines }
}

/** The error of a task as that of its line. */
function atLine(error: unknown, file: string, lines: readonly number[]): unknown {
  if (!(error instanceof CaravanError) || typeof error.details.task !== 'number') return error
  const line = lines[error.details.task]!
  const { task: _, ...details } = error.details
  return new CaravanError(error.code, `${file}:${line}: ${(error.cause as Error).message}`, {
    details: { ...details, file, line },
    hint: error.hint,
    cause: error.cause,
  })
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
