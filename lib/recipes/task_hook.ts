// Evaluation tasks while a stage trains: what `evaluateEvery` measures beside the held-out loss.
import { CaravanError } from '../base/errors.js'
import { evaluateTasks, findTasks, loadTasks } from '../evals/index.js'
import { CausalLm } from '../models/index.js'
import type { PreparedStage } from './prepared_stage.js'
import type { StageSettings } from './stage.js'

type Evaluate = NonNullable<PreparedStage['evaluate']>

/** The stage's own evaluation and, where its settings name tasks, theirs. ERR_CONFIG for tasks that its model cannot
 *  do; errors of the tasks' data before the first step. */
export async function withTasks(
  prepared: PreparedStage,
  settings: StageSettings,
  signal?: AbortSignal,
): Promise<Evaluate | undefined> {
  const { evaluate, model, tokenizer, template } = prepared
  if (!('evalTasks' in settings) || settings.evalTasks.length === 0) return evaluate
  if (!(model instanceof CausalLm)) {
    throw new CaravanError('ERR_CONFIG', 'evalTasks are answered in words; a reward model writes none', {
      hint: 'leave out evalTasks in this stage',
    })
  }
  const options = { data: settings.evalData || undefined, limit: settings.evalLimit || undefined }
  const tasks = await loadTasks(await findTasks(settings.evalTasks), { ...options, signal })
  return async (ending) => ({
    ...(await evaluate?.(ending)),
    ...(await evaluateTasks(model, tokenizer, tasks, { ...options, template, signal: ending })),
  })
}
