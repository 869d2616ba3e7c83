// Composed preference pairs of the pocket run: a right answer and one that is subtly wrong, in the same words and
// layout, so that nothing but the fault tells them apart.
import type { Random } from '../base/random.js'
import { composeAnswer, composeBroken, type PocketInstruction } from './pocket_instructions.js'
import { hastySolution, type PocketProblem, rightSolution, SOLUTION_LAYOUTS, wrongSolution } from './pocket_problems.js'
import type { PocketWorld } from './pocket_world.js'

export type PairKind = 'problem' | 'instruction'

/** A pair as its row in a file would be, with what it teaches. */
export interface PocketPair extends Record<string, unknown> {
  prompt: string
  chosen: string
  rejected: string
  kind: PairKind
}

/** Few: at one half the model learns to show its work on every problem, and nothing is left for the stage after. */
const HASTY_SHARE = 0.1

/** A worked solution against one with a slip, a wrong operator, a step left out or another final number; or against an
 *  answer without steps, which is how most wrong answers of the fine-tuned model look. */
export function problemPair(random: Random, problem: PocketProblem): PocketPair {
  const layout = random.choice(SOLUTION_LAYOUTS)
  const wrong = wrongSolution(random, problem, layout)
  const rejected = random.chance(HASTY_SHARE) ? hastySolution(random, { ...problem, answer: wrong.answer }) : wrong.text
  return { prompt: problem.prompt, chosen: rightSolution(problem, layout), rejected, kind: 'problem' }
}

/** An answer that keeps every constraint against one that breaks one; undefined where the composer finds none. */
export function instructionPair(
  random: Random,
  world: PocketWorld,
  { prompt, truth }: PocketInstruction,
): PocketPair | undefined {
  const chosen = composeAnswer(random, world, truth)
  const rejected = composeBroken(random, world, truth)?.text
  if (chosen === undefined || rejected === undefined || chosen === rejected) return undefined
  return { prompt, chosen, rejected, kind: 'instruction' }
}
