// A task that is answered by writing: prompts, answers, verdicts, and what they come to. Labels are checked before
// anything is generated: a bad one would otherwise end the run after an hour.
import { CaravanError } from '../base/errors.js'
import { type GenerateRequest, generate } from '../generate/index.js'
import type { CausalLm } from '../models/index.js'
import type { ChatTemplate } from '../text/chat_template.js'
import type { Tokenizer } from '../text/tokenizer.js'
import { majorityVote } from '../verify/majority_vote.js'
import { guardedVerify, type Verdict } from '../verify/verifier.js'
import type { Metric } from './result.js'
import { type Estimate, meanEstimate, passAtK, powersOfTwo, ratioEstimate } from './statistics.js'
import type { Exemplar, GenerationTask, Problem } from './task.js'
import { fittingPrompts, type Prompt, promptEncoder, type TokenPrompt } from './token_prompts.js'

/** How a question and its examples are put: one text, one user turn, or a turn for each. */
export const FORMATS = ['plain', 'chat', 'turns'] as const
export type Format = (typeof FORMATS)[number]

export interface Engine {
  model: CausalLm
  tokenizer: Tokenizer
  signal?: AbortSignal
}

export interface GenerationSettings {
  format: Format
  template: ChatTemplate | undefined
  exemplars: readonly Exemplar[]
  samples: number
  temperature: number
  topP: number
  maxTokens: number
  seed: number
  slots: number
}

export interface Answer {
  text: string
  tokens: number
  /** Ended by the limit of tokens. */
  isCutOff: boolean
  verdict: Verdict
}

export interface AnsweredProblem {
  problem: Problem
  prompt: TokenPrompt
  answers: Answer[]
}

/** Runs the rule of the task on nothing, for ERR_DATA of the row. */
export function checkLabels(task: GenerationTask, problems: readonly Problem[]): void {
  for (const problem of problems) verdictOf(task, problem, { text: '', tokens: 0 })
}

/** Generates and verifies; problems keep their order. */
export async function answerProblems(
  task: GenerationTask,
  problems: readonly Problem[],
  { engine, settings, onProgress }: GenerationWork,
): Promise<AnsweredProblem[]> {
  const { model, tokenizer, signal } = engine
  const prompts = await problemPrompts(task, problems, { engine, settings })
  const { samples, temperature, topP, maxTokens, seed, slots, format } = settings
  const ends = [...model.config.eosIds, ...(tokenizer.eosId === undefined ? [] : [tokenizer.eosId])]
  const stopTexts = format === 'plain' ? task.stopTexts : []
  const requests = prompts.map(({ ids }): GenerateRequest => {
    return { prompt: ids, maxTokens, samples, temperature, topP, stopIds: ends, stopTexts }
  })
  const decode = (sequences: readonly Int32Array[]) => tokenizer.decodeBatch(sequences, { skipSpecialTokens: true })
  const answered = problems.map((problem, i): AnsweredProblem => ({ problem, prompt: prompts[i]!, answers: [] }))
  const progress = { done: 0, total: problems.length * samples, tokens: 0 }
  for await (const event of generate(model, requests, { decode, seed, slots, signal })) {
    if (event.type === 'token') {
      progress.tokens++
      continue
    }
    const { problem, answers } = answered[event.request]!
    const [text, tokens] = [event.text!, event.tokens.length]
    const verdict = verdictOf(task, problem, { text, tokens })
    answers[event.sample] = { text, tokens, isCutOff: event.finishReason === 'length', verdict }
    progress.done++
    onProgress?.({ ...progress })
  }
  return answered
}

export interface GenerationWork {
  engine: Engine
  settings: GenerationSettings
  onProgress?: (progress: { done: number; total: number; tokens: number }) => void
}

/** Prompts with as many examples as fit beside the answer, which has a quarter of the context or what it may use. */
async function problemPrompts(
  task: GenerationTask,
  problems: readonly Problem[],
  { engine: { model, tokenizer, signal }, settings }: Pick<GenerationWork, 'engine' | 'settings'>,
): Promise<TokenPrompt[]> {
  const { format, template, exemplars, maxTokens } = settings
  const { contextTokens } = model.config
  const room = Math.min(maxTokens, Math.max(1, contextTokens >> 2))
  const encoder = await promptEncoder(tokenizer, { template, signal })
  const promptOf = (row: number, shots: number) =>
    problemPrompt(task, problems[row]!.question, { format, exemplars: exemplars.slice(0, shots) })
  const size = { rows: problems.length, shots: exemplars.length, tokens: contextTokens - room }
  return await fittingPrompts(encoder, promptOf, size)
}

/** The prompt of a question after worked examples. */
export function problemPrompt(
  { separator }: Pick<GenerationTask, 'separator'>,
  question: string,
  { format, exemplars }: { format: Format; exemplars: readonly Exemplar[] },
): Prompt {
  if (format === 'turns') {
    const turns = exemplars.flatMap((one) => [
      { role: 'user', content: one.question },
      { role: 'assistant', content: one.answer },
    ])
    return [...turns, { role: 'user', content: question }]
  }
  const text = [...exemplars.map((one) => one.question + separator + one.answer), question].join('\n\n')
  return format === 'chat' ? [{ role: 'user', content: text }] : text
}

function verdictOf(
  task: GenerationTask,
  problem: Problem,
  { text, tokens }: { text: string; tokens: number },
): Verdict {
  const { question, groundTruth, row, place } = problem
  try {
    return guardedVerify(task.verifier, { completion: text, prompt: question, groundTruth, tokenCount: tokens, row })
  } catch (error) {
    if (!(error instanceof CaravanError)) throw error
    const { file, line } = place
    throw new CaravanError(error.code, `${file}:${line}: ${error.message}`, {
      details: { ...error.details, file, line },
      hint: error.hint,
      cause: error,
    })
  }
}

/** The metrics of a task, the one that counts first. */
export function generationMetrics(task: GenerationTask, answered: readonly AnsweredProblem[]): Metric[] {
  if (task.metric === 'instructions') return instructionMetrics(answered)
  if (task.metric === 'score') {
    return [
      { name: 'mean_score', ...perProblem(answered, ({ answers }) => meanOf(answers, (one) => one.verdict.score)) },
    ]
  }
  const samples = answered[0]?.answers.length ?? 0
  const right = ({ answers }: AnsweredProblem) => answers.filter(isRight).length
  const metrics: Metric[] = [{ name: 'exact_match', ...perProblem(answered, (one) => right(one) / one.answers.length) }]
  if (samples === 1) return metrics
  for (const k of powersOfTwo(samples)) {
    metrics.push({ name: `pass@${k}`, ...perProblem(answered, (one) => passAtK(one.answers.length, right(one), k)) })
  }
  if (task.votes !== undefined) metrics.push({ name: `maj@${samples}`, ...perProblem(answered, votedRight(task)) })
  return metrics
}

function isRight({ verdict }: Answer): boolean {
  return verdict.score === 1
}

/** 1 where the answer that most samples give is right; it is judged as its first voter was. */
function votedRight({ votes }: GenerationTask): (answered: AnsweredProblem) => number {
  return ({ answers }) => {
    const [voter] = majorityVote(
      answers.map(({ text }) => text),
      votes!,
    ).voters
    return voter !== undefined && isRight(answers[voter]!) ? 1 : 0
  }
}

/** The accuracies of IFEval under their official names; Tulu 3 reports loose prompts. */
function instructionMetrics(answered: readonly AnsweredProblem[]): Metric[] {
  const metrics: Metric[] = []
  for (const reading of ['loose', 'strict'] as const) {
    const followed = ({ verdict }: Answer) => verdict[reading] ?? []
    const whole = (answer: Answer) => (followed(answer).length > 0 && followed(answer).every(Boolean) ? 1 : 0)
    const rights = answered.map(({ answers }) => sumOf(answers, (one) => followed(one).filter(Boolean).length))
    const parts = answered.map(({ answers }) => sumOf(answers, (one) => followed(one).length))
    metrics.push(
      { name: `prompt_level_${reading}_acc`, ...perProblem(answered, ({ answers }) => meanOf(answers, whole)) },
      { name: `inst_level_${reading}_acc`, ...ratioEstimate(rights, parts) },
    )
  }
  return metrics
}

function perProblem(answered: readonly AnsweredProblem[], value: (one: AnsweredProblem) => number): Estimate {
  return meanEstimate(answered.map(value))
}

function sumOf(answers: readonly Answer[], value: (answer: Answer) => number): number {
  return answers.reduce((sum, answer) => sum + value(answer), 0)
}

function meanOf(answers: readonly Answer[], value: (answer: Answer) => number): number {
  return sumOf(answers, value) / answers.length
}
