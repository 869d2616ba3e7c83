// Runs of recipes that take a second or two: the reference model on a few rows, or the pocket recipe at a tiny size.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { CaravanError } from '../../lib/base/errors.js'
import { type RunOptions, run } from '../../lib/recipes/run.js'
import type { Overrides, Recipe } from '../../lib/recipes/stage.js'
import { tulu3 } from '../../lib/recipes/tulu3.js'
import type { RunEvent } from '../../lib/train/events.js'
import { MetricsLog } from '../../lib/train/metrics.js'
import { goldenModel } from '../train/golden_tensors.js'
import { sha256 } from '../train/small_runs.js'

/** A model with a tokenizer and a chat template, of 50 thousand parameters. */
export const modelFolder = goldenModel('llama_mha_tied')

/** The pocket recipe in a few seconds. */
export const tinyPocket: Overrides = {
  'base.steps': '6',
  'base.width': '32',
  'base.layers': '1',
  'base.heads': '2',
  'base.keyValueHeads': '2',
  'base.feedForwardWidth': '64',
  'base.vocabularySize': '320',
  'base.tokens': '20000',
  'base.checkpointEvery': '3',
  'sft.rows': '200',
  'sft.steps': '6',
  'sft.checkpointEvery': '3',
  'dpo.rows': '60',
  'dpo.steps': '4',
  'dpo.batchSequences': '8',
  'dpo.checkpointEvery': '2',
  'reward_model.rows': '60',
  'reward_model.steps': '4',
  'reward_model.batchSequences': '8',
  'reward_model.checkpointEvery': '2',
  'rlvr.rollouts': '2',
  'rlvr.promptsPerRollout': '8',
  'rlvr.maxNewTokens': '12',
  'rlvr.miniBatches': '2',
  'rlvr.checkpointEvery': '1',
  'eval.limit': '2',
}

export interface Outcome {
  events: RunEvent[]
  error: CaravanError | undefined
}

/** Runs to the end, or to the event for which `leave` is true. */
export async function outcomeOf(
  options: RunOptions,
  { recipe = tulu3(), leave }: { recipe?: Recipe; leave?: (event: RunEvent) => boolean } = {},
): Promise<Outcome> {
  const events: RunEvent[] = []
  try {
    for await (const event of run(recipe, { threads: 2, ...options })) {
      events.push(event)
      if (leave?.(event)) break
    }
  } catch (error) {
    return { events, error: error as CaravanError }
  }
  return { events, error: undefined }
}

export function eventsOf<T extends RunEvent['type']>(events: RunEvent[], type: T): (RunEvent & { type: T })[] {
  return events.filter((event): event is RunEvent & { type: T } => event.type === type)
}

export function writeLines(path: string, rows: readonly unknown[]): string {
  writeFileSync(path, rows.map((row) => `${typeof row === 'string' ? row : JSON.stringify(row)}\n`).join(''))
  return path
}

/** Rows of the shape of GSM8K. */
export const schoolProblems = (count: number) =>
  Array.from({ length: count }, (_, i) => ({
    question: `Ann has ${i} apples and buys ${i + 1} more. How many has she?`,
    answer: `She has ${i} + ${i + 1} = ${2 * i + 1}.\n#### ${2 * i + 1}`,
  }))

/** Loss and gradient norm of every step, for comparison of runs. */
export async function lossRows(directory: string): Promise<unknown[]> {
  const rows = await new MetricsLog(directory).rows()
  return rows.map(({ stage, step, loss, gradNorm, lr }) => ({ stage, step, loss, gradNorm, lr }))
}

export const chats = (count: number) =>
  Array.from({ length: count }, (_, i) => ({
    messages: [
      { role: 'user', content: `Say ${i}.` },
      { role: 'assistant', content: `${i}, as you wish.` },
    ],
  }))

/** SFT of the reference model in `directory` on `rows`, written to a file beside it: four steps. */
export function sftRun(directory: string, rows: readonly unknown[], changed: Partial<RunOptions> = {}): RunOptions {
  const { overrides, data = [writeLines(`${directory}.jsonl`, rows)], ...others } = changed
  const settings = { steps: 4, batchSequences: 4, maxTokens: 400, checkpointEvery: 2 }
  const own = Object.entries(settings).map(([key, value]) => [`sft.${key}`, String(value)])
  return {
    directory,
    model: modelFolder,
    data,
    stages: ['sft'],
    ...others,
    overrides: { ...Object.fromEntries(own), ...overrides },
  }
}

/** SHA-256 of a file of a run folder. */
export const hashOfFile = (...path: string[]) => sha256(readFileSync(join(...path)))
