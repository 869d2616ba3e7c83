// Self-consistency: of several completions for one problem, the answer that most of them agree on.

import { answerNumber } from './gsm8k.js'
import { answerCandidates } from './math_answer.js'
import { equalAnswers } from './math_equal.js'
import { hendrycksEqual } from './math_published.js'
import { numberText } from './number_text.js'

export interface VoteRules {
  /** The answer of a completion, or undefined where it has none: it then has no vote. */
  extract: (completion: string) => string | undefined
  isSame: (a: string, b: string) => boolean
}

export interface Majority {
  /** The most frequent answer, as its first completion has it. Undefined where no completion has an answer. */
  answer: string | undefined
  votes: number
  /** Share of all completions, those without an answer included. */
  share: number
  /** Indices of the completions that give it. */
  voters: number[]
}

/** Votes about numbers (GSM8K) and about any mathematics. */
export const NUMBER_VOTES: VoteRules = {
  extract: (completion) => {
    const value = answerNumber(completion)
    return value && numberText(value)
  },
  isSame: (a, b) => a === b,
}
export const MATH_VOTES: VoteRules = {
  extract: (completion) => answerCandidates(completion)[0],
  isSame: (a, b) => a === b || hendrycksEqual(a, b) || equalAnswers(a, b),
}

/** Clusters the answers of `completions`; the largest cluster wins, of equals the one that came first. */
export function majorityVote(completions: readonly string[], rules: VoteRules): Majority {
  const clusters: { answer: string; voters: number[] }[] = []
  for (const [i, completion] of completions.entries()) {
    const answer = rules.extract(completion)
    if (answer === undefined) continue
    const cluster = clusters.find((one) => rules.isSame(one.answer, answer))
    if (cluster === undefined) clusters.push({ answer, voters: [i] })
    else cluster.voters.push(i)
  }
  let best: { answer: string; voters: number[] } | undefined
  for (const cluster of clusters) if (best === undefined || cluster.voters.length > best.voters.length) best = cluster
  const votes = best?.voters.length ?? 0
  const share = completions.length === 0 ? 0 : votes / completions.length
  return { answer: best?.answer, votes, share, voters: best?.voters ?? [] }
}
