// Competition mathematics (MATH and its like): the final answer equals the label in meaning. Published code compares
// with SymPy, which in its worker threads silently fails; here the comparison is by exact and floating-point arithmetic
// of our own, bounded in time. The published string rules accept, too, so that nothing is refused that they accept.

import { answerCandidates, boxedAnswer, boxedList } from './math_answer.js'
import { equalAnswers } from './math_equal.js'
import { hendrycksEqual, minervaAnswer, normalizeFinalAnswer } from './math_published.js'
import { withoutThinking } from './thinking.js'
import {
  accepted,
  excerpt,
  labelFault,
  refused,
  truthText,
  type Verdict,
  type Verifier,
  type VerifyInput,
} from './verifier.js'

/** The label itself, or what a worked solution as label has in its box. */
function truthOf(name: string, groundTruth: unknown): string {
  const text = truthText(name, groundTruth)
  const truth = (boxedList(text) ?? boxedAnswer(text) ?? text).trim()
  if (truth === '') throw labelFault(name, 'ground_truth', 'an answer', groundTruth)
  return truth
}

/** Accepts a completion of which a stated answer equals the label in meaning. */
export const math: Verifier = {
  name: 'math',
  summary: 'the boxed (or otherwise final) answer equals the label in meaning',
  verify({ completion, groundTruth }: VerifyInput): Verdict {
    const truth = truthOf('math', groundTruth)
    const candidates = answerCandidates(withoutThinking(completion))
    if (candidates.length === 0) return refused('the completion states no answer')
    const right = candidates.find((answer) => isRight(answer, truth))
    if (right !== undefined) return accepted(`the answer is ${excerpt(truth)}`, excerpt(right, 200))
    return refused(`expected ${excerpt(truth)}, got ${excerpt(candidates[0]!)}`, excerpt(candidates[0]!, 200))
  },
}

function isRight(answer: string, truth: string): boolean {
  return answer.trim() === truth || hendrycksEqual(answer, truth) || equalAnswers(answer, truth)
}

/** Accepts a completion whose "Final Answer" line, or whole text, is the label after Minerva's normalisation. */
export const strictMath: Verifier = {
  name: 'strict_math',
  summary: 'the published strict rule: the "Final Answer: The final answer is" line, in Minerva\'s normal form',
  verify({ completion, groundTruth }: VerifyInput): Verdict {
    const truth = truthOf('strict_math', groundTruth)
    const stated = minervaAnswer(completion) ?? completion
    if (stated.length > 4000) return refused('the completion has no "Final Answer" line')
    const answer = normalizeFinalAnswer(stated)
    if (isRight(answer, truth)) return accepted(`the answer is ${excerpt(truth)}`, excerpt(answer, 200))
    return refused(`expected ${excerpt(truth)}, got ${excerpt(answer)}`, excerpt(answer, 200))
  },
}
