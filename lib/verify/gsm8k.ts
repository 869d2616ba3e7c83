// Grade-school mathematics (GSM8K): one number is the answer. Numbers are compared by value ("$18.00" is 18, "-3" keeps
// its sign); the two string rules that were published with Tulu 3 are here too, to reproduce figures made with them.

import { firstNumber, lastNumber, type NumberValue, numberText, sameNumber } from './number_text.js'
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

const MARKER = '####'

/**
 * The number that a solution ends with: the first one after its last `####` on that line, else its last number.
 * Undefined where it has none. Linear time.
 */
export function answerNumber(solution: string): NumberValue | undefined {
  const marker = solution.lastIndexOf(MARKER)
  if (marker >= 0) {
    const lineEnd = solution.indexOf('\n', marker)
    const marked = firstNumber(solution, marker + MARKER.length, lineEnd < 0 ? solution.length : lineEnd)
    if (marked !== undefined) return marked.value
  }
  return lastNumber(solution)?.value
}

/** Accepts a completion whose answer has the value of the label: a number, or a worked solution that ends in one. */
export const gsm8k: Verifier = {
  name: 'gsm8k',
  summary: 'the number after ####, else the last number, equals the label in value',
  verify({ completion, groundTruth }: VerifyInput): Verdict {
    const truth = answerNumber(truthText('gsm8k', groundTruth))
    if (truth === undefined) throw labelFault('gsm8k', 'ground_truth', 'a number, or text with one', groundTruth)
    const given = answerNumber(completion)
    if (given === undefined) return refused('the completion has no number')
    const text = numberText(given)
    if (sameNumber(given, truth)) return accepted(`the answer is ${excerpt(text)}`, text)
    return refused(`expected ${excerpt(numberText(truth))}, got ${excerpt(text)}`, excerpt(text, 200))
  },
}

/** Which published rule: v1 of the Tulu 3 release (integers lose their sign), v2 of its later form. */
export type PublishedRule = 'v1' | 'v2'

// Linear: a run of digits that a first alternative gives up on is taken whole by the second.
const NUMBERS = { v1: /[-+]?\p{Nd}*\.\p{Nd}+|\p{Nd}+/gu, v2: /[-+]?\p{Nd}*\.\p{Nd}+|[-+]?\p{Nd}+/gu }
const TURN = '<|assistant|>\n'

/** The answer as the published rule cuts it out: the last number as it is written, or the whole text without one. */
export function publishedAnswer(completion: string, rule: PublishedRule): string {
  const turn = rule === 'v1' ? completion.lastIndexOf(TURN) : -1
  const answer = rule === 'v1' ? completion.slice(turn < 0 ? 0 : turn + TURN.length).trim() : completion
  let last: string | undefined
  for (const [number] of answer.replace(/(\p{Nd}),(\p{Nd})/gu, '$1$2').matchAll(NUMBERS[rule])) last = number
  return last ?? answer
}

/** A verifier with a published rule: the extracted text equals the label as text, without regard to case. */
export function publishedGsm8k(rule: PublishedRule): Verifier {
  const name = `gsm8k_${rule}`
  return {
    name,
    summary: `the published string rule ${rule} of Tulu 3 ("18.00" is not "18")`,
    verify({ completion, groundTruth }: VerifyInput): Verdict {
      const truth = truthText(name, groundTruth)
      const given = publishedAnswer(completion, rule)
      if (given.toLowerCase() === truth.toLowerCase()) return accepted(`the answer is ${excerpt(given)}`, given)
      return refused(`expected ${excerpt(truth)}, got ${excerpt(given)}`, excerpt(given, 200))
    },
  }
}
