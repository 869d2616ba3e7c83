// Tokenised preference pairs as batches: both answers of a pair lie in one row, so that their loss needs no other.
import { AnswerLayout, type AnswerRows } from './answer_layout.js'
import type { EncodedExamples } from './encoded.js'
import type { BatchSource } from './loader.js'
import type { PackPlan } from './pack.js'

/** A padding-free row that holds P pairs: answer 2p is the chosen one of pair p, 2p+1 the rejected one. */
export interface PairBatch extends AnswerRows {
  /** [P]: which pairs these are. */
  pairs: Int32Array
}

/** Pair i is example 2i (chosen) and 2i+1 (rejected) of `sides`. With `sharePrompt` the tokens that both sides begin
 *  with, up to the last one before an answer, are laid down once. */
export class EncodedPairs implements BatchSource<PairBatch> {
  readonly count: number
  readonly whole = true

  constructor(
    readonly sides: EncodedExamples,
    private readonly sharePrompt: boolean,
  ) {
    this.count = sides.count / 2
  }

  /** Tokens that go through the model for a pair. */
  lengthOf(pair: number): number {
    return this.sides.lengthOf(2 * pair) + this.sides.lengthOf(2 * pair + 1) - this.sharedOf(pair)
  }

  /** 0 where a side has no token to be predicted. */
  targetsOf(pair: number): number {
    const [chosen, rejected] = [this.sides.targetsOf(2 * pair), this.sides.targetsOf(2 * pair + 1)]
    return chosen > 0 && rejected > 0 ? chosen + rejected : 0
  }

  /** Tokens of the prompt that are computed once instead of twice. */
  sharedOf(pair: number): number {
    if (!this.sharePrompt) return 0
    const [chosen, rejected] = [this.sides.idsOf(2 * pair), this.sides.idsOf(2 * pair + 1)]
    // The token before an answer predicts something else on each side, so it stays with its side.
    const most = Math.min(firstTarget(this.sides.maskOf(2 * pair)), firstTarget(this.sides.maskOf(2 * pair + 1))) - 1
    let shared = 0
    while (shared < most && chosen[shared] === rejected[shared]) shared++
    return shared
  }

  pack(plan: PackPlan, row: number): PairBatch {
    const pairs = plan.example.slice(plan.rowOffsets[row], plan.rowOffsets[row + 1])
    const tokens = pairs.reduce((sum, pair) => sum + this.lengthOf(pair), 0)
    const layout = new AnswerLayout({ tokens, answers: 2 * pairs.length })
    for (const pair of pairs) {
      const shared = this.sharedOf(pair)
      layout.addPrompt(this.sides.idsOf(2 * pair).subarray(0, shared))
      for (const side of [2 * pair, 2 * pair + 1]) {
        layout.addAnswer(this.sides.idsOf(side).subarray(shared), this.sides.maskOf(side).subarray(shared))
      }
    }
    return { ...layout.finish(), pairs }
  }

  targetsIn(plan: PackPlan, row: number): number {
    const pairs = plan.example.subarray(plan.rowOffsets[row], plan.rowOffsets[row + 1])
    return pairs.reduce((sum, pair) => sum + this.targetsOf(pair), 0)
  }
}

/** Position of the first predicted token; the length where there is none. A first token never is. */
function firstTarget(mask: Uint8Array): number {
  const first = mask.indexOf(1, 1)
  return first < 0 ? mask.length : first
}
