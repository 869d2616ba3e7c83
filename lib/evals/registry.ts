// All built-in tasks by name. A new one is an object in a file of its own and a line here.
import { CaravanError, nearestName } from '../base/errors.js'
import { arcChallengeTask, arcEasyTask, hellaswagTask, mmluTask } from './choice_tasks.js'
import { gsm8kTask, ifevalTask, mathTask } from './generation_tasks.js'
import type { Task } from './task.js'
import { readTaskFile } from './task_file.js'

export const TASKS: readonly Task[] = [
  gsm8kTask,
  mathTask,
  ifevalTask,
  mmluTask,
  arcEasyTask,
  arcChallengeTask,
  hellaswagTask,
]

/** The tasks of these names; a name that ends in .json is a file. ERR_CONFIG for an unknown one, and for one that is
 *  named twice. */
export async function findTasks(names: readonly (string | Task)[]): Promise<Task[]> {
  if (names.length === 0) throw new CaravanError('ERR_CONFIG', 'an evaluation needs at least one task')
  const tasks: Task[] = []
  for (const name of names) {
    const task = typeof name === 'string' ? await findTask(name) : name
    if (tasks.some((other) => other.name === task.name)) {
      throw new CaravanError('ERR_CONFIG', `two tasks are called "${task.name}"`, { details: { task: task.name } })
    }
    tasks.push(task)
  }
  return tasks
}

async function findTask(name: string): Promise<Task> {
  if (name.endsWith('.json')) return await readTaskFile(name)
  const task = TASKS.find((known) => known.name === name)
  if (task !== undefined) return task
  const names = TASKS.map((known) => known.name)
  const near = nearestName(name, names)
  throw new CaravanError('ERR_CONFIG', `there is no task "${name}"; known: ${names.join(', ')}`, {
    details: { task: name, known: names },
    hint: near === undefined ? 'a task of your own is a file that ends in .json' : `did you mean "${near}"?`,
  })
}
