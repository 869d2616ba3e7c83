// `caravan bench verify`: completions a second of every verifier that needs no more than a short label, called directly
// and through the pool of processes that training uses.
import { Random } from '../base/random.js'
import { findVerifier } from '../verify/registry.js'
import { guardedVerify } from '../verify/verifier.js'
import { VerifierPool, type VerifyTask } from '../verify/verifier_pool.js'
import { exitCodes } from './failure.js'
import { countText } from './format.js'
import { machineName } from './machine.js'
import { tableLines } from './table.js'
import { Terminal } from './terminal.js'
import { median } from './timing.js'

export interface BenchVerifyFlags {
  completions: number
  rounds: number
  processes?: number
  json?: boolean
}

/** Labels with which every completion is judged. */
const cases: readonly { verifier: string; groundTruth: unknown; row?: Record<string, unknown> }[] = [
  { verifier: 'gsm8k', groundTruth: '42' },
  { verifier: 'math', groundTruth: '\\frac{1}{2}' },
  { verifier: 'string_match', groundTruth: 'forty-two' },
  { verifier: 'string_f1', groundTruth: 'the answer is forty-two apples' },
  { verifier: 'multiple_choice', groundTruth: 'B' },
  {
    verifier: 'ifeval',
    groundTruth: undefined,
    row: {
      instruction_id_list: ['punctuation:no_comma', 'length_constraints:number_words'],
      kwargs: [{}, { num_words: 20, relation: 'at least' }],
    },
  },
]

const WORDS = ['So', 'we', 'have', '12', 'apples', 'and', 'then', '30', 'more', 'which', 'makes', '42,', 'or', 'half.']

/** A worked answer of about 300 characters. */
function completionOf(random: Random): string {
  const words = Array.from({ length: 55 }, () => random.choice(WORDS))
  return `${words.join(' ')}\nThe final answer is \\boxed{0.5}.\n#### ${random.integer(0, 100)}`
}

/** Measures and prints; the value is the exit code. */
export async function benchVerify({ completions, rounds, processes, json }: BenchVerifyFlags): Promise<number> {
  const terminal = new Terminal(process.stdout)
  const random = new Random(1)
  const texts = Array.from({ length: completions }, () => completionOf(random))
  const pool = new VerifierPool({ threads: processes })
  const rows: { verifier: string; direct: number; pool: number }[] = []
  try {
    for (const { verifier, groundTruth, row } of cases) {
      const tasks: VerifyTask[] = texts.map((completion) => ({ verifier, input: { completion, groundTruth, row } }))
      const [direct, pooled]: [number[], number[]] = [[], []]
      for (let round = 0; round <= rounds; round++) {
        const seconds = [await timed(() => verifyHere(tasks)), await timed(() => pool.verify(tasks))]
        if (round > 0) for (const [i, list] of [direct, pooled].entries()) list.push(completions / seconds[i]!)
      }
      rows.push({ verifier, direct: median(direct), pool: median(pooled) })
    }
  } finally {
    await pool.dispose()
  }
  const machine = machineName()
  if (json)
    for (const row of rows) terminal.line(JSON.stringify({ ...row, completions, unit: 'completions/s', machine }))
  else for (const line of resultLines(rows, { completions, machine }, terminal)) terminal.line(line)
  return exitCodes.done
}

function verifyHere(tasks: readonly VerifyTask[]): Promise<void> {
  for (const { verifier, input } of tasks) guardedVerify(findVerifier(verifier), input)
  return Promise.resolve()
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now()
  await work()
  return (performance.now() - started) / 1000
}

function resultLines(
  rows: readonly { verifier: string; direct: number; pool: number }[],
  { completions, machine }: { completions: number; machine: string },
  { color: { bold, dim } }: Terminal,
): string[] {
  const cells = rows.map(({ verifier, direct, pool }) => [
    verifier,
    countText(Math.round(direct)),
    countText(Math.round(pool)),
  ])
  return [
    dim(machine),
    `${bold('verifiers')}  completions/s, ${completions} completions of about 300 characters`,
    ...tableLines([['', dim('direct'), dim('pool')], ...cells], { align: 'lrr', indent: '  ' }),
  ]
}
