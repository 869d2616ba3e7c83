// What the preparation of a stage hands to the run: a model, a method, and how to judge and save the result.
import type { Loader, LoaderOptions } from '../data/loader.js'
import type { PackStrategy } from '../data/pack.js'
import type { Method } from '../methods/method.js'
import type { CausalLm, RewardModel } from '../models/index.js'
import type { ChatTemplate } from '../text/chat_template.js'
import type { Tokenizer } from '../text/tokenizer.js'
import type { RunEvent } from '../train/events.js'
import type { Gate } from './pocket_eval.js'
import type { ChatSettings } from './stage.js'

export interface PreparedStage extends StageWork {
  /** The model that is trained, saved and freed. */
  model: CausalLm | RewardModel
  /** Further models, freed with it. */
  beside?: readonly BesideModel[]
  /** Ends what else the stage has opened. */
  close?: () => Promise<void>
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

/** A model that a stage needs beside the one it is for. */
export interface BesideModel {
  name: string
  model: CausalLm | RewardModel
  /** Trained with it, at this part of its learning rate, and saved in a folder of its name. */
  trained?: { lrRatio: number }
  /** Changes without being trained, so that checkpoints hold it. */
  inCheckpoints?: boolean
}

/** A method with the models it trains, whatever their types: they fit each other. */
export interface StageWork {
  method: Method<unknown, unknown>
  models: unknown
}

export function work<Models, Micro>(method: Method<Models, Micro>, models: Models): StageWork {
  return { method: method as unknown as Method<unknown, unknown>, models }
}

export interface StageContext {
  stage: string
  seed: number
  dtype: 'f32' | 'bf16'
  /** Run folder. */
  directory: string
  /** Whether the recipe brings data of its own for a stage that is given none. */
  builtInData: boolean
  /** Ends the preparation. */
  signal?: AbortSignal
  /** What ends training: at once, or after the step under way. */
  training?: { signal?: AbortSignal; stop?: AbortSignal }
  report: (event: RunEvent) => void
}

/** How the loader of a stage on chat data cuts it into batches. */
export function loaderOptions(settings: ChatSettings, context: StageContext): LoaderOptions {
  const { batchTokens, batchSequences, microBatchTokens, packing, epochs } = settings
  return {
    batch: batchTokens > 0 ? { tokens: batchTokens } : { sequences: batchSequences || 32 },
    microBatchTokens,
    packing: packing as PackStrategy,
    epochs,
    seed: context.seed,
  }
}

/** Says what the loader leaves out. */
export function reportLoader<Micro>({ withoutTarget, cut }: Loader<Micro>, context: StageContext): void {
  const warn = (message: string) => context.report({ type: 'warning', stage: context.stage, message })
  if (withoutTarget > 0) warn(`${withoutTarget} examples have no token to train on and were left out`)
  if (cut.examples > 0) warn(`${cut.examples} examples are longer than a micro-batch and lose ${cut.tokens} tokens`)
}
