// Budget forcing (Muennighoff et al. 2025, s1: Simple test-time scaling): thinking that wants to end too early is told
// to go on ("Wait"), thinking that takes too long is ended and the answer begun. The rules are those of the evaluation
// code of s1 with one running total, so that thinking never has more tokens than its budget, appended ones included.
import { CaravanError } from '../base/errors.js'
import type { CausalLm } from '../models/index.js'
import { type GenerateOptions, generateAll } from './engine.js'
import type { Continuation, EndedPart, GenerateRequest } from './request.js'
import type { FinishReason } from './scheduler.js'
import type { DecodeTokens } from './text_stream.js'

export interface Thinking {
  /** Text that begins thinking, put behind the prompt: `<|im_start|>think`. */
  start: string
  /** Text that ends thinking and begins the answer: `<|im_start|>answer`. */
  end: string
  /** Tokens with which the model ends its thinking. */
  stopIds: readonly number[]
  /** Most tokens of thinking. */
  maxTokens: number
  /** What is put in place of an end that came too early; default `Wait`. May be empty. */
  ignore?: string
  /** Ends that are not accepted; default 0. */
  ignoreTimes?: number
  /** What follows `end` on a line of its own where thinking was cut off; default `Final Answer:`. */
  finalAnswer?: string
}

export interface BudgetForcingOptions extends Omit<GenerateOptions, 'decode'> {
  thinking: Thinking
  /** Most tokens of the answer. */
  maxAnswerTokens: number
  /** Tokens that end the answer. */
  stopIds: readonly number[]
  /** The ids of a text, without special tokens of its own. */
  encode: (text: string) => Int32Array | Promise<Int32Array>
  decode: DecodeTokens
  /** How tokens are drawn; default: the most probable one. */
  sampling?: Pick<GenerateRequest, 'temperature' | 'topK' | 'topP' | 'minP' | 'repetitionPenalty'>
}

export interface Reasoned {
  /** Tokens of thinking, without the markers around it; what took the place of an end is part of it. */
  thinking: Int32Array
  /** Tokens of the answer, a stop token included. */
  answer: Int32Array
  /** All new tokens as the model saw them, from `start` on. */
  tokens: Int32Array
  thinkingText: string
  answerText: string
  /** Ends that were not accepted. */
  ignored: number
  /** Whether the budget ended the thinking. */
  cutOff: boolean
  finishReason: FinishReason
}

/** The texts of `thinking` as tokens. */
interface Markers {
  start: Int32Array
  end: Int32Array
  ignore: Int32Array
  /** After thinking that was cut off, on a new line or not. */
  cutOff: { withNewline: Int32Array; without: Int32Array }
}

/** How far one sequence has come. */
interface Course {
  ignored: number
  cutOff: boolean
  /** Tokens of thinking; -1 while it lasts. */
  thinkingTokens: number
  /** New tokens before the answer. */
  answerBegins: number
}

/**
 * Thinks and answers for every prompt, in order; prompts are token ids up to where the assistant's turn begins. The
 * total length must fit the model's context: what does not is cut off with finishReason 'length'. ERR_CONFIG as in
 * `generate`, and for thinking options out of range.
 */
export async function generateWithBudget(
  model: CausalLm,
  prompts: readonly Int32Array[],
  options: BudgetForcingOptions,
): Promise<Reasoned[]> {
  const { thinking, maxAnswerTokens, stopIds, encode, decode, sampling = { temperature: 0 }, ...rest } = options
  checkThinking(thinking, maxAnswerTokens)
  const markers = await markersOf(thinking, encode)
  const courses = prompts.map((): Course => ({ ignored: 0, cutOff: false, thinkingTokens: -1, answerBegins: -1 }))
  const longestEnd = Math.max(markers.end.length, markers.cutOff.withNewline.length, markers.cutOff.without.length)
  const requests = prompts.map((prompt, i): GenerateRequest => {
    const next = (part: EndedPart) => after(part, courses[i]!, { options, markers })
    return {
      ...sampling,
      prompt: Int32Array.from([...prompt, ...markers.start]),
      maxTokens: thinking.maxTokens + longestEnd + maxAnswerTokens,
      stopIds: thinking.stopIds,
      steering: { maxTokens: thinking.maxTokens, next },
    }
  })
  const results = await generateAll(model, requests, rest)
  return await Promise.all(
    results.map(async ([result], i) => {
      const { tokens, finishReason } = result!
      const { ignored, cutOff, thinkingTokens, answerBegins } = courses[i]!
      // Where the context was too short to begin an answer, all is thinking.
      const thought = tokens.slice(0, thinkingTokens < 0 ? tokens.length : thinkingTokens)
      const answer = answerBegins < 0 ? new Int32Array(0) : tokens.slice(answerBegins)
      const [thinkingText, answerText] = await decode([thought, withoutStop(answer, stopIds)])
      return {
        thinking: thought,
        answer,
        tokens: Int32Array.from([...markers.start, ...tokens]),
        thinkingText: thinkingText!,
        answerText: answerText!,
        ignored,
        cutOff,
        finishReason,
      }
    }),
  )
}

/** What follows a part that has ended: more thinking, the answer, or nothing. */
async function after(
  { tokens, finishReason }: EndedPart,
  course: Course,
  { options, markers }: { options: BudgetForcingOptions; markers: Markers },
): Promise<Continuation | undefined> {
  if (course.thinkingTokens >= 0) return undefined
  const { thinking, maxAnswerTokens, stopIds, decode } = options
  const left = thinking.maxTokens - tokens.length - markers.ignore.length
  if (finishReason === 'stop' && course.ignored < (thinking.ignoreTimes ?? 0) && left >= 1) {
    course.ignored++
    return { append: markers.ignore, maxTokens: left, stopIds: thinking.stopIds }
  }
  course.thinkingTokens = tokens.length
  course.cutOff = finishReason === 'length'
  let append = markers.end
  if (course.cutOff) {
    const [text] = await decode([Int32Array.from(tokens)])
    append = text!.endsWith('\n') ? markers.cutOff.without : markers.cutOff.withNewline
  }
  course.answerBegins = tokens.length + append.length
  return { append, maxTokens: maxAnswerTokens, stopIds }
}

async function markersOf(thinking: Thinking, encode: BudgetForcingOptions['encode']): Promise<Markers> {
  const { start, end, ignore = 'Wait', finalAnswer = 'Final Answer:' } = thinking
  const cutOff = `${end}\n${finalAnswer}`
  const texts = [start, end, ignore, `\n${cutOff}`, cutOff]
  const ids = await Promise.all(texts.map((text) => (text === '' ? new Int32Array(0) : encode(text))))
  return { start: ids[0]!, end: ids[1]!, ignore: ids[2]!, cutOff: { withNewline: ids[3]!, without: ids[4]! } }
}

function withoutStop(answer: Int32Array, stopIds: readonly number[]): Int32Array {
  return answer.length > 0 && stopIds.includes(answer.at(-1)!) ? answer.slice(0, -1) : answer
}

function checkThinking({ maxTokens, ignoreTimes = 0, stopIds }: Thinking, maxAnswerTokens: number): void {
  const whole = { 'thinking.maxTokens': [maxTokens, 1], 'thinking.ignoreTimes': [ignoreTimes, 0] } as const
  for (const [name, [value, least]] of Object.entries({ ...whole, maxAnswerTokens: [maxAnswerTokens, 1] as const })) {
    if (Number.isSafeInteger(value) && value >= least) continue
    throw new CaravanError('ERR_CONFIG', `${name} must be an integer >= ${least}; got ${value}`, { details: { name } })
  }
  if (ignoreTimes > 0 && stopIds.length === 0) {
    throw new CaravanError('ERR_CONFIG', 'thinking.ignoreTimes needs thinking.stopIds: no end can be ignored without', {
      hint: 'name the token with which the model ends its thinking',
    })
  }
}
