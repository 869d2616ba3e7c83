// What a run tells its consumer. Every event is plain data.
import type { Step } from './loop.js'

export type RunEvent =
  | { type: 'run'; directory: string; recipe: string; scale: string; stages: string[] }
  | { type: 'stage'; stage: string; totalSteps: number; parameters: number; resumedFrom?: number; notes: string[] }
  | StepEvent
  | { type: 'progress'; stage: string; what: string; done: number; total?: number }
  | { type: 'evaluation'; stage: string; step: number; metrics: Record<string, number | null> }
  | { type: 'checkpoint'; stage: string; step: number; directory: string; bytes: number; seconds: number }
  | { type: 'sample'; stage: string; prompt: string; before?: string; after: string }
  | { type: 'gate'; stage: string; name: string; value: number | null; bound: string; passed: boolean }
  | ComparisonEvent
  | { type: 'saved'; stage: string; directory: string }
  | { type: 'note'; stage: string; text: string }
  | { type: 'warning'; stage: string; message: string; code?: string }
  | { type: 'done'; directory: string; gatesPassed: boolean; seconds: number }

/** Models of several stages, measured on the same things. */
export interface ComparisonEvent {
  type: 'comparison'
  stage: string
  /** By stage, then by metric. */
  metrics: Record<string, Record<string, number | null>>
  answers: { prompt: string; byStage: Record<string, string> }[]
}

export interface StepEvent extends Step {
  type: 'step'
  stage: string
  tokensPerSecond: number
  /** Floating-point operations of the model's products per second, in 10^9. */
  gflops: number
  peakMiB: number
  /** Seconds to the end of the stage at the present pace. */
  secondsLeft: number
}
