// The form of answers that reason first: `<think>...</think>`, then `<answer>...</answer>`, each once, in this order.

import { accepted, refused, type Verdict, type Verifier, type VerifyInput } from './verifier.js'

const TAGS = ['<think>', '</think>', '<answer>', '</answer>'] as const

/** What keeps a completion from the form, or undefined. Linear time. */
export function formFault(completion: string): string | undefined {
  let at = 0
  for (const tag of TAGS) {
    const found = completion.indexOf(tag)
    if (found < 0) return `${tag} is missing`
    if (completion.indexOf(tag, found + tag.length) >= 0) return `${tag} occurs more than once`
    if (found < at) return `${tag} stands too early`
    at = found + tag.length
  }
  const [think, thinkEnd, answer, answerEnd] = TAGS.map((tag) => completion.indexOf(tag)) as [
    number,
    number,
    number,
    number,
  ]
  const between = (from: number, to: number) => completion.slice(from, to).trim()
  if (between(0, think) !== '') return 'there is text before <think>'
  if (between(thinkEnd + '</think>'.length, answer) !== '') return 'there is text between </think> and <answer>'
  if (between(answerEnd + '</answer>'.length, completion.length) !== '') return 'there is text after </answer>'
  return between(answer + '<answer>'.length, answerEnd) === '' ? 'the answer is empty' : undefined
}

/** Accepts a completion of the form, whatever it says. A prompt that ends in `<think>` counts as its beginning. */
export const thinkFormat: Verifier = {
  name: 'format',
  summary: 'the completion is <think>...</think> <answer>...</answer>, each once, with an answer in it',
  verify({ completion, prompt }: VerifyInput): Verdict {
    const isOpened = prompt?.trimEnd().endsWith('<think>') === true && !completion.trimStart().startsWith('<think>')
    const fault = formFault(isOpened ? `<think>${completion}` : completion)
    return fault === undefined ? accepted('the form is kept') : refused(fault)
  },
}
