// Generation from a model.
export { type Generated, type GenerateOptions, type GenerateProgress, generateGreedy } from './engine.js'
export { cacheBytes, KeyValueCache } from './kv_cache.js'
export { Scheduler } from './scheduler.js'
