// Evaluation of a model on tasks.

export {
  type EvaluateOptions,
  type EvaluateProgress,
  type EvaluationTasks,
  evaluate,
  evaluateTasks,
} from './evaluate.js'
export type { Format } from './generation_run.js'
export { type LoadedTask, type LoadOptions, loadTasks } from './loaded_task.js'
export { findTasks, TASKS } from './registry.js'
export type { AnswerRecord, ChoiceRecord, EvaluationResult, Metric, SampleRecord, TaskResult } from './result.js'
export { type Estimate, passAtK, wilsonInterval } from './statistics.js'
export type { ChoiceTask, Formulation, GenerationTask, Normalization, Task } from './task.js'
