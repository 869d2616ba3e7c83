// A method whose batches come from the policy itself: generate, judge, estimate advantages, then K passes over the
// answers in minibatches, one optimizer step each. What PPO and GRPO differ in is how advantages come about.
import { CaravanError } from '../base/errors.js'
import { Random } from '../base/random.js'
import { checkPolicyOptions, type PolicyLossOptions, policyLoss } from '../losses/policy.js'
import type { CausalLm, RewardModel } from '../models/index.js'
import { policyMetrics } from '../ops/index.js'
import { type Checkpointing, Tensor } from '../tensor/index.js'
import type { Batch, Method, MicroLoss } from './method.js'
import {
  besideRows,
  type PolicyGroup,
  type PolicyMicro,
  type PolicySample,
  policyLogprobs,
  policyRows,
  rowTokensOf,
} from './policy_batch.js'
import type { RolloutOptions, RolloutPrompt } from './rollout.js'
import { rolloutFacts } from './rollout_facts.js'
import { RolloutSource, type Sampled } from './rollout_source.js'

/** What the summed loss of a minibatch is divided by. token: its answer tokens. sequence: each answer by its own
 *  tokens, then its answers. constant: answers times the most new tokens (Liu et al. 2025). */
export const lossAverages = ['token', 'sequence', 'constant'] as const
export type LossAverage = (typeof lossAverages)[number]

export interface OnlineModels {
  policy: CausalLm
  /** Frozen; undefined where nothing is compared with it. */
  reference?: CausalLm
  /** Estimates the return of every state (PPO). */
  value?: RewardModel
  /** Answers in place of the policy, as it was one rollout ago. */
  behaviour?: CausalLm
}

export interface OnlineOptions<P extends RolloutPrompt> extends RolloutOptions<P>, PolicyLossOptions {
  rollouts: number
  /** Passes over the answers of a rollout. */
  updateEpochs: number
  /** Optimizer steps of a pass. */
  miniBatches: number
  average: LossAverage
  /** Tokens that go through a model at once. */
  microBatchTokens: number
  activationCheckpointing: Checkpointing
  /** Steps after which the method ends although there are rollouts left; 0 = all. */
  maxSteps: number
  /** Copies the policy into the behaviour model. */
  refresh?: () => void
  /** Ends the method within a rollout's generation, between two steps. */
  stop?: AbortSignal
}

/** A rollout made ready: the answers to train on, and what is logged about it. */
export interface Prepared {
  groups: PolicyGroup[]
  facts: Record<string, number>
}

export interface OnlineMicro extends PolicyMicro {
  /** What a value counts, so that values are averaged over their own number. */
  valueScale: number
}

interface OnlineState {
  /** Optimizer steps done. */
  done: number
}

/** Stream of the orders in which groups are visited. */
const ORDER_STREAM = 0x0de7

export abstract class OnlineMethod<P extends RolloutPrompt> implements Method<OnlineModels, OnlineMicro> {
  abstract readonly name: string
  readonly unitSeed = true
  readonly metricNames: readonly string[] = policyMetrics
  readonly totalSteps: number
  readonly #stepsPerRollout: number
  #done = 0

  constructor(protected readonly options: OnlineOptions<P>) {
    checkPolicyOptions(options)
    const { rollouts, updateEpochs, miniBatches, maxSteps } = options
    for (const [name, value] of Object.entries({ rollouts, updateEpochs, miniBatches })) {
      if (Number.isInteger(value) && value >= 1) continue
      throw new CaravanError('ERR_CONFIG', `${name} must be a whole number of at least 1; got ${value}`)
    }
    this.#stepsPerRollout = updateEpochs * miniBatches
    const all = rollouts * this.#stepsPerRollout
    this.totalSteps = maxSteps > 0 ? Math.min(maxSteps, all) : all
  }

  /** Numbers of a rollout that depend on models which the coming steps change; they are kept with it. */
  protected measure(_models: OnlineModels, _rollout: Sampled<P>): Promise<Record<string, Float32Array>> {
    return Promise.resolve({})
  }

  /** Advantages of a rollout's answers, and what else their loss needs. */
  protected abstract prepare(
    models: OnlineModels,
    rollout: Sampled<P>,
    numbers: Record<string, Float32Array>,
  ): Promise<Prepared>

  async *batches(models: OnlineModels): AsyncIterable<Batch<OnlineMicro>> {
    const { options } = this
    const signals = [options.signal, options.stop].filter((signal) => signal !== undefined)
    const source = new RolloutSource(
      models,
      {
        ...options,
        refresh: options.refresh ?? (() => {}),
        checkedShare: 1 / options.miniBatches,
        signal: signals.length > 0 ? AbortSignal.any(signals) : undefined,
      },
      Math.ceil(this.totalSteps / this.#stepsPerRollout),
    )
    try {
      while (this.#done < this.totalSteps) {
        const number = Math.floor(this.#done / this.#stepsPerRollout)
        const begun = this.#done % this.#stepsPerRollout
        const rollout = await source.take(number, begun > 0).catch((error: unknown) => {
          if (options.stop?.aborted && !options.signal?.aborted) return undefined
          throw error
        })
        // Stopped between two steps: what is finished of the rollout is in the store.
        if (!rollout) return
        yield* this.#updates(models, { rollout, number, begun })
      }
    } finally {
      await source.close()
    }
  }

  /** The minibatches of a rollout after its first `begun` steps. */
  async *#updates(
    models: OnlineModels,
    { rollout, number, begun }: { rollout: Sampled<P>; number: number; begun: number },
  ): AsyncIterable<Batch<OnlineMicro>> {
    const started = performance.now()
    const { groups, facts } = await this.prepare(models, rollout, await this.#numbers(models, rollout, number))
    const logged = {
      ...rolloutFacts(rollout),
      ...facts,
      'rollout/number': number + 1,
      'rollout/trained_groups': groups.length,
      'rollout/staleness_steps': models.behaviour && number > 0 ? this.#stepsPerRollout : 0,
      'rollout/logprob_diff_max': rollout.logprobDifference,
      'time/generate': rollout.seconds,
      'time/prepare': (performance.now() - started) / 1000,
    }
    const { updateEpochs } = this.options
    for (let epoch = 0, step = 0; epoch < updateEpochs; epoch++) {
      for (const part of this.#minibatches(groups, number * updateEpochs + epoch)) {
        if (step++ < begun) continue
        if (this.#done >= this.totalSteps) return
        this.#done++
        yield this.#batch(part, logged)
      }
    }
  }

  async #numbers(models: OnlineModels, rollout: Sampled<P>, number: number): Promise<Record<string, Float32Array>> {
    if (rollout.numbers) return rollout.numbers
    const measured = await this.measure(models, rollout)
    const numbers = { ...measured, logprobDifference: Float32Array.of(rollout.logprobDifference) }
    await this.options.store?.appendNumbers(number, numbers)
    return numbers
  }

  /** `groups` in a random order of their own for every pass, divided as evenly as it goes; a part may be empty. */
  *#minibatches(groups: readonly PolicyGroup[], pass: number): Generator<PolicyGroup[]> {
    const { miniBatches, seed } = this.options
    const order = new Random(seed, ORDER_STREAM, pass * 2 ** 24).shuffle(groups)
    for (let part = 0; part < miniBatches; part++) {
      const [from, to] = [part, part + 1].map((at) => Math.floor((at * order.length) / miniBatches))
      yield order.slice(from, to)
    }
  }

  #batch(groups: readonly PolicyGroup[], facts: Record<string, number>): Batch<OnlineMicro> {
    const { average, maxNewTokens, microBatchTokens } = this.options
    const counted = groups.flatMap(({ samples }) => samples).filter(({ weight }) => weight > 0)
    const answerTokens = counted.reduce((sum, { tokens }) => sum + tokens.length, 0)
    const values = counted.reduce((sum, { returns }) => sum + (returns?.length ?? 0), 0)
    const count = { token: answerTokens, sequence: counted.length, constant: counted.length * maxNewTokens }[average]
    const valueScale = values === 0 ? 0 : count / values
    return {
      count,
      tokens: groups.reduce((sum, group) => sum + rowTokensOf(group), 0),
      facts,
      microBatches: function* () {
        for (const micro of policyRows(groups, microBatchTokens)) yield { ...micro, valueScale }
      },
    }
  }

  loss(models: OnlineModels, micro: OnlineMicro): MicroLoss {
    const { policy } = models
    const { device } = policy
    const { temperature, activationCheckpointing: checkpoint, average } = this.options
    const logp = policyLogprobs(policy, micro.rows, { temperature, checkpoint })
    const beside = (of: (sample: PolicySample) => ArrayLike<number> | number) => besideRows(device, micro, of)
    const perToken = ({ weight, tokens }: PolicySample) => (average === 'sequence' ? weight / tokens.length : weight)
    const { spans } = micro.rows
    const ofPolicy = policyLoss(
      logp,
      {
        spans: Tensor.from(device, spans, [spans.length / 3, 3]),
        old: beside(({ old }) => old),
        reference: beside(({ reference }) => reference ?? 0),
        advantage: beside(({ advantages }) => advantages),
        weight: beside(perToken),
      },
      this.options,
    )
    return models.value ? this.withValues(models.value, micro, ofPolicy) : ofPolicy
  }

  /** Adds the loss of a value model; for methods that have one. */
  protected withValues(_value: RewardModel, _micro: OnlineMicro, ofPolicy: Required<MicroLoss>): MicroLoss {
    return ofPolicy
  }

  state(): OnlineState {
    return { done: this.#done }
  }

  restore(state: unknown): void {
    this.#done = (state as OnlineState).done
  }
}
