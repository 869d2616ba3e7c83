// Process that runs verifiers, one batch of completions after another. What leaves it is written synchronously, because
// nothing else gets out of a process that does not come to rest.
import { Worker } from 'node:worker_threads'
import { CaravanError } from '../base/errors.js'
import { workerUrl } from '../base/worker.js'
import { guardedVerify, refused, type Verdict, type Verifier, type VerifyInput } from './verifier.js'
import { answer, VerifierJournal } from './verifier_journal.js'
import { preparedVerifier } from './verifier_module.js'
import {
  type BatchFailure,
  type Column,
  type InputColumns,
  type ProcessLimits,
  SIGNS,
  tookTooLong,
  type VerifyBatch,
} from './verifier_process.js'
import type { WatchData } from './verifier_watch.js'

/** Longest verdict in UTF-16 units of JSON: six times the longest completion, all of it escaped, and its reason. */
const MAX_VERDICT_UNITS = 2 ** 21

/** Verdicts are with the parent after this time, or when a longer one is through. */
const FLUSH_MS = 10

const limits = JSON.parse(process.argv[2]!) as ProcessLimits
const journal = new VerifierJournal()
const verifiers = new Map<string, Verifier>()
let queue = Promise.resolve()

startWatch()
process.on('message', (batch: VerifyBatch) => {
  queue = queue.then(() => judge(batch))
})
process.on('disconnect', () => process.exit())
answer(SIGNS.ready)

async function judge({ verifiers: names, which, inputs, isCareful }: VerifyBatch): Promise<void> {
  try {
    for (const name of names) {
      if (verifiers.has(name)) continue
      verifiers.set(name, await preparedVerifier(name))
      answer(SIGNS.loaded, JSON.stringify(name))
    }
    const list = names.map((name) => verifiers.get(name)!)
    let flushed = performance.now()
    let started = flushed
    for (const [i, completion] of inputs.completion.entries()) {
      journal.begin()
      const verdict = guardedVerify(list[which[i]!]!, inputAt(inputs, i, completion))
      const json = verdictJson(list[which[i]!]!, verdict)
      const ended = performance.now()
      journal.end(ended - started > limits.timeoutMs ? lateJson(list[which[i]!]!) : json)
      started = ended
      if (!isCareful && started - flushed < FLUSH_MS) continue
      journal.flush()
      flushed = started
    }
    journal.flush()
  } catch (error) {
    journal.flush()
    answer(SIGNS.failure, JSON.stringify(failureOf(error)))
  }
}

function inputAt(columns: InputColumns, i: number, completion: string): VerifyInput {
  return {
    completion,
    prompt: valueAt(columns.prompt, i) as string | undefined,
    groundTruth: valueAt(columns.groundTruth, i),
    tokenCount: valueAt(columns.tokenCount, i) as number | undefined,
    row: valueAt(columns.row, i) as VerifyInput['row'],
  }
}

function valueAt(column: Column | undefined, i: number): unknown {
  return column?.values[column.which?.[i] ?? 0]
}

/** The verdict as JSON; one that is too large or no data at all is score 0 with the reason. */
function verdictJson(verifier: Verifier, verdict: Verdict): string {
  try {
    const json = jsonOf(verdict)
    if (json.length <= MAX_VERDICT_UNITS) return json
    return jsonOf(refused(`${verifier.name} gave a verdict of ${json.length} characters`))
  } catch (error) {
    return jsonOf(refused(`${verifier.name} gave a verdict that is no data: ${(error as Error).message}`))
  }
}

function lateJson(verifier: Verifier): string {
  return jsonOf(refused(`${verifier.name} ${tookTooLong(limits)}`))
}

/** The fields of a verdict (VerdictSlots), and nothing else that foreign code may have put there. */
function jsonOf({ score, reason, extracted, strict, loose }: Verdict): string {
  const texts = `${Number(score)},${JSON.stringify(typeof reason === 'string' ? reason : '')}`
  const answer = typeof extracted === 'string' ? JSON.stringify(extracted) : '0'
  const hasLists = Array.isArray(strict) || Array.isArray(loose)
  return `${texts},${answer},${hasLists ? `[${listJson(strict)},${listJson(loose)}]` : '0'}`
}

function listJson(list: boolean[] | undefined): string {
  return Array.isArray(list) ? JSON.stringify(list.map(Boolean)) : '0'
}

function startWatch(): void {
  const workerData: WatchData = { memory: journal.memory, limits, parent: process.ppid }
  new Worker(workerUrl(import.meta.url, './verifier_watch.js'), {
    workerData,
    resourceLimits: { maxOldGenerationSizeMb: 32 },
  }).unref()
}

function failureOf(error: unknown): BatchFailure {
  if (!(error instanceof CaravanError)) throw error
  const { code, message, hint, details } = error
  return { code, message, hint, details: JSON.parse(JSON.stringify(details)) }
}
