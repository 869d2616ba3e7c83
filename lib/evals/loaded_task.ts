// A task with its rows, checked: everything that can be wrong with data is found before a model is asked anything.
import { CaravanError } from '../base/errors.js'
import { checkLabels } from './generation_run.js'
import type { ChoiceQuestion, ChoiceTask, Exemplar, GenerationTask, Problem, Task } from './task.js'
import { findTaskFiles, type TaskFiles, taskRows } from './task_data.js'

export interface LoadOptions {
  /** Folder with the data of built-in tasks; a file stands for the data of one task. */
  data?: string
  /** Only the first rows of each task, and of each subject. */
  limit?: number
  /** Worked examples before each question; default the task's own number. */
  shots?: number
  signal?: AbortSignal
}

export type LoadedTask = TaskFiles &
  (
    | { kind: 'generation'; task: GenerationTask; problems: Problem[]; exemplars: readonly Exemplar[] }
    | { kind: 'choice'; task: ChoiceTask; questions: ChoiceQuestion[]; shots: ReadonlyMap<string, ChoiceQuestion[]> }
  )

/** Tasks with their rows. ERR_CONFIG for options that do not fit, ERR_FILE and ERR_DATA for what is wrong with data. */
export async function loadTasks(tasks: readonly Task[], options: LoadOptions): Promise<LoadedTask[]> {
  const { limit, shots } = options
  checkCount('limit', limit, 1)
  checkCount('shots', shots, 0)
  const loaded: LoadedTask[] = []
  for (const task of tasks) {
    if (options.data === undefined && !('file' in task.data)) {
      throw new CaravanError('ERR_CONFIG', `the task ${task.name} needs a data folder`, {
        details: { task: task.name },
        hint: 'name the folder in which its data lies (--data DIR)',
      })
    }
    const files = await findTaskFiles(task, options.data ?? '')
    if (files.files[0] === options.data && tasks.length > 1) {
      throw new CaravanError('ERR_CONFIG', `${options.data}: one file cannot be the data of ${tasks.length} tasks`, {
        details: { data: options.data },
        hint: 'give a folder, or one task',
      })
    }
    loaded.push(
      task.kind === 'generation' ? await generation(task, files, options) : await choice(task, files, options),
    )
  }
  return loaded
}

function checkCount(name: string, value: number | undefined, least: number): void {
  if (value === undefined || (Number.isSafeInteger(value) && value >= least)) return
  throw new CaravanError('ERR_CONFIG', `${name} must be a whole number >= ${least}; got ${value}`, {
    details: { [name]: value },
  })
}

async function generation(task: GenerationTask, files: TaskFiles, options: LoadOptions): Promise<LoadedTask> {
  const { limit = Number.POSITIVE_INFINITY, signal } = options
  const problems: Problem[] = []
  for await (const { row, place } of taskRows(files.files, signal)) {
    problems.push(task.problem(row, place))
    if (problems.length >= limit) break
  }
  if (problems.length === 0) throw withoutRows(task, files)
  checkLabels(task, problems)
  const wanted = options.shots ?? task.shots
  const exemplars = task.exemplars?.slice(0, wanted) ?? (await exemplarsOf(task, files, { wanted, signal }))
  if (exemplars.length < wanted) throw tooFewShots(task, { wanted, have: exemplars.length })
  return { kind: 'generation', task, problems, exemplars, ...files }
}

async function exemplarsOf(
  task: GenerationTask,
  { shotFiles }: TaskFiles,
  { wanted, signal }: { wanted: number; signal: AbortSignal | undefined },
): Promise<Exemplar[]> {
  const exemplars: Exemplar[] = []
  if (wanted === 0 || task.exemplar === undefined) return exemplars
  for await (const { row, place } of taskRows(shotFiles, signal)) {
    exemplars.push(task.exemplar(row, place))
    if (exemplars.length >= wanted) break
  }
  return exemplars
}

async function choice(task: ChoiceTask, files: TaskFiles, options: LoadOptions): Promise<LoadedTask> {
  const { limit = Number.POSITIVE_INFINITY, signal } = options
  const questions: ChoiceQuestion[] = []
  const counts = new Map<string, number>()
  for await (const { row, place } of taskRows(files.files, signal)) {
    const question = task.read(row, place)
    const subject = question.subject ?? ''
    const count = (counts.get(subject) ?? 0) + 1
    counts.set(subject, count)
    if (count <= limit) questions.push(question)
  }
  if (questions.length === 0) throw withoutRows(task, files)
  const wanted = options.shots ?? task.shots
  const shots =
    wanted === 0 ? new Map<string, ChoiceQuestion[]>() : await shotsBySubject(task, files, { wanted, signal })
  if (options.shots !== undefined && options.shots > 0) {
    for (const subject of counts.keys()) {
      const have = shots.get(subject)?.length ?? 0
      if (have < wanted) throw tooFewShots(task, { wanted, have, subject })
    }
  }
  return { kind: 'choice', task, questions, shots, ...files }
}

/** The curated examples where the data has them all, else the first ones, for each subject. */
async function shotsBySubject(
  task: ChoiceTask,
  { shotFiles }: TaskFiles,
  { wanted, signal }: { wanted: number; signal: AbortSignal | undefined },
): Promise<Map<string, ChoiceQuestion[]>> {
  const first = new Map<string, ChoiceQuestion[]>()
  const curated = new Map<string, ChoiceQuestion>()
  const ids = task.curated?.slice(0, wanted) ?? []
  for await (const { row, place } of taskRows(shotFiles, signal)) {
    const question = task.read(row, place)
    const subject = question.subject ?? ''
    const own = first.get(subject) ?? []
    if (own.length < wanted) first.set(subject, [...own, question])
    if (question.id !== undefined && ids.includes(question.id)) curated.set(question.id, question)
  }
  const chosen = ids.flatMap((id) => curated.get(id) ?? [])
  return chosen.length === wanted ? new Map([['', chosen]]) : first
}

function withoutRows(task: Task, { files }: TaskFiles): CaravanError {
  return new CaravanError('ERR_DATA', `${files.join(', ')}: no rows for the task ${task.name}`, {
    details: { task: task.name, file: files[0] },
  })
}

function tooFewShots(task: Task, { wanted, have, subject }: { wanted: number; have: number; subject?: string }) {
  const where = subject ? ` for ${subject}` : ''
  return new CaravanError(
    'ERR_CONFIG',
    `${task.name}: ${wanted} worked examples are wanted${where}; there are ${have}`,
    {
      details: { task: task.name, wanted, have },
      hint: 'ask for fewer, or put a file of examples (dev or train) beside the data',
    },
  )
}
