// KTO: unpaired answers against a reference point that is measured anew for every batch, on answers put to prompts that
// are not theirs (mismatched, without gradients).
import { EncodedBuilder, type EncodedExamples } from '../data/encoded.js'
import type { BatchSource, GlobalBatch, Loader } from '../data/loader.js'
import { type PackedBatch, type PackPlan, packRow, planPacking } from '../data/pack.js'
import { type KtoOptions, ktoLoss, ktoMetrics } from '../losses/kto.js'
import type { CausalLm } from '../models/index.js'
import { type Checkpointing, scope } from '../tensor/index.js'
import type { Batch, Method, MicroLoss } from './method.js'
import { LoaderMethod } from './offline_method.js'
import { packedLogprobs } from './packed_logprobs.js'

/** The answers to train on, and what the reference model thinks of them. */
export interface KtoData {
  examples: EncodedExamples
  /** By example: whether the answer is good. */
  desirable: readonly boolean[]
  /** Prompt i with the answer of the next example. */
  mismatched: EncodedExamples
  /** Summed log-probabilities of the reference by example. */
  reference: Float64Array
  mismatchedReference: Float64Array
}

export interface KtoMethodOptions extends KtoOptions {
  activationCheckpointing: Checkpointing
  maxSteps: number
  /** Tokens that go through the model at once when the reference point is measured. */
  microBatchTokens: number
}

export interface KtoModels {
  policy: CausalLm
}

interface KtoMicro {
  rows: PackedBatch
  examples: Int32Array
  kl: number
  batch: { answers: number; desirable: number }
}

/** A row of a batch with the examples in it. */
export interface LabelledRow {
  rows: PackedBatch
  examples: Int32Array
}

/** Examples whose rows say which of them they hold. */
export class LabelledExamples implements BatchSource<LabelledRow> {
  readonly count: number
  readonly whole = false

  constructor(private readonly examples: EncodedExamples) {
    this.count = examples.count
  }

  lengthOf(example: number): number {
    return this.examples.lengthOf(example)
  }

  targetsOf(example: number, limit: number): number {
    return this.examples.targetsOf(example, limit)
  }

  targetsIn(plan: PackPlan, row: number): number {
    return this.examples.targetsIn(plan, row)
  }

  pack(plan: PackPlan, row: number): LabelledRow {
    const examples = plan.example.slice(plan.rowOffsets[row], plan.rowOffsets[row + 1])
    return { rows: this.examples.pack(plan, row), examples }
  }
}

export class Kto extends LoaderMethod<LabelledRow> implements Method<KtoModels, KtoMicro> {
  readonly name = 'kto'
  readonly unitSeed = true
  override readonly metricNames = ktoMetrics

  constructor(
    loader: Loader<LabelledRow>,
    private readonly data: KtoData,
    private readonly options: KtoMethodOptions,
  ) {
    super(loader, options.maxSteps)
  }

  protected countOf(batch: GlobalBatch<LabelledRow>): number {
    return batch.examples.length
  }

  async *batches(models: KtoModels): AsyncIterable<Batch<KtoMicro>> {
    for (const batch of this.drawn()) {
      const kl = await this.#referencePoint(models.policy, batch.examples)
      const desirable = batch.examples.filter((example) => this.data.desirable[example]).length
      const facts = { kl, batch: { answers: batch.examples.length, desirable } }
      yield {
        count: this.countOf(batch),
        tokens: batch.tokenCount,
        microBatches: function* () {
          for (const row of batch.microBatches()) yield { ...row, ...facts }
        },
      }
    }
  }

  loss({ policy }: KtoModels, micro: KtoMicro): MicroLoss {
    const { data, options } = this
    const logp = packedLogprobs(policy, micro.rows, options.activationCheckpointing)
    const { cuSeqlens } = micro.rows
    const spans = Int32Array.from({ length: 3 * micro.examples.length }, (_, i) =>
      i % 3 === 2 ? 0 : cuSeqlens[Math.floor(i / 3) + (i % 3)]!,
    )
    const answers = Array.from(micro.examples)
    return ktoLoss(
      logp,
      {
        spans,
        reference: Float64Array.from(answers, (example) => data.reference[example]!),
        desirable: answers.map((example) => data.desirable[example]!),
        kl: micro.kl,
        batch: micro.batch,
      },
      options,
    )
  }

  /** max(0, mean of log policy - log reference over the batch's mismatched answers). */
  async #referencePoint(policy: CausalLm, examples: Uint32Array): Promise<number> {
    const { mismatched, mismatchedReference } = this.data
    const sums = await exampleLogprobs(policy, mismatched, { examples, tokens: this.options.microBatchTokens })
    let total = 0
    for (const [i, example] of examples.entries()) total += sums[i]! - mismatchedReference[example]!
    return Math.max(0, total / Math.max(1, examples.length))
  }
}

/** Each prompt with the answer of the example after it (TRL rotates within a batch; here within the data). */
export function mismatchedAnswers(examples: EncodedExamples, maxTokens: number): EncodedExamples {
  const builder = new EncodedBuilder()
  for (let i = 0; i < examples.count; i++) {
    const next = (i + 1) % examples.count
    const prompt = examples.idsOf(i).subarray(0, answerStart(examples.maskOf(i)))
    const begin = answerStart(examples.maskOf(next))
    const ids = Int32Array.from([...prompt, ...examples.idsOf(next).subarray(begin)]).subarray(0, maxTokens)
    const mask = Uint8Array.from([...new Uint8Array(prompt.length), ...examples.maskOf(next).subarray(begin)])
    builder.append({ ids, mask: mask.subarray(0, maxTokens) })
  }
  return builder.finish()
}

const answerStart = (mask: Uint8Array): number => {
  const first = mask.indexOf(1)
  return first < 0 ? mask.length : first
}

/** Summed log-probabilities of `examples` of a set, in their order, without gradients. */
export async function exampleLogprobs(
  policy: CausalLm,
  all: EncodedExamples,
  { examples, tokens }: { examples: ArrayLike<number>; tokens: number },
): Promise<Float64Array> {
  const lengths = Int32Array.from(examples, (example) => all.lengthOf(example))
  // The sum is that of a whole example, whatever its length.
  const limit = lengths.reduce((most, length) => Math.max(most, length), tokens)
  const plan = planPacking(lengths, limit, 'bfd')
  const positions = plan.example.slice()
  for (let i = 0; i < plan.example.length; i++) plan.example[i] = examples[positions[i]!]!
  const sums = new Float64Array(examples.length)
  for (let row = 0; row < plan.rowCount; row++) {
    const packed = packRow(plan, row, all)
    using logp = scope(() => packedLogprobs(policy, packed))
    const values = await logp.read()
    for (let document = 0; document + 1 < packed.cuSeqlens.length; document++) {
      let sum = 0
      for (let n = packed.cuSeqlens[document]!; n < packed.cuSeqlens[document + 1]!; n++) sum += values[n]!
      sums[positions[plan.rowOffsets[row]! + document]!] = sum
    }
  }
  return sums
}
