// The built-in tasks that are answered by writing. Verifiers are those of training, so that a reward and a benchmark
// can never disagree about an answer.
import type { JsonObject } from '../data/json_lines.js'
import type { RowPlace } from '../data/rows.js'
import { gsm8k as gsm8kVerifier } from '../verify/gsm8k.js'
import { ifeval as ifevalVerifier } from '../verify/ifeval.js'
import { MATH_VOTES, NUMBER_VOTES } from '../verify/majority_vote.js'
import { math as mathVerifier } from '../verify/math.js'
import { GSM8K_EXEMPLARS, MATH_EXEMPLARS } from './exemplars.js'
import { type GenerationTask, type Problem, rowFault, textOf } from './task.js'

const asQuestion = (question: string) => `Question: ${question}\nAnswer:`
const asProblem = (problem: string) => `Problem:\n${problem}\n\nSolution:`

/** Grade-school mathematics (Cobbe et al. 2021): 1319 rows with `question` and `answer`. */
export const gsm8kTask: GenerationTask = {
  kind: 'generation',
  name: 'gsm8k',
  data: { names: ['gsm8k', 'gsm8k/main'], splits: ['test'] },
  exemplars: GSM8K_EXEMPLARS.map(({ question, answer }) => ({ question: asQuestion(question), answer })),
  shots: 8,
  problem: (row, place) => ({
    question: asQuestion(textOf(row, 'question', place)),
    groundTruth: textOf(row, 'answer', place),
    row,
    place,
  }),
  separator: ' ',
  verifier: gsm8kVerifier,
  votes: NUMBER_VOTES,
  metric: 'accuracy',
  maxTokens: 512,
  stopTexts: ['Question:'],
}

/** Competition mathematics (Hendrycks et al. 2021): rows with `problem` and `solution`, or `answer` alone. */
export const mathTask: GenerationTask = {
  kind: 'generation',
  name: 'math',
  data: { names: ['math', 'MATH', 'math500', 'MATH-500'], splits: ['test'] },
  exemplars: MATH_EXEMPLARS.map(({ question, answer }) => ({ question: asProblem(question), answer })),
  shots: 4,
  problem(row, place): Problem {
    // MATH-500 has the answer apart; the data set itself has it in the box of the solution.
    const label = typeof row.answer === 'string' ? 'answer' : 'solution'
    return {
      question: asProblem(textOf(row, 'problem', place)),
      groundTruth: textOf(row, label, place),
      row,
      place,
    }
  },
  separator: '\n',
  verifier: mathVerifier,
  votes: MATH_VOTES,
  metric: 'accuracy',
  maxTokens: 1024,
  stopTexts: ['Problem:'],
}

/** Instructions that a program checks (Zhou et al. 2023): 541 rows of `prompt`, `instruction_id_list`, `kwargs`. */
export const ifevalTask: GenerationTask = {
  kind: 'generation',
  name: 'ifeval',
  data: { names: ['ifeval', 'IFEval'], splits: ['test', 'prompts', 'input_data', 'train'] },
  exemplars: [],
  shots: 0,
  problem(row: JsonObject, place: RowPlace): Problem {
    if (!Array.isArray(row.instruction_id_list)) {
      throw rowFault(place, 'instruction_id_list', 'must be a list of instruction ids')
    }
    return { question: textOf(row, 'prompt', place), groundTruth: undefined, row, place }
  },
  separator: '\n',
  verifier: ifevalVerifier,
  metric: 'instructions',
  maxTokens: 2048,
  stopTexts: [],
}
