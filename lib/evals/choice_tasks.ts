// The built-in tasks that are answered by choosing, with their rows as officially published and their prompts as OLMES
// has them (Gu et al. 2024): curated examples, and which normalization counts.
import type { JsonObject } from '../data/json_lines.js'
import type { RowPlace } from '../data/rows.js'
import { type ChoiceQuestion, type ChoiceTask, rowFault, shown, textOf, textsOf } from './task.js'

const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'

/** The letter of a choice. */
export function letterOf(choice: number): string {
  return LETTERS[choice]!
}

/** An index, or a letter as index. ERR_DATA for what names none of `count` choices. */
export function answerIndex(row: JsonObject, field: string, { place, count }: { place: RowPlace; count: number }) {
  const value = row[field]
  const text = typeof value === 'string' ? value.trim() : ''
  // Labels of HellaSwag are digits in quotes.
  const index = /^\d+$/.test(text) ? Number(text) : text.length === 1 ? LETTERS.indexOf(text.toUpperCase()) : value
  if (Number.isInteger(index) && (index as number) >= 0 && (index as number) < count) return index as number
  const range = `an index from 0 to ${count - 1} or a letter from A to ${letterOf(count - 1)}`
  throw rowFault(place, field, `must be ${range}; got ${shown(value)}`)
}

/** Checks the number of choices: each needs a letter. */
export function checkChoices(choices: readonly string[], field: string, place: RowPlace): void {
  if (choices.length <= LETTERS.length) return
  throw rowFault(place, field, `must have at most ${LETTERS.length} choices; got ${choices.length}`)
}

const questionAndAnswer = {
  prefix: { mcf: 'Question: ', cf: 'Question: ' },
  choicesPrefix: '',
  answerPrefix: { mcf: 'Answer:', cf: 'Answer:' },
} as const

/** 57 subjects (Hendrycks et al. 2021): `question`, `choices`, `answer`, `subject`; or the original CSV files. */
export const mmluTask: ChoiceTask = {
  ...questionAndAnswer,
  kind: 'choice',
  name: 'mmlu',
  data: { names: ['mmlu', 'mmlu/all', 'MMLU'], splits: ['test', 'validation', 'val'], shotSplits: ['dev'] },
  shots: 5,
  read(row, place): ChoiceQuestion {
    const choices = textsOf(row, 'choices', place)
    checkChoices(choices, 'choices', place)
    const answer = answerIndex(row, 'answer', { place, count: choices.length })
    const subject = typeof row.subject === 'string' && row.subject !== '' ? row.subject : undefined
    return { question: textOf(row, 'question', place).trim(), choices, answer, subject, place }
  },
  description(subject) {
    const about = subject === undefined ? '' : ` about ${subject.replaceAll('_', ' ')}`
    return `The following are multiple choice questions (with answers)${about}.`
  },
  normalization: 'per_char',
}

/** The rows of ARC (Clark et al. 2018): `question.stem` and `question.choices` as a list, or the columns of the Hub. */
function readArc(row: JsonObject, place: RowPlace): ChoiceQuestion {
  const nested = typeof row.question === 'object' && row.question !== null ? (row.question as JsonObject) : undefined
  const question = nested ? textOf(nested, 'stem', place) : textOf(row, 'question', place)
  const { texts, labels } = arcChoices(nested?.choices ?? row.choices, place)
  checkChoices(texts, 'choices', place)
  const answer = labels.indexOf(String(row.answerKey))
  if (answer < 0) {
    throw rowFault(place, 'answerKey', `must be one of the labels ${labels.join(', ')}; got ${shown(row.answerKey)}`)
  }
  return { question, choices: texts, answer, id: typeof row.id === 'string' ? row.id : undefined, place }
}

function arcChoices(value: unknown, place: RowPlace): { texts: string[]; labels: string[] } {
  const asList = Array.isArray(value) ? (value as unknown[]).map((one) => (one ?? {}) as JsonObject) : undefined
  const columns = (value ?? {}) as JsonObject
  const texts = asList?.map(({ text }) => text) ?? columns.text
  const labels = asList?.map(({ label }) => label) ?? columns.label
  const isTexts = (list: unknown): list is string[] =>
    Array.isArray(list) && list.length >= 2 && list.every((one) => typeof one === 'string')
  if (isTexts(texts) && isTexts(labels) && texts.length === labels.length) return { texts, labels }
  throw rowFault(place, 'choices', `must be at least two choices with text and label; got ${shown(value)}`)
}

export const arcEasyTask: ChoiceTask = {
  ...questionAndAnswer,
  kind: 'choice',
  name: 'arc_easy',
  data: {
    names: ['arc_easy', 'ARC-Easy', 'ai2_arc/ARC-Easy'],
    splits: ['test', 'validation', 'dev'],
    shotSplits: ['train'],
  },
  shots: 5,
  curated: [
    'MCAS_2007_8_5189',
    'Mercury_SC_401169',
    'MCAS_2004_8_27',
    'NYSEDREGENTS_2006_8_10',
    'Mercury_7013388',
    'Mercury_7179953',
    'Mercury_7205118',
    'MCAS_2016_8_13',
  ],
  read: readArc,
  normalization: 'per_char',
}

export const arcChallengeTask: ChoiceTask = {
  ...arcEasyTask,
  name: 'arc_challenge',
  data: {
    names: ['arc_challenge', 'ARC-Challenge', 'ai2_arc/ARC-Challenge'],
    splits: ['test', 'validation', 'dev'],
    shotSplits: ['train'],
  },
  curated: [
    'Mercury_SC_415702',
    'MCAS_2009_5_6516',
    'Mercury_7233695',
    'Mercury_7041615',
    'MCAS_1998_4_3',
    'Mercury_7041860',
    'ACTAAP_2013_5_11',
    'MDSA_2008_5_30',
  ],
  normalization: 'uncond',
}

/** As OLMES cleans the marks of WikiHow: the title mark ends a sentence, other marks go. */
export function cleanHellaSwag(text: string): string {
  return text
    .trim()
    .replace(/\.? \[title\]/g, '. ')
    .replace(/\[.*?\]/g, '')
    .replaceAll('  ', ' ')
}

/** As Python's str.capitalize: the rest becomes lower case. */
function capitalized(text: string): string {
  const [first = '', ...rest] = text
  return first.toUpperCase() + rest.join('').toLowerCase()
}

/** Endings of a description (Zellers et al. 2019): `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`. */
export const hellaswagTask: ChoiceTask = {
  kind: 'choice',
  name: 'hellaswag',
  // The labels of its test rows are not public.
  data: { names: ['hellaswag', 'HellaSwag'], splits: ['validation', 'val'], shotSplits: ['train'] },
  shots: 5,
  curated: [
    '12 wikihow~19',
    '39 wikihow~66',
    '9 activitynet~v_-2dxp-mv2zo',
    '47 activitynet~v_-Xl95IW5H_s',
    '38 wikihow~62',
  ],
  read(row, place): ChoiceQuestion {
    const { ctx_b, ind, source_id } = row
    if (typeof ctx_b !== 'string') throw rowFault(place, 'ctx_b', `must be a text; got ${shown(ctx_b)}`)
    const context = `${textOf(row, 'ctx_a', place)} ${capitalized(ctx_b)}`
    const endings = textsOf(row, 'endings', place)
    checkChoices(endings, 'endings', place)
    return {
      question: `${textOf(row, 'activity_label', place)}: ${context}`,
      choices: endings,
      answer: answerIndex(row, 'label', { place, count: endings.length }),
      id: `${ind} ${source_id}`,
      place,
    }
  },
  prefix: { mcf: '', cf: '' },
  choicesPrefix: 'Choose the best continuation:\n',
  answerPrefix: { mcf: 'Answer:', cf: undefined },
  clean: cleanHellaSwag,
  normalization: 'per_char',
}
