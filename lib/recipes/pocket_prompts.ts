// Fresh prompts of the pocket run for every rollout: word problems and instructions in a fixed proportion.
import { Random } from '../base/random.js'
import { pocketData } from './pocket_data.js'
import type { UnencodedPrompt } from './prompt_data.js'

export interface PocketPromptOptions {
  rollout: number
  /** Prompts of a rollout. */
  size: number
  /** Share of instructions among them. */
  instructionShare: number
}

/** Stream of the orders of problems and instructions. */
const ORDER_STREAM = 0x9805

/** The prompts of one rollout; those of different rollouts do not overlap in their draws. */
export function pocketPrompts(
  seed: number,
  { rollout, size, instructionShare }: PocketPromptOptions,
): UnencodedPrompt[] {
  const data = pocketData(seed)
  const instructions = Math.round(size * instructionShare)
  const problems = size - instructions
  const drawn = [
    ...first(problems, data.problems('rl', rollout * problems)).map(({ prompt, answer }) =>
      labelled(prompt, 'problem_answer', answer),
    ),
    ...first(instructions, data.instructions('rl', rollout * instructions)).map(({ prompt, truth }) =>
      labelled(prompt, 'instruction_constraints', truth),
    ),
  ]
  return new Random(seed, ORDER_STREAM, rollout * 2 ** 24).shuffle(drawn)
}

function labelled(prompt: string, verifier: string, groundTruth: unknown): UnencodedPrompt {
  const messages = [{ role: 'user' as const, content: prompt }]
  return { messages, text: prompt, verifier, input: { prompt, groundTruth } }
}

function first<T>(count: number, items: Iterable<T>): T[] {
  const taken: T[] = []
  if (count === 0) return taken
  for (const item of items) {
    taken.push(item)
    if (taken.length === count) break
  }
  return taken
}
