// Judges preference tuning and the reward model of the pocket run on composed pairs that neither has seen, by kind.
import type { EncodedPairs } from '../data/pairs.js'
import { implicitReward, type PreferenceLoss } from '../losses/preference.js'
import { answerLogprobs } from '../methods/answer_logprobs.js'
import { type CausalLm, loadModel, type RewardModel } from '../models/index.js'
import { type ChatText, encodedPairsOf } from './chat_data.js'
import { pocketData } from './pocket_data.js'
import { type PairShares, pocketGates, pocketTable } from './pocket_eval.js'
import { measurePocket, pocketSamples } from './pocket_judge.js'
import type { PairKind } from './pocket_pairs.js'
import type { PreparedStage, StageContext } from './prepared_stage.js'
import { pairScores } from './reward_scores.js'
import type { DpoSettings, RewardSettings } from './stage.js'

/** Pairs after those of the training set. */
const HELD_OUT_PAIRS = 400

interface HeldPairs {
  pairs: EncodedPairs
  kinds: readonly PairKind[]
}

async function heldPairs(
  text: ChatText,
  settings: DpoSettings | RewardSettings,
  context: StageContext,
): Promise<HeldPairs> {
  const rows = pocketData(context.seed)
    .pairs(settings.rows + HELD_OUT_PAIRS)
    .slice(settings.rows)
  return {
    pairs: await encodedPairsOf(text, { rows, settings, signal: context.signal }),
    kinds: rows.map(({ kind }) => kind),
  }
}

/** Shares of pairs for which `prefers` holds. */
function shares({ kinds }: HeldPairs, prefers: (pair: number) => boolean): PairShares {
  const of = (kind?: PairKind) => {
    const chosen = kinds.flatMap((own, pair) => (kind === undefined || own === kind ? [pair] : []))
    return chosen.filter(prefers).length / chosen.length
  }
  return { all: of(), problem: of('problem'), instruction: of('instruction') }
}

/** Mean log-probability per token of each answer. */
async function meanLogprobs(model: CausalLm, { pairs }: HeldPairs, options: { tokens: number; signal?: AbortSignal }) {
  const sums = await answerLogprobs(model, pairs, options)
  return { sums, means: sums.map((sum, side) => sum / pairs.sides.targetsOf(side)) }
}

const prefersChosen = (scores: ArrayLike<number>) => (pair: number) => scores[2 * pair]! > scores[2 * pair + 1]!

/** Samples and gates of the preference stage. The gates compare with the policy as it was, read again from its folder
 *  when they are judged. */
export async function judgePairs(
  loaded: ChatText & { model: CausalLm },
  settings: DpoSettings,
  context: StageContext,
): Promise<Pick<PreparedStage, 'samples' | 'gates'>> {
  return {
    samples: await pocketSamples(context.stage, loaded),
    async gates({ signal }) {
      const held = await heldPairs(loaded, settings, context)
      const options = { tokens: settings.microBatchTokens, signal }
      using start = await loadModel(loaded.model.device, settings.model, { dtype: context.dtype })
      const before = await meanLogprobs(start, held, options)
      const after = await meanLogprobs(loaded.model, held, options)
      const answersBefore = await measurePocket({ ...loaded, model: start }, { signal })
      const answersAfter = await measurePocket(loaded, { signal })
      const loss = { ...settings, loss: settings.loss as PreferenceLoss }
      const rewards = after.sums.map((sum, side) =>
        implicitReward({ sum, reference: before.sums[side]!, length: held.pairs.sides.targetsOf(side) }, loss),
      )
      const change = (parity: number) =>
        after.means.reduce((total, mean, side) => total + (side % 2 === parity ? mean - before.means[side]! : 0), 0) /
        held.pairs.count
      const metrics = {
        before: answersBefore,
        after: answersAfter,
        likelihoodBefore: shares(held, prefersChosen(before.means)),
        likelihoodAfter: shares(held, prefersChosen(after.means)),
        reward: shares(held, prefersChosen(rewards)),
        chosenChange: change(0),
        rejectedChange: change(1),
      }
      const table = {
        ...Object.fromEntries(pocketTable(answersAfter)),
        ...named('likelihood accuracy, before', metrics.likelihoodBefore),
        ...named('likelihood accuracy', metrics.likelihoodAfter),
        ...named('reward accuracy', metrics.reward),
        'chosen log-probability, change': metrics.chosenChange,
        'rejected log-probability, change': metrics.rejectedChange,
      }
      return { gates: pocketGates('dpo', metrics), metrics: table }
    },
  }
}

/** Gates of the reward model. */
export function judgeRewards(
  loaded: ChatText & { model: RewardModel },
  settings: RewardSettings,
  context: StageContext,
): Pick<PreparedStage, 'gates'> {
  return {
    async gates({ signal }) {
      const held = await heldPairs(loaded, settings, context)
      const scores = await pairScores(loaded.model, held.pairs, { tokens: settings.microBatchTokens, signal })
      const accuracy = shares(held, prefersChosen(scores))
      return { gates: pocketGates('reward_model', accuracy), metrics: named('reward accuracy', accuracy) }
    },
  }
}

function named(name: string, { all, problem, instruction }: PairShares): Record<string, number> {
  return { [name]: all, [`${name}, problem pairs`]: problem, [`${name}, instruction pairs`]: instruction }
}
