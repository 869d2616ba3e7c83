// Questions with lettered options. The letter is read where answers state it ("The answer is (B).", "\boxed{B}",
// "**B**", a line of its own); a letter inside prose ("A dog ...") is not an answer.

import { withoutThinking } from './thinking.js'
import { accepted, labelFault, refused, truthText, type Verdict, type Verifier, type VerifyInput } from './verifier.js'

const LETTER = '[(\\[{*$"\\u201c\\s]{0,8}([A-Z])(?![\\p{L}\\p{N}])'
// Bounded patterns: linear time. In each the last match counts, for a model may correct itself.
const STATEMENTS = [
  new RegExp(`\\\\boxed\\s?\\{?(?:\\\\text\\s?\\{)?${LETTER}`, 'gu'),
  new RegExp(`(?:[Aa]nswer|ANSWER|[Cc]hoice|[Oo]ption)(?: is| would be|:)?:?${LETTER}(?![ ]\\p{Ll})`, 'gu'),
]
const ALONE = /^[\s([{*"]{0,8}([A-Z])[)\]}*".:\s]{0,8}$/u
const AT_LINE_START = /^[\s([{*"]{0,8}([A-Z])[)\].:]/u
const MAX_LINE = 2000

/** The letter that an answer states, in capitals, or undefined. */
export function chosenLetter(answer: string): string | undefined {
  for (const pattern of STATEMENTS) {
    let last: string | undefined
    for (const match of answer.matchAll(pattern)) last = match[1]
    if (last !== undefined) return last
  }
  const text = answer.trim()
  const lastLine = text.slice(text.lastIndexOf('\n') + 1).slice(0, MAX_LINE)
  const firstLine = text.slice(0, MAX_LINE)
  return ALONE.exec(lastLine)?.[1] ?? AT_LINE_START.exec(firstLine)?.[1] ?? AT_LINE_START.exec(lastLine)?.[1]
}

/** Accepts an answer that states the letter of the label. */
export const multipleChoice: Verifier = {
  name: 'multiple_choice',
  summary: 'the option letter that the answer states is that of the label',
  verify({ completion, groundTruth }: VerifyInput): Verdict {
    const truth = /^\s*\(?([A-Za-z])\)?\.?\s*$/.exec(truthText('multiple_choice', groundTruth))?.[1]?.toUpperCase()
    if (truth === undefined) throw labelFault('multiple_choice', 'ground_truth', 'one letter', groundTruth)
    const given = chosenLetter(withoutThinking(completion))
    if (given === undefined) return refused('the completion states no option')
    return given === truth
      ? accepted(`the answer is ${given}`, given)
      : refused(`expected ${truth}, got ${given}`, given)
  },
}
