// Rollouts in their order. By default each is made by the policy that then trains on it. With a behaviour model each is
// made while the one before is trained on, by a copy of the policy from before that training: one rollout off-policy,
// whatever the timing.
import { setMaxListeners } from 'node:events'
import { throwIfAborted } from '../base/errors.js'
import type { CausalLm } from '../models/index.js'
import { type PolicyGroup, sampleLogprobs } from './policy_batch.js'
import { collectRollout, type Rollout, type RolloutOptions, type RolloutPrompt } from './rollout.js'

export interface SourceModels {
  policy: CausalLm
  behaviour?: CausalLm
}

export interface SourceOptions<P extends RolloutPrompt> extends RolloutOptions<P> {
  /** Tokens that go through the model at once. */
  microBatchTokens: number
  /** Share of the groups that are run through the trainer's forward pass, to compare log-probabilities. */
  checkedShare: number
  /** Copies the policy into the behaviour model. */
  refresh: () => void
}

export interface Sampled<P extends RolloutPrompt> extends Rollout<P> {
  /** Largest difference between a token's log-probability when it was drawn and in the trainer's forward pass. */
  logprobDifference: number
}

export class RolloutSource<P extends RolloutPrompt> {
  readonly #ending = new AbortController()
  readonly #options: SourceOptions<P>
  /** The one that is made beside training. */
  #pending: Promise<Sampled<P>> | undefined

  /** `count`: rollouts in all; none after them is begun. */
  constructor(
    private readonly models: SourceModels,
    options: SourceOptions<P>,
    private readonly count: number,
  ) {
    const signals = [this.#ending.signal, ...(options.signal ? [options.signal] : [])]
    const signal = AbortSignal.any(signals)
    // Groups are judged beside each other, and each listens.
    setMaxListeners(0, signal)
    this.#options = { ...options, signal }
  }

  /** Rollout `number`. `begun`: training on it has begun in an earlier process, so all of it must be in the store. */
  async take(number: number, begun: boolean): Promise<Sampled<P>> {
    const { behaviour, policy } = this.models
    if (!behaviour) return await this.#collect(policy, number, begun)
    if (number === 0 && !begun) this.#options.refresh()
    const rollout = await (this.#pending ?? this.#collect(behaviour, number, begun))
    // A checkpoint within a rollout holds the copy that the next one is made with.
    if (!begun) this.#options.refresh()
    this.#begin(behaviour, number + 1)
    return rollout
  }

  /** Ends what is under way. */
  async close(): Promise<void> {
    this.#ending.abort()
    await this.#pending?.catch(() => {})
  }

  #begin(behaviour: CausalLm, number: number): void {
    if (number >= this.count) {
      this.#pending = undefined
      return
    }
    this.#pending = this.#collect(behaviour, number, false)
    this.#pending.catch(() => {}) // awaited when its turn comes, or by close
  }

  async #collect(sampler: CausalLm, number: number, begun: boolean): Promise<Sampled<P>> {
    throwIfAborted(this.#options.signal)
    const rollout = await collectRollout(sampler, number, { ...this.#options, complete: begun })
    const stored = rollout.numbers?.logprobDifference?.[0]
    return { ...rollout, logprobDifference: stored ?? (await this.#largestDifference(sampler, rollout)) }
  }

  async #largestDifference(sampler: CausalLm, { groups }: Rollout<P>): Promise<number> {
    const { microBatchTokens: tokens, temperature, signal, checkedShare } = this.#options
    const checked = groups
      .slice(0, Math.ceil(groups.length * checkedShare))
      .map(({ prompt, answers }): PolicyGroup<(typeof answers)[number]> => ({ prompt: prompt.ids, samples: answers }))
    let largest = 0
    for (const [{ logprobs }, trained] of await sampleLogprobs(sampler, checked, { tokens, temperature, signal })) {
      for (const [t, logprob] of logprobs.entries()) largest = Math.max(largest, Math.abs(logprob - trained[t]!))
    }
    return largest
  }
}
