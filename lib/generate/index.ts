// Generation from a model.
export { type BudgetForcingOptions, generateWithBudget, type Reasoned, type Thinking } from './budget_forcing.js'
export {
  type Generated,
  type GenerateEvent,
  type GenerateOptions,
  type GenerateProgress,
  generate,
  generateAll,
  type TokenEvent,
  tokenBytes,
} from './engine.js'
export { cacheBytes, KeyValueCache, pagesFor } from './kv_cache.js'
export type { Continuation, EndedPart, GenerateRequest, Steering } from './request.js'
export type { RequestSource } from './request_inbox.js'
export { type FinishReason, Scheduler } from './scheduler.js'
export { type DecodeTokens, TextStream } from './text_stream.js'
