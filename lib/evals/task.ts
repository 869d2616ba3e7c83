// What a task is: where its rows are, what a row asks, and how an answer is judged. Tasks are plain data and small
// functions; everything that touches a model is elsewhere, so that one harness serves them all.
import { CaravanError } from '../base/errors.js'
import type { JsonObject } from '../data/json_lines.js'
import type { RowPlace } from '../data/rows.js'
import type { VoteRules } from '../verify/majority_vote.js'
import type { Verifier } from '../verify/verifier.js'

/** Where rows are looked for inside the data folder, or given files. */
export type TaskData =
  | {
      /** Folders and beginnings of file names, e.g. `gsm8k`. */
      names: readonly string[]
      /** Which part of the data is asked, best first, e.g. `test`. */
      splits: readonly string[]
      /** Parts that worked examples may come from. */
      shotSplits?: readonly string[]
    }
  | { file: string; shotsFile?: string }

/** A worked example: what is asked and what is answered, as two turns. */
export interface Exemplar {
  question: string
  answer: string
}

/** A row of a task that is answered by writing. */
export interface Problem {
  /** What the model is asked, in full. */
  question: string
  groundTruth: unknown
  row: JsonObject
  place: RowPlace
}

export interface GenerationTask {
  kind: 'generation'
  name: string
  data: TaskData
  /** Built-in worked examples; without them they are the first rows of the data for shots. */
  exemplars?: readonly Exemplar[]
  /** A row of the data for shots as an example. */
  exemplar?(row: JsonObject, place: RowPlace): Exemplar
  /** Worked examples before a question, unless asked otherwise. */
  shots: number
  problem(row: JsonObject, place: RowPlace): Problem
  /** What stands between a question and its answer in plain text. */
  separator: string
  verifier: Verifier
  /** How answers of several samples are counted as votes. */
  votes?: VoteRules
  /** accuracy: full scores count. score: the mean score. instructions: the four accuracies of IFEval. */
  metric: 'accuracy' | 'score' | 'instructions'
  /** Most new tokens of an answer, unless asked otherwise. */
  maxTokens: number
  /** Texts that end an answer in plain text: the beginning of a question that the model asks itself. */
  stopTexts: readonly string[]
}

/** A row of a task that is answered by choosing. */
export interface ChoiceQuestion {
  question: string
  choices: readonly string[]
  /** Index of the right choice. */
  answer: number
  subject?: string
  /** Identifies a row among the curated examples. */
  id?: string
  place: RowPlace
}

/** How the probability of a choice's text is made comparable (Gu et al. 2024, 2.3). */
export const NORMALIZATIONS = ['raw', 'per_token', 'per_char', 'uncond'] as const
export type Normalization = (typeof NORMALIZATIONS)[number]

/** mcf: the choices are listed and a letter is scored. cf: the text of the choice is scored, none is shown. */
export const FORMULATIONS = ['mcf', 'cf'] as const
export type Formulation = (typeof FORMULATIONS)[number]

export interface ChoiceTask {
  kind: 'choice'
  name: string
  data: TaskData
  shots: number
  /** Ids of the examples that are taken where the data for shots has them all; else its first rows are. */
  curated?: readonly string[]
  read(row: JsonObject, place: RowPlace): ChoiceQuestion
  /** What stands before each question. */
  prefix: Record<Formulation, string>
  /** What stands before the list of choices. */
  choicesPrefix: string
  /** The line that an answer follows; none where a choice goes on with the question's text. */
  answerPrefix: Record<Formulation, string | undefined>
  /** Applied to prompts and choices before the model sees them. */
  clean?(text: string): string
  /** First line of a prompt. */
  description?(subject: string | undefined): string
  /** Normalization that counts for cf. */
  normalization: Normalization
}

export type Task = GenerationTask | ChoiceTask

/** ERR_DATA for a row of a task. */
export function rowFault({ file, line }: RowPlace, field: string, what: string): CaravanError {
  return new CaravanError('ERR_DATA', `${file}:${line}: \`${field}\` ${what}`, { details: { file, line, field } })
}

/** A value of a row, for messages. */
export function shown(value: unknown): string {
  if (value === undefined || value === null) return 'nothing'
  const text = JSON.stringify(value)
  return text.length > 60 ? `${text.slice(0, 57)}...` : text
}

/** The text in a column. ERR_DATA for anything else, and for white space alone. */
export function textOf(row: JsonObject, field: string, place: RowPlace): string {
  const value = row[field]
  if (typeof value === 'string' && value.trim() !== '') return value
  throw rowFault(place, field, `must be a text; got ${shown(value)}`)
}

/** The texts in a column. ERR_DATA for anything but a list of at least two. */
export function textsOf(row: JsonObject, field: string, place: RowPlace): string[] {
  const value = row[field]
  if (Array.isArray(value) && value.length >= 2 && value.every((one) => typeof one === 'string')) return value
  throw rowFault(place, field, `must be a list of at least two texts; got ${shown(value)}`)
}
