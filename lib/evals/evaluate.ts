// Runs tasks on a model, one after the other. No result depends on threads, slots or the size of a pass: random numbers
// are keyed by the seed and the number of a row, and no token's bits depend on its neighbours.
import { CaravanError } from '../base/errors.js'
import type { CausalLm } from '../models/index.js'
import { ChatTemplate } from '../text/chat_template.js'
import type { Tokenizer } from '../text/tokenizer.js'
import { choiceMetrics, chosenIndex, type ScoredQuestion, scoreQuestions } from './choice_run.js'
import {
  type AnsweredProblem,
  answerProblems,
  FORMATS,
  type Format,
  type GenerationSettings,
  generationMetrics,
} from './generation_run.js'
import { type LoadedTask, type LoadOptions, loadTasks } from './loaded_task.js'
import { findTasks } from './registry.js'
import type { AnswerRecord, ChoiceRecord, EvaluationResult, SampleRecord, TaskResult } from './result.js'
import { FORMULATIONS, type Formulation, NORMALIZATIONS, type Task } from './task.js'

export interface EvaluateProgress {
  task: string
  /** Answers, or questions, of this task. */
  done: number
  total: number
  /** Tokens of this task: new ones, or scored ones. */
  tokens: number
}

export interface EvaluateOptions extends LoadOptions {
  /** Answers to each prompt of a task that is answered by writing; default 1. */
  samples?: number
  /** Default 0: the most probable token. */
  temperature?: number
  topP?: number
  seed?: number
  /** Most new tokens of an answer; default the task's own number. */
  maxTokens?: number
  /** Default: turns with a chat template, plain text without one. */
  format?: Format
  /** Chat template: source or built-in name; default the tokenizer's own. */
  template?: string | ChatTemplate
  /** Formulations of tasks that are answered by choosing; default both. */
  formulations?: readonly Formulation[]
  /** Answers in work at a time, and rows of a scoring pass. No result depends on them. */
  slots?: number
  batchTokens?: number
  onProgress?: (progress: EvaluateProgress) => void
  /** Called with every row after its task. */
  onSample?: (record: SampleRecord) => void | Promise<void>
}

/** Names of built-in tasks, paths of task files, tasks; or what `loadTasks` has read. */
export type EvaluationTasks = readonly (string | Task)[] | readonly LoadedTask[]

/**
 * Evaluates a model on tasks. ERR_CONFIG for an option that does not fit, ERR_FILE and ERR_DATA for data, before the
 * model is asked anything; ERR_MODEL for numbers that are not finite; ERR_ABORTED for `signal`.
 */
export async function evaluate(
  model: CausalLm,
  tokenizer: Tokenizer,
  tasks: EvaluationTasks,
  options: EvaluateOptions = {},
): Promise<EvaluationResult> {
  const started = performance.now()
  const resolved = resolveOptions(tokenizer, options)
  const loaded = isLoaded(tasks) ? tasks : await loadTasks(await findTasks(tasks), options)
  const run = { model, tokenizer, options, resolved }
  const results: TaskResult[] = []
  for (const one of loaded) results.push(one.kind === 'generation' ? await write(one, run) : await choose(one, run))
  const { samples, temperature, topP, seed, template } = resolved
  return {
    tasks: results,
    settings: {
      seed,
      limit: options.limit ?? null,
      samples,
      temperature,
      topP,
      template: template?.source ?? null,
      dtype: model.dtype,
    },
    seconds: (performance.now() - started) / 1000,
  }
}

/** As `evaluate`, as numbers by name (`gsm8k/exact_match`): what a training stage logs. */
export async function evaluateTasks(
  model: CausalLm,
  tokenizer: Tokenizer,
  tasks: EvaluationTasks,
  options: EvaluateOptions = {},
): Promise<Record<string, number>> {
  const { tasks: results } = await evaluate(model, tokenizer, tasks, options)
  return Object.fromEntries(
    results.flatMap(({ task, metrics }) => metrics.map(({ name, value }) => [`${task}/${name}`, value] as const)),
  )
}

function isLoaded(tasks: EvaluationTasks): tasks is readonly LoadedTask[] {
  return tasks.length > 0 && tasks.every((one) => typeof one === 'object' && 'task' in one)
}

interface Resolved extends Omit<GenerationSettings, 'exemplars' | 'maxTokens'> {
  maxTokens: number | undefined
  formulations: readonly Formulation[]
}

interface Run {
  model: CausalLm
  tokenizer: Tokenizer
  options: EvaluateOptions
  resolved: Resolved
}

function resolveOptions(tokenizer: Tokenizer, options: EvaluateOptions): Resolved {
  const {
    samples = 1,
    temperature = 0,
    topP = 1,
    seed = 0,
    maxTokens,
    slots = 64,
    formulations = FORMULATIONS,
  } = options
  if (samples > 1 && temperature === 0) {
    throw new CaravanError('ERR_CONFIG', `${samples} samples at temperature 0 are all alike`, {
      details: { samples, temperature },
      hint: 'give a temperature above 0, or one sample',
    })
  }
  if (formulations.length === 0 || !formulations.every((one) => FORMULATIONS.includes(one))) {
    throw new CaravanError('ERR_CONFIG', `formulations must be some of ${FORMULATIONS.join(', ')}; got ${formulations}`)
  }
  const { template, format } = resolveFormat(tokenizer, options)
  return { samples, temperature, topP, seed, maxTokens, slots, formulations, template, format }
}

function resolveFormat(tokenizer: Tokenizer, { template, format }: EvaluateOptions) {
  if (format !== undefined && !FORMATS.includes(format)) {
    throw new CaravanError('ERR_CONFIG', `format must be one of ${FORMATS.join(', ')}; got ${format}`)
  }
  if (format === 'plain') return { template: undefined, format }
  const asked = template !== undefined || format !== undefined
  if (!asked && tokenizer.chatTemplate === undefined) return { template: undefined, format: 'plain' as const }
  return {
    template: template instanceof ChatTemplate ? template : ChatTemplate.of(tokenizer, template),
    format: format ?? ('turns' as const),
  }
}

async function write(loaded: LoadedTask & { kind: 'generation' }, run: Run): Promise<TaskResult> {
  const { task, problems, exemplars, files, shotFiles } = loaded
  const { model, tokenizer, options, resolved } = run
  const maxTokens = resolved.maxTokens ?? task.maxTokens
  const answered = await answerProblems(task, problems, {
    engine: { model, tokenizer, signal: options.signal },
    settings: { ...resolved, maxTokens, exemplars },
    onProgress: (progress) => options.onProgress?.({ task: task.name, ...progress }),
  })
  for (const record of answerRecords(task.name, answered)) await options.onSample?.(record)
  const answers = answered.flatMap((one) => one.answers)
  return {
    task: task.name,
    kind: 'generation',
    metrics: generationMetrics(task, answered),
    rows: problems.length,
    settings: { files, shotFiles, shots: exemplars.length, format: resolved.format, maxTokens },
    shortenedPrompts: answered.filter(({ prompt }) => prompt.shots < exemplars.length).length,
    cutPrompts: answered.filter(({ prompt }) => prompt.isCut).length,
    answers: {
      count: answers.length,
      tokens: answers.reduce((sum, { tokens }) => sum + tokens, 0),
      cutOff: answers.filter(({ isCutOff }) => isCutOff).length,
    },
  }
}

function* answerRecords(task: string, answered: readonly AnsweredProblem[]): Generator<AnswerRecord> {
  for (const [row, { problem, prompt, answers }] of answered.entries()) {
    for (const [sample, { text, tokens, isCutOff, verdict }] of answers.entries()) {
      const reason = isCutOff ? ('length' as const) : ('stop' as const)
      const { file, line } = problem.place
      const asked = { task, row, sample, file, line, prompt: prompt.prompt }
      yield { ...asked, completion: text, tokens, finish_reason: reason, ...verdict }
    }
  }
}

async function choose(loaded: LoadedTask & { kind: 'choice' }, run: Run): Promise<TaskResult> {
  const { task, questions, shots, files, shotFiles } = loaded
  const { model, tokenizer, options, resolved } = run
  const shotsOf = ({ subject }: { subject?: string }) => shots.get(subject ?? '') ?? []
  const scored = await scoreQuestions(task, questions, {
    model,
    tokenizer,
    signal: options.signal,
    formulations: resolved.formulations,
    shotsOf,
    tokens: options.batchTokens ?? 4096,
    onProgress: (progress) => options.onProgress?.({ task: task.name, ...progress }),
  })
  const rows = new Map(questions.map((question, row) => [question, row]))
  for (const one of scored) await options.onSample?.(choiceRecord(task.name, rows.get(one.question)!, one))
  return {
    task: task.name,
    kind: 'choice',
    ...choiceMetrics(task, scored),
    rows: questions.length,
    settings: { files, shotFiles, shots: Math.max(0, ...[...shots.values()].map((some) => some.length)) },
    shortenedPrompts: scored.filter((one) => one.shots < shotsOf(one.question).length).length,
    cutPrompts: scored.filter(({ isCut }) => isCut).length,
  }
}

function choiceRecord(task: string, row: number, scored: ScoredQuestion): ChoiceRecord {
  const { question, formulation, prompt, scores } = scored
  const { file, line } = question.place
  const normalizations = formulation === 'mcf' ? (['raw'] as const) : NORMALIZATIONS
  return {
    task,
    row,
    file,
    line,
    formulation,
    prompt,
    choices: [...question.choices],
    answer: question.answer,
    chosen: Object.fromEntries(normalizations.map((one) => [one, chosenIndex(scores, one)])),
    logprobs: scores.map(({ logprob }) => logprob),
    ...(formulation === 'cf' && { unconditional_logprobs: scores.map(({ unconditional }) => unconditional!) }),
  }
}
