// A task that is answered by choosing: the log-probability of every choice in both formulations, and the accuracies
// that they give. The better formulation counts (OLMES): small models know answers before they can name letters.
import { CaravanError } from '../base/errors.js'
import type { CausalLm } from '../models/index.js'
import type { Tokenizer } from '../text/tokenizer.js'
import { choicePrompt, continuations, UNCONDITIONAL_PROMPT } from './choice_prompts.js'
import type { Metric } from './result.js'
import { type ScoredSequence, sequenceLogprobs } from './sequence_logprobs.js'
import { macroEstimate, meanEstimate } from './statistics.js'
import { type ChoiceQuestion, type ChoiceTask, type Formulation, NORMALIZATIONS, type Normalization } from './task.js'
import { leadingIds } from './token_prompts.js'

/** What a model thinks of one choice. */
export interface ChoiceScore {
  /** Sum over the choice's tokens, in nats. */
  logprob: number
  tokens: number
  /** Characters of the choice, the space before it left out. */
  characters: number
  /** The same sum after "Answer:" alone; of cf only. */
  unconditional?: number
}

export interface ScoredQuestion {
  question: ChoiceQuestion
  formulation: Formulation
  prompt: string
  shots: number
  isCut: boolean
  scores: ChoiceScore[]
}

export interface ChoiceWork {
  model: CausalLm
  tokenizer: Tokenizer
  signal?: AbortSignal
  formulations: readonly Formulation[]
  /** The examples of a question. */
  shotsOf(question: ChoiceQuestion): readonly ChoiceQuestion[]
  tokens: number
  onProgress?: (progress: { done: number; total: number; tokens: number }) => void
}

/** Questions that are encoded together: their tokens are in memory, and may share what they begin with. */
const CHUNK_QUESTIONS = 64

/** Scores the choices of every question in every formulation; in order, formulation by formulation in a chunk. */
export async function scoreQuestions(
  task: ChoiceTask,
  questions: readonly ChoiceQuestion[],
  work: ChoiceWork,
): Promise<ScoredQuestion[]> {
  const { model, tokenizer, signal, tokens, onProgress } = work
  const leading = await leadingIds(tokenizer)
  const scored: ScoredQuestion[] = []
  const progress = { done: 0, total: questions.length, tokens: 0 }
  for (let from = 0; from < questions.length; from += CHUNK_QUESTIONS) {
    const chunk = questions.slice(from, from + CHUNK_QUESTIONS)
    for (const formulation of work.formulations) {
      const encoded = await encodeChunk(task, chunk, { formulation, leading, work })
      const bare = formulation === 'cf' ? await encodeBare(task, chunk, { leading, tokenizer }) : []
      const sequences = [...encoded.flatMap((one) => one.sequences), ...bare]
      const sums = await sequenceLogprobs(model, sequences, { tokens, signal })
      progress.tokens += sequences.reduce((sum, { ids }) => sum + ids.length, 0)
      scored.push(...withScores(encoded, { sums, formulation, task }))
    }
    progress.done += chunk.length
    onProgress?.({ ...progress })
  }
  return scored
}

interface EncodedQuestion {
  question: ChoiceQuestion
  prompt: string
  shots: number
  isCut: boolean
  sequences: ScoredSequence[]
}

interface ChunkEncoding {
  formulation: Formulation
  leading: readonly number[]
  work: ChoiceWork
}

/** Prompt and choice are encoded together, as a text is; the choice are the tokens behind those of the prompt alone. A
 *  question whose longest choice does not fit loses examples, the last ones first, then its beginning. */
async function encodeChunk(
  task: ChoiceTask,
  questions: readonly ChoiceQuestion[],
  { formulation, leading, work }: ChunkEncoding,
): Promise<EncodedQuestion[]> {
  const { model, tokenizer, signal, shotsOf } = work
  const result: EncodedQuestion[] = []
  let waiting = questions.map((question, i) => ({ question, i, shots: shotsOf(question) }))
  while (waiting.length > 0) {
    const texts = waiting.map(({ question, shots }) => {
      const prompt = choicePrompt(task, question, { formulation, shots })
      return { prompt, wholes: continuations(task, question, formulation).map((choice) => prompt + choice) }
    })
    const encoded = await tokenizer.encodeBatch(
      texts.flatMap(({ prompt, wholes }) => [prompt, ...wholes]),
      { offsets: false, signal },
    )
    let next = 0
    const tooLong: typeof waiting = []
    for (const [t, one] of waiting.entries()) {
      const { prompt, wholes } = texts[t]!
      const promptTokens = encoded[next++]!.ids.length
      const sequences = wholes.map(() => scoredSequence(leading, encoded[next++]!.ids, promptTokens))
      const most = model.config.contextTokens
      const fits = sequences.every(({ ids }) => ids.length <= most)
      if (!fits && one.shots.length > 0) tooLong.push({ ...one, shots: one.shots.slice(0, -1) })
      else {
        const kept = fits ? sequences : sequences.map((sequence) => lastTokens(sequence, most))
        const { question, shots } = one
        result[one.i] = { question, prompt, shots: shots.length, isCut: !fits, sequences: kept }
      }
    }
    waiting = tooLong
  }
  return result
}

/** The choices after "Answer:" alone. */
async function encodeBare(
  task: ChoiceTask,
  questions: readonly ChoiceQuestion[],
  { leading, tokenizer }: { leading: readonly number[]; tokenizer: Tokenizer },
): Promise<ScoredSequence[]> {
  const texts = questions.flatMap((question) => continuations(task, question, 'cf'))
  const encoded = await tokenizer.encodeBatch(
    [UNCONDITIONAL_PROMPT, ...texts.map((text) => UNCONDITIONAL_PROMPT + text)],
    { offsets: false },
  )
  const promptTokens = encoded[0]!.ids.length
  return encoded.slice(1).map(({ ids }) => scoredSequence(leading, ids, promptTokens))
}

function scoredSequence(leading: readonly number[], ids: Int32Array, promptTokens: number): ScoredSequence {
  const whole = Int32Array.from([...leading, ...ids])
  // Where the seam melts into one token, that token is scored.
  const from = Math.max(1, Math.min(leading.length + promptTokens, whole.length - 1))
  return { ids: whole, from }
}

function lastTokens({ ids, from }: ScoredSequence, tokens: number): ScoredSequence {
  const dropped = Math.max(0, ids.length - tokens)
  return { ids: ids.slice(dropped), from: Math.max(1, from - dropped) }
}

function withScores(
  encoded: readonly EncodedQuestion[],
  { sums, formulation, task }: { sums: Float64Array; formulation: Formulation; task: ChoiceTask },
): ScoredQuestion[] {
  let next = 0
  let bare = encoded.reduce((count, { sequences }) => count + sequences.length, 0)
  return encoded.map(({ question, prompt, shots, isCut, sequences }) => {
    const texts = continuations(task, question, formulation)
    const scores = sequences.map(({ ids, from }, i): ChoiceScore => {
      const score = { logprob: sums[next++]!, tokens: ids.length - from, characters: [...texts[i]!].length - 1 }
      return formulation === 'cf' ? { ...score, unconditional: sums[bare++]! } : score
    })
    if (!scores.every(({ logprob, unconditional = 0 }) => Number.isFinite(logprob + unconditional))) {
      throw notFinite(question)
    }
    return { question, formulation, prompt, shots, isCut, scores }
  })
}

function notFinite({ place: { file, line } }: ChoiceQuestion): CaravanError {
  return new CaravanError('ERR_MODEL', `${file}:${line}: the model gives a log-probability that is not finite`, {
    details: { file, line },
    hint: 'the weights may hold NaN or infinities; a bf16 run can be compared with f32',
  })
}

/** Index of the choice with the best score; the first of equals. */
export function chosenIndex(scores: readonly ChoiceScore[], normalization: Normalization): number {
  const values = scores.map((score) => normalized(score, normalization))
  return values.reduce((best, value, i) => (value > values[best]! ? i : best), 0)
}

function normalized({ logprob, tokens, characters, unconditional }: ChoiceScore, normalization: Normalization): number {
  if (normalization === 'per_token') return logprob / tokens
  if (normalization === 'per_char') return logprob / Math.max(1, characters)
  // ln P(choice | question) - ln P(choice | "Answer:"); a letter has no second term.
  return normalization === 'uncond' ? logprob - (unconditional ?? 0) : logprob
}

/** The metrics of a task, the one that counts first: the better of both formulations. */
export function choiceMetrics(
  task: ChoiceTask,
  scored: readonly ScoredQuestion[],
): { metrics: Metric[]; subjects: { [subject: string]: Metric[] } | undefined } {
  const hasSubjects = scored.every(({ question }) => question.subject !== undefined)
  const groups = new Map<string, ScoredQuestion[]>()
  for (const one of scored) {
    const subject = hasSubjects ? one.question.subject! : ''
    const group = groups.get(subject)
    if (group) group.push(one)
    else groups.set(subject, [one])
  }
  const apart = [...groups].map(([subject, group]) => [subject, formulationMetrics(group)] as const)
  const [, first] = apart[0]!
  const metrics = first.map(
    ({ name }, i): Metric => ({
      name,
      ...macroEstimate(apart.map(([, own]) => own[i]!)),
    }),
  )
  const counting = metrics.filter(({ name }) => name === 'mcf/acc_raw' || name === `cf/acc_${task.normalization}`)
  const best = counting.reduce((better, metric) => (metric.value > better.value ? metric : better))
  return {
    metrics: [{ ...best, name: 'acc', from: best.name }, ...metrics],
    subjects: hasSubjects ? Object.fromEntries(apart) : undefined,
  }
}

function formulationMetrics(scored: readonly ScoredQuestion[]): Metric[] {
  return (['mcf', 'cf'] as const).flatMap((formulation) => {
    const own = scored.filter((one) => one.formulation === formulation)
    if (own.length === 0) return []
    const normalizations = formulation === 'mcf' ? (['raw'] as const) : NORMALIZATIONS
    return normalizations.map((normalization): Metric => {
      const right = own.map(({ question, scores }) => Number(chosenIndex(scores, normalization) === question.answer))
      return { name: `${formulation}/acc_${normalization}`, ...meanEstimate(right) }
    })
  })
}
