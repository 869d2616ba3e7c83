// Answers that are compared as text after SQuAD's normalisation: lower case, without ASCII punctuation and the words
// a, an, the.

import { withoutThinking } from './thinking.js'
import { accepted, excerpt, refused, truthTexts, type Verdict, type Verifier, type VerifyInput } from './verifier.js'

const PUNCTUATION = /[!-/:-@[-`{-~]/g
const ARTICLES = new Set(['a', 'an', 'the'])

/** The words that are compared. Linear time. */
export function normalizedWords(text: string): string[] {
  const words = text.toLowerCase().replace(PUNCTUATION, '').split(/\s+/)
  return words.filter((word) => word !== '' && !ARTICLES.has(word))
}

/** F1 of two bags of words: 1 where they are equal, 0 where they share none. Two empty ones are equal. */
export function wordF1(given: readonly string[], wanted: readonly string[]): number {
  if (given.length === 0 || wanted.length === 0) return given.length === wanted.length ? 1 : 0
  const left = new Map<string, number>()
  for (const word of wanted) left.set(word, (left.get(word) ?? 0) + 1)
  let common = 0
  for (const word of given) {
    const count = left.get(word) ?? 0
    if (count > 0) common++
    left.set(word, count - 1)
  }
  return (2 * common) / (given.length + wanted.length)
}

/** The F1 of the words of the answer and of the label; of several labels the best. */
export const stringF1: Verifier = {
  name: 'string_f1',
  summary: 'the overlap (F1) of the words of the answer with those of the label, the best of several labels',
  verify({ completion, groundTruth }: VerifyInput): Verdict {
    const labels = truthTexts('string_f1', groundTruth)
    const answer = withoutThinking(completion)
    const words = normalizedWords(answer)
    const score = Math.max(...labels.map((label) => wordF1(words, normalizedWords(label))))
    return { score, reason: `word F1 ${score.toFixed(3)}`, extracted: excerpt(answer, 200) }
  },
}

/** Accepts an answer whose words, in order, are those of the label or of one of several. */
export const stringMatch: Verifier = {
  name: 'string_match',
  summary: 'the answer, after thinking, is the label but for case, punctuation and articles',
  verify({ completion, groundTruth }: VerifyInput): Verdict {
    const labels = truthTexts('string_match', groundTruth)
    const answer = withoutThinking(completion)
    const words = normalizedWords(answer).join(' ')
    const isMatch = labels.some((label) => normalizedWords(label).join(' ') === words)
    if (isMatch) return accepted('the answer is the label', excerpt(answer, 200))
    return refused(`expected ${excerpt(labels.join(' or '))}, got ${excerpt(answer)}`, excerpt(answer, 200))
  },
}
