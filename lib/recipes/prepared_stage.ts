// What the preparation of a stage hands to the run: a model, a method, and how to judge and save the result.
import type { Sft } from '../methods/sft.js'
import type { CausalLm } from '../models/index.js'
import type { ChatTemplate } from '../text/chat_template.js'
import type { Tokenizer } from '../text/tokenizer.js'
import type { RunEvent } from '../train/events.js'
import type { Gate } from './pocket_eval.js'

export interface PreparedStage {
  model: CausalLm
  method: Sft
  /** Mean number of tokens that a token of the data sees: the length that attention costs. */
  meanContext: number
  /** Saved beside the model, with the chat template that it was trained on. */
  tokenizer: Tokenizer
  template: ChatTemplate | undefined
  /** Held-out loss and the like. */
  evaluate?: (signal?: AbortSignal) => Promise<Record<string, number>>
  /** Shown after the stage: answers of the model before and after. */
  samples?: (signal?: AbortSignal) => AsyncIterable<RunEvent & { type: 'sample' }>
  /** The stage's gates, judged on the finished model. `losses` are those of its steps. */
  gates?: (context: { losses: readonly number[]; signal?: AbortSignal }) => Promise<{
    gates: Gate[]
    metrics: Record<string, number | null>
  }>
}

export interface StageContext {
  stage: string
  seed: number
  dtype: 'f32' | 'bf16'
  /** Run folder. */
  directory: string
  signal?: AbortSignal
  report: (event: RunEvent) => void
}
