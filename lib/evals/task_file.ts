// Tasks of a user's own: a JSON file that says where the rows are, what a row asks, and how the answer is judged. Paths
// are relative to the file.
import { readFile } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { CaravanError, nearestName } from '../base/errors.js'
import { fileError } from '../data/atomic_file.js'
import type { JsonObject } from '../data/json_lines.js'
import type { RowPlace } from '../data/rows.js'
import { MATH_VOTES, NUMBER_VOTES, type VoteRules } from '../verify/majority_vote.js'
import { findVerifier } from '../verify/registry.js'
import type { Verifier } from '../verify/verifier.js'
import { answerIndex, checkChoices } from './choice_tasks.js'
import {
  type ChoiceTask,
  type GenerationTask,
  NORMALIZATIONS,
  rowFault,
  shown,
  type Task,
  textOf,
  textsOf,
} from './task.js'

const BOTH = ['name', 'kind', 'data', 'shots_data', 'shots', 'prompt'] as const
const FIELDS = {
  generation: [...BOTH, 'answer', 'label', 'verifier', 'metric', 'max_tokens', 'stop', 'separator'],
  choice: [...BOTH, 'choices', 'answer', 'subject', 'description', 'choices_prefix', 'answer_prefix', 'normalization'],
} as const

const VOTES: { [verifier: string]: VoteRules } = { gsm8k: NUMBER_VOTES, math: MATH_VOTES, strict_math: MATH_VOTES }

/** Reads a task file. ERR_CONFIG names the file and the field that is wrong. */
export async function readTaskFile(path: string): Promise<Task> {
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    throw fileError('read', path, error)
  })
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (cause) {
    throw new CaravanError('ERR_CONFIG', `${path}: not valid JSON: ${(cause as Error).message}`, {
      details: { file: path },
      cause,
    })
  }
  const fields = new TaskFields(path, json)
  const kind = fields.oneOf('kind', ['generation', 'choice'] as const)
  fields.checkNames(FIELDS[kind])
  return kind === 'generation' ? generationTask(fields) : choiceTask(fields)
}

function generationTask(fields: TaskFields): GenerationTask {
  const prompt = fields.template('prompt')
  const answer = fields.template('answer', '{answer}')
  const label = fields.text('label', 'answer')
  const verifier = fields.verifier('verifier')
  const metric = verifier.name === 'ifeval' ? 'instructions' : 'accuracy'
  return {
    kind: 'generation',
    ...fields.shared(),
    problem: (row, place) => ({ question: prompt(row, place), groundTruth: row[label], row, place }),
    exemplar: (row, place) => ({ question: prompt(row, place), answer: answer(row, place) }),
    separator: fields.text('separator', ' '),
    verifier,
    votes: VOTES[verifier.name],
    metric: fields.oneOf('metric', ['accuracy', 'score', 'instructions'] as const, metric),
    maxTokens: fields.integer('max_tokens', { least: 1, otherwise: 512 }),
    stopTexts: fields.texts('stop'),
  }
}

function choiceTask(fields: TaskFields): ChoiceTask {
  const question = fields.template('prompt', fields.has('prompt') ? undefined : 'Question: {question}')
  const [choices, answer] = [fields.text('choices', 'choices'), fields.text('answer', 'answer')]
  const subject = fields.text('subject', 'subject')
  const description = fields.has('description') ? fields.text('description') : undefined
  const ending = fields.text('answer_prefix', 'Answer:')
  return {
    kind: 'choice',
    ...fields.shared(),
    read(row, place) {
      const texts = textsOf(row, choices, place)
      checkChoices(texts, choices, place)
      return {
        question: question(row, place),
        choices: texts,
        answer: answerIndex(row, answer, { place, count: texts.length }),
        subject: typeof row[subject] === 'string' ? row[subject] : undefined,
        place,
      }
    },
    prefix: { mcf: '', cf: '' },
    choicesPrefix: fields.text('choices_prefix', ''),
    answerPrefix: { mcf: ending, cf: ending },
    ...(description !== undefined && {
      description: (of: string | undefined) => description.replaceAll('{subject}', of?.replaceAll('_', ' ') ?? ''),
    }),
    normalization: fields.oneOf('normalization', NORMALIZATIONS, 'per_char'),
  }
}

type Template = (row: JsonObject, place: RowPlace) => string

/** Reads fields of a task file. */
class TaskFields {
  readonly #json: JsonObject

  constructor(
    private readonly path: string,
    json: unknown,
  ) {
    if (typeof json !== 'object' || json === null || Array.isArray(json)) {
      throw new CaravanError('ERR_CONFIG', `${path}: a task must be a JSON object; got ${shown(json)}`, {
        details: { file: path },
      })
    }
    this.#json = json as JsonObject
  }

  checkNames(known: readonly string[]): void {
    for (const name of Object.keys(this.#json)) {
      if (known.includes(name)) continue
      const near = nearestName(name, known)
      throw this.#fault(name, 'is no field of a task', near ? `did you mean "${near}"?` : `known: ${known.join(', ')}`)
    }
  }

  has(field: string): boolean {
    return this.#json[field] !== undefined
  }

  text(field: string, otherwise?: string): string {
    const value = this.#json[field] ?? otherwise
    if (typeof value === 'string' && (value !== '' || otherwise !== undefined)) return value
    throw this.#fault(field, `must be a text; got ${shown(value)}`)
  }

  texts(field: string): string[] {
    const value = this.#json[field] ?? []
    const list = Array.isArray(value) ? value : [value]
    if (list.every((one) => typeof one === 'string' && one !== '')) return list
    throw this.#fault(field, `must be a text or a list of texts; got ${shown(value)}`)
  }

  integer(field: string, { least, otherwise }: { least: number; otherwise: number }): number {
    const value = this.#json[field] ?? otherwise
    if (Number.isSafeInteger(value) && (value as number) >= least) return value as number
    throw this.#fault(field, `must be a whole number >= ${least}; got ${shown(value)}`)
  }

  oneOf<const T extends string>(field: string, words: readonly T[], otherwise?: T): T {
    const value = this.#json[field] ?? otherwise
    const word = words.find((known) => known === value)
    if (word !== undefined) return word
    throw this.#fault(field, `must be one of ${words.join(', ')}; got ${shown(value)}`)
  }

  verifier(field: string): Verifier {
    try {
      return findVerifier(this.text(field))
    } catch (error) {
      if (!(error instanceof CaravanError) || error.details.field !== undefined) throw error
      throw this.#fault(field, `: ${error.message}`, error.hint)
    }
  }

  /** A text with `{column}` in place of a column's value; `{{` and `}}` are braces. */
  template(field: string, otherwise?: string): Template {
    const text = this.text(field, otherwise)
    const parts = [...text.matchAll(/\{\{|\}\}|\{([^{}]+)\}|[^{}]+|[{}]/g)]
    const stray = parts.find(([whole]) => whole === '{' || whole === '}')
    if (stray) throw this.#fault(field, `has a brace without a column name at ${stray.index}`, 'write {{ for a brace')
    return (row, place) =>
      parts.map(([whole, column]) => (column === undefined ? unbraced(whole) : cellText(row, column, place))).join('')
  }

  shared(): { name: string; data: { file: string; shotsFile?: string }; shots: number } {
    const near = (path: string) => resolve(dirname(this.path), path)
    const shotsFile = this.has('shots_data') ? near(this.text('shots_data')) : undefined
    return {
      name: this.text('name'),
      data: { file: near(this.text('data')), shotsFile },
      shots: this.integer('shots', { least: 0, otherwise: shotsFile === undefined ? 0 : 5 }),
    }
  }

  #fault(field: string, what: string, hint?: string): CaravanError {
    return new CaravanError('ERR_CONFIG', `${this.path}: \`${field}\`${what.startsWith(':') ? '' : ' '}${what}`, {
      details: { file: this.path, field },
      hint: hint ?? 'docs/evals.md lists the fields of a task file',
    })
  }
}

function unbraced(part: string): string {
  if (part === '{{') return '{'
  return part === '}}' ? '}' : part
}

function cellText(row: JsonObject, column: string, place: RowPlace): string {
  const value = row[column]
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean') return String(value)
  if (value === undefined) {
    const columns = Object.keys(row).slice(0, 8).join(', ')
    throw rowFault(place, column, `is named by the task's template; the row has ${columns}`)
  }
  return textOf(row, column, place)
}
