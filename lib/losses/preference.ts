// Losses on preference pairs that need per-token log-probabilities: DPO and its relatives. One op serves all of them;
// what differs is what is summed, what is subtracted and the shape of the curve.
import { CaravanError } from '../base/errors.js'
import { type PreferenceKind, preferenceKinds, preferenceLossOp } from '../ops/index.js'
import type { Tensor } from '../tensor/index.js'

interface Form {
  kind: PreferenceKind
  /** Mean log-probability per token instead of the sum. */
  average: boolean
  /** Compares with a reference model. */
  reference: boolean
  /** Weights each pair by its likelihood under the policy. */
  weighted?: boolean
}

/** dpo: Rafailov et al. 2023. dpo_norm: on mean log-probabilities, what Tulu 3 trained with. simpo: Meng et al. 2024.
 *  ipo: Azar et al. 2023 on means, as TRL does since its authors' advice; ipo_sum: on sums, as printed. hinge: SLiC,
 *  Zhao et al. 2023. robust: Chowdhury et al. 2024. wpo: Zhou et al. 2024, weight min(1, exp(mean chosen + mean
 *  rejected)). */
const forms = {
  dpo: { kind: 'sigmoid', average: false, reference: true },
  dpo_norm: { kind: 'sigmoid', average: true, reference: true },
  simpo: { kind: 'sigmoid', average: true, reference: false },
  ipo: { kind: 'ipo', average: true, reference: true },
  ipo_sum: { kind: 'ipo', average: false, reference: true },
  hinge: { kind: 'hinge', average: false, reference: true },
  robust: { kind: 'robust', average: false, reference: true },
  wpo: { kind: 'sigmoid', average: false, reference: true, weighted: true },
} as const satisfies Record<string, Form>

export type PreferenceLoss = keyof typeof forms
export const preferenceLosses = Object.keys(forms) as readonly PreferenceLoss[]

export interface PreferenceLossOptions {
  loss: PreferenceLoss
  /** Scale of the implicit reward, above 0. */
  beta: number
  /** simpo: target margin divided by beta, from 0. */
  gammaBetaRatio: number
  /** Share of pairs whose label is taken to be wrong, in [0, 0.5); sigmoid losses and robust. */
  labelSmoothing: number
  /** Leaves out the reference where the loss would have one. */
  referenceFree: boolean
}

/** ERR_CONFIG for numbers with which a loss has no meaning. */
export function checkPreferenceOptions(options: PreferenceLossOptions): void {
  const { loss, beta, gammaBetaRatio, labelSmoothing } = options
  if (!(beta > 0) || !Number.isFinite(beta)) throw wrong('beta', 'above 0', beta)
  if (!(gammaBetaRatio >= 0)) throw wrong('gammaBetaRatio', 'at least 0', gammaBetaRatio)
  if (!(labelSmoothing >= 0 && labelSmoothing < 0.5)) throw wrong('labelSmoothing', 'in [0, 0.5)', labelSmoothing)
  const { kind } = forms[loss]
  if (labelSmoothing > 0 && (kind === 'hinge' || kind === 'ipo')) {
    throw wrong('labelSmoothing', `0 with the loss ${loss}, which has no smoothed form`, labelSmoothing)
  }
}

function wrong(name: string, rule: string, value: number): CaravanError {
  return new CaravanError('ERR_CONFIG', `${name} must be ${rule}; got ${value}`, { details: { [name]: value } })
}

/** Whether `options` compare the policy with a reference model. */
export function needsReference({ loss, referenceFree }: PreferenceLossOptions): boolean {
  return forms[loss].reference && !referenceFree
}

/** Sum of the loss over pairs, a tensor [1], and the sums `preferenceMetrics` [8], from logp [N]. `spans` [P,2,3] i32
 *  and `reference` [P,2] f64 (zeros without a reference) as in preferenceLossOp. */
export function preferenceLoss(
  logp: Tensor,
  { spans, reference }: { spans: Tensor; reference: Tensor },
  options: PreferenceLossOptions,
): { sum: Tensor; metrics: Tensor } {
  const { kind, average, weighted = false }: Form = forms[options.loss]
  const { loss, metrics } = preferenceLossOp({
    logp,
    spans,
    reference,
    kind: preferenceKinds.indexOf(kind),
    beta: options.beta,
    margin: options.loss === 'simpo' ? options.gammaBetaRatio : 0,
    smoothing: options.labelSmoothing,
    average: Number(average),
    weighted: Number(weighted),
  })
  return { sum: loss, metrics }
}

/** beta (L(policy) - L(reference)) of one answer of `length` tokens, L as the loss has it: the reward that a policy
 *  implies (Rafailov et al. 2023, eq. 5). */
export function implicitReward(
  answer: { sum: number; reference: number; length: number },
  { loss, beta, referenceFree }: PreferenceLossOptions,
): number {
  const { average, reference }: Form = forms[loss]
  const gain = answer.sum - (reference && !referenceFree ? answer.reference : 0)
  return beta * (average ? gain / Math.max(1, answer.length) : gain)
}
