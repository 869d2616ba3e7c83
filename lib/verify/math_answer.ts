// Where a solution says its answer: in its last box, on the "Final Answer" line, else in its last formula or after "the
// answer is". Every search is linear.

import { minervaAnswer, normalizeFinalAnswer } from './math_published.js'

/** Answers longer than this are no answers. */
const MAX_ANSWER_LENGTH = 4000

const BOXES = ['\\boxed', '\\fbox']
/** Commas, dollars, names ("x = ") and "and". */
const BETWEEN_BOXES =
  /^(?:[\s$,;\\()[\]]|\\q?quad){0,12}(?:and|or|\\text\{ ?(?:and|or) ?\})?(?:[\s$,;\\()[\]a-z=]|_\d){0,16}$/
const MAX_BOXES = 20
const STATEMENT = /(?:answer|Answer|ANSWER)(?: is|:| is:)/g

/** The content of the last box: `\boxed{x}`, `\boxed x` or `\fbox{x}`. One that is not closed is none. */
export function boxedAnswer(solution: string): string | undefined {
  const begin = Math.max(...BOXES.map((box) => solution.lastIndexOf(box)))
  if (begin < 0) return undefined
  let at = solution.startsWith(BOXES[0]!, begin) ? begin + BOXES[0]!.length : begin + BOXES[1]!.length
  while (solution[at] === ' ') at++
  if (solution[at] !== '{') return bareAnswer(solution, at)
  let depth = 0
  for (let end = at; end < solution.length && end - at < MAX_ANSWER_LENGTH; end++) {
    // \{ and \} are signs of sets.
    if (solution[end] === '\\') end++
    else if (solution[end] === '{') depth++
    else if (solution[end] === '}' && --depth === 0) return solution.slice(at + 1, end)
  }
  return undefined
}

/** The boxes of an answer in several, "\boxed{1} and \boxed{2}", as one list; undefined for a single box. */
export function boxedList(solution: string): string | undefined {
  const answers: string[] = []
  let end = solution.length
  for (let begin = solution.lastIndexOf(BOXES[0]!); begin >= 0; ) {
    const answer = boxedAnswer(solution.slice(begin, end))
    const close = answer === undefined ? -1 : solution.indexOf(answer, begin) + answer.length + 1
    const isNear = answers.length === 0 || BETWEEN_BOXES.test(solution.slice(close, Math.min(end, close + 41)))
    if (answer === undefined || !isNear || answers.length === MAX_BOXES) break
    answers.unshift(answer)
    end = begin
    begin = begin === 0 ? -1 : solution.lastIndexOf(BOXES[0]!, begin - 1)
  }
  return answers.length > 1 ? answers.join(', ') : undefined
}

/** `\boxed 5$`: up to the end of the formula. */
function bareAnswer(solution: string, begin: number): string | undefined {
  const rest = solution.slice(begin, begin + MAX_ANSWER_LENGTH)
  const [answer = ''] = /^[^$\n]*/.exec(rest) ?? []
  return answer.trim() === '' ? undefined : answer.trim()
}

/** What is between the last two dollars, or in the last `\( \)` or `\[ \]`. */
function lastFormula(solution: string): string | undefined {
  const found: [begin: number, end: number][] = []
  const close = solution.lastIndexOf('$')
  // $$x$$ has two dollars at each end.
  const end = solution[close - 1] === '$' ? close - 1 : close
  const open = end > 0 ? solution.lastIndexOf('$', end - 1) : -1
  if (open >= 0) found.push([open + 1, end])
  for (const [left, right] of [
    ['\\(', '\\)'],
    ['\\[', '\\]'],
  ] as const) {
    const to = solution.lastIndexOf(right)
    const from = to < 0 ? -1 : solution.lastIndexOf(left, to)
    if (from >= 0) found.push([from + left.length, to])
  }
  const last = found.sort((a, b) => a[1] - b[1]).at(-1)
  return last && last[1] - last[0] <= MAX_ANSWER_LENGTH ? solution.slice(last[0], last[1]) : undefined
}

/** What follows the last "answer is" or "Answer:" on its line. */
function statedAnswer(solution: string): string | undefined {
  let begin = -1
  for (const match of solution.matchAll(STATEMENT)) begin = match.index + match[0].length
  if (begin < 0) return undefined
  const [line = ''] = /^[^\n]*/.exec(solution.slice(begin, begin + MAX_ANSWER_LENGTH)) ?? []
  const answer = line.replaceAll('**', '').trim()
  return answer === '' ? undefined : answer.replace(/^[:\s]{1,4}/, '').replace(/\.$/, '')
}

/**
 * The texts that may be the answer, best first. Where a box or a final line says it, they alone count; else the last
 * formula, what follows "the answer is", and the whole of a short completion.
 */
export function answerCandidates(solution: string): string[] {
  const minerva = minervaAnswer(solution)
  const said = [
    boxedAnswer(solution),
    boxedList(solution),
    minerva,
    minerva === undefined || minerva.length > MAX_ANSWER_LENGTH ? undefined : normalizeFinalAnswer(minerva),
  ]
  const found = said.filter((one) => one !== undefined && one.length <= MAX_ANSWER_LENGTH) as string[]
  if (found.length > 0) return [...new Set(found)]
  const guesses = [lastFormula(solution), statedAnswer(solution)].filter((one) => one !== undefined)
  const short = solution.trim()
  if (guesses.length === 0 && short !== '' && short.length <= MAX_ANSWER_LENGTH) guesses.push(short)
  return [...new Set(guesses.flatMap((one) => [one, normalizeFinalAnswer(one)]))]
}
