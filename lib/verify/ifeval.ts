// Instructions that can be checked by a program: the 25 of IFEval and the 29 of IFEvalG. The score is the fraction that
// is followed; per instruction there are the two verdicts of the official checker, strict and loose.

import { nearestName } from '../base/errors.js'
import { EXTRA_INSTRUCTIONS } from './ifeval_extra.js'
import { GOOGLE_INSTRUCTIONS } from './ifeval_google.js'
import { InstructionArguments, type InstructionCheck } from './instruction_arguments.js'
import { knownLanguages } from './language_detect.js'
import { parsePythonLiteral } from './python_literal.js'
import { strip } from './python_text.js'
import { withoutThinking } from './thinking.js'
import { labelFault, refused, type Verdict, type Verifier, type VerifyInput } from './verifier.js'

const INSTRUCTIONS: ReadonlyMap<string, InstructionCheck> = new Map([
  ...Object.entries(GOOGLE_INSTRUCTIONS),
  ...Object.entries(EXTRA_INSTRUCTIONS),
])

/** The ids of all instructions that can be checked. */
export const INSTRUCTION_IDS: readonly string[] = [...INSTRUCTIONS.keys()]

/** An instruction with the arguments of a row. */
export interface InstructionTask {
  id: string
  check: InstructionCheck
  args: InstructionArguments
}

/** Whether a response follows an instruction as it is written. */
export function followsStrictly(response: string, { check, args }: InstructionTask): boolean {
  return strip(response) !== '' && check(response, args)
}

/** Whether any of the eight readings of a response (see `looseReadings`) follows an instruction. */
export function followsLoosely(readings: readonly string[], task: InstructionTask): boolean {
  return readings.some((reading) => followsStrictly(reading, task))
}

/**
 * The response as it is, and without its first line, its last line, or both (an introduction, a closing remark), each
 * also without asterisks. Equal ones are left out.
 */
export function looseReadings(response: string): string[] {
  const lines = response.split('\n')
  const cut = [lines.slice(1), lines.slice(0, -1), lines.slice(1, -1)].map((some) => strip(some.join('\n')))
  const readings = [response, ...cut]
  return [...new Set([...readings, ...readings.map((reading) => reading.replaceAll('*', ''))])]
}

/** Longest response that is judged, thinking apart, in UTF-16 units: some 16 000 tokens of English. */
const MAX_RESPONSE_LENGTH = 2 ** 16

/** Why a response is not judged at all: its instructions are looked at in up to eight readings. */
export function lengthFault(response: string): string | undefined {
  if (response.length <= MAX_RESPONSE_LENGTH) return undefined
  return `the response has ${response.length} characters; at most ${MAX_RESPONSE_LENGTH} are judged`
}

/** Judges a completion by the instructions of its row: columns `instruction_id_list` and `kwargs`, or the label. */
export const ifeval: Verifier = {
  name: 'ifeval',
  summary: 'the share of instructions (IFEval and IFEvalG) that the completion follows',
  prepare: () => void knownLanguages(),
  verify(input: VerifyInput): Verdict {
    const tasks = instructionTasks(input)
    const response = withoutThinking(input.completion)
    const fault = lengthFault(response)
    if (fault !== undefined) return { ...refused(fault), strict: tasks.map(() => false), loose: tasks.map(() => false) }
    if (tasks.length === 0) return { ...refused('the row has no instruction'), strict: [], loose: [] }
    const strict = tasks.map((task) => followsStrictly(response, task))
    // The response as it is has its verdict.
    const readings = strict.every(Boolean) ? [] : looseReadings(response).slice(1)
    const loose = tasks.map((task, i) => strict[i]! || followsLoosely(readings, task))
    const failed = tasks.filter((_, i) => !strict[i]).map(({ id }) => id)
    const followed = tasks.length - failed.length
    const reason = `${followed} of ${tasks.length} instructions followed`
    return {
      score: followed / tasks.length,
      reason: failed.length === 0 ? reason : `${reason}; not ${failed.join(', ')}`,
      strict,
      loose,
    }
  },
}

/** The instructions of a row. ERR_DATA for an unknown id or lists that do not fit each other. */
export function instructionTasks({
  row = {},
  groundTruth,
}: Pick<VerifyInput, 'row' | 'groundTruth'>): InstructionTask[] {
  const label = row.instruction_id_list === undefined ? labelOf(groundTruth) : row
  const ids = label.instruction_id_list ?? label.instruction_id
  const kwargs = label.kwargs ?? []
  if (!Array.isArray(ids)) throw labelFault('ifeval', 'instruction_id_list', 'a list of ids', ids)
  if (!Array.isArray(kwargs) || (kwargs.length > 0 && kwargs.length !== ids.length)) {
    throw labelFault('ifeval', 'kwargs', `a list of ${ids.length} objects, one for each id`, kwargs)
  }
  return ids.map((id: unknown, i) => instructionTask(id, kwargs[i] ?? {}))
}

function instructionTask(id: unknown, values: unknown): InstructionTask {
  const check = typeof id === 'string' ? INSTRUCTIONS.get(id) : undefined
  if (typeof id !== 'string' || check === undefined) {
    const near = typeof id === 'string' ? nearestName(id.slice(0, 80), INSTRUCTION_IDS) : undefined
    throw labelFault('ifeval', 'instruction_id_list', `known ids${near ? ` (is "${near}" meant?)` : ''}`, id)
  }
  if (typeof values !== 'object' || values === null || Array.isArray(values)) {
    throw labelFault(id, 'kwargs', 'an object for each id', values)
  }
  return { id, check, args: new InstructionArguments(id, values as Record<string, unknown>) }
}

/** A label as open-instruct writes it: `[{instruction_id: [...], kwargs: [...]}]`, itself or as text. */
function labelOf(groundTruth: unknown): Record<string, unknown> {
  let label = groundTruth
  for (let i = 0; i < 4 && (typeof label === 'string' || Array.isArray(label)); i++) {
    label = typeof label === 'string' ? literal(label) : label[0]
  }
  if (typeof label === 'object' && label !== null && !Array.isArray(label)) return label as Record<string, unknown>
  throw labelFault('ifeval', 'ground_truth', 'an object with instruction_id and kwargs', groundTruth)
}

function literal(text: string): unknown {
  try {
    return parsePythonLiteral(text)
  } catch {
    throw labelFault('ifeval', 'ground_truth', 'JSON or a Python literal', text)
  }
}
