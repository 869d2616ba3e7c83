// Questions about single facts of the pocket world, half of them after a greeting, answered in one sentence.

import type { Random } from '../base/random.js'
import { containsPhrase } from '../verify/instruction_constraints.js'
import type { Fact } from './pocket_world.js'

export interface PocketQuestion {
  prompt: string
  fact: Fact
}

const GREETING_SHARE = 0.5
const GREETINGS = ['Hello!', 'Please help.', 'Quick question:']

/** Draws one of the three question forms, after a greeting half the time: 12 prompts a fact. */
export function drawQuestion(random: Random, fact: Fact): PocketQuestion {
  const question = random.choice(fact.questions)
  const prompt = random.chance(GREETING_SHARE) ? `${random.choice(GREETINGS)} ${question}` : question
  return { prompt, fact }
}

/** Every prompt that `drawQuestion` can draw for a fact. */
export function questionPrompts(fact: Fact): string[] {
  return fact.questions.flatMap((question) => [question, ...GREETINGS.map((greeting) => `${greeting} ${question}`)])
}

/** One of the three sentences that state the fact. */
export function drawChatAnswer(random: Random, fact: Fact): string {
  return random.choice(fact.statements)
}

/** The chat metric: whether the right value occurs in the answer as whole words, in any case. */
export function statesValue(answer: string, fact: Fact): boolean {
  return containsPhrase(answer, fact.value)
}
