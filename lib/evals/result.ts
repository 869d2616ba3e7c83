// What an evaluation comes to: plain data, as it is written to a file.
import type { Estimate } from './statistics.js'

export interface Metric extends Estimate {
  name: string
  /** The metric that this one is, where it is the better of several. */
  from?: string
}

export interface TaskResult {
  task: string
  kind: 'generation' | 'choice'
  /** The first one is what the task is reported by. */
  metrics: Metric[]
  /** For tasks with subjects: the metrics of each, whose unweighted means are `metrics`. */
  subjects?: { [subject: string]: Metric[] }
  rows: number
  /** How the task was run. */
  settings: {
    files: readonly string[]
    shotFiles: readonly string[]
    shots: number
    format?: string
    maxTokens?: number
  }
  /** Prompts that had to do with fewer examples, and prompts whose beginning was cut off. */
  shortenedPrompts: number
  cutPrompts: number
  /** Of a task that is answered by writing: answers, their tokens, and how many the limit of tokens ended. */
  answers?: { count: number; tokens: number; cutOff: number }
}

export interface EvaluationResult {
  tasks: TaskResult[]
  settings: {
    seed: number
    limit: number | null
    samples: number
    temperature: number
    topP: number
    template: string | null
    dtype: string
  }
  seconds: number
}

/** An answer as it was judged, for a file of samples. */
export interface AnswerRecord {
  task: string
  /** Number of the row in the task, and of the answer to it, from 0. */
  row: number
  sample: number
  file: string
  line: number
  /** Text, or the messages that the chat template renders. */
  prompt: unknown
  completion: string
  tokens: number
  finish_reason: 'stop' | 'length'
  score: number
  reason: string
  extracted?: string
  strict?: boolean[]
  loose?: boolean[]
}

/** A question as its choices were scored. */
export interface ChoiceRecord {
  task: string
  row: number
  file: string
  line: number
  formulation: 'mcf' | 'cf'
  prompt: string
  choices: string[]
  answer: number
  /** Index that each normalization chooses. */
  chosen: { [normalization: string]: number }
  /** Sum of log-probabilities of each choice, in nats; for cf also without the question. */
  logprobs: number[]
  unconditional_logprobs?: number[]
}

export type SampleRecord = AnswerRecord | ChoiceRecord
