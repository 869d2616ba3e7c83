// The command line as a child process, whose events the test reads as they come, and which it may kill at any of them.
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { lossRows, tinyPocket } from '../recipes/small_run.js'
import { sha256 } from '../train/small_runs.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

export interface CommandEvent {
  type: string
  stage?: string
  step?: number
  message?: string
  [key: string]: unknown
}

export interface Ended {
  code: number | null
  signal: string | null
  events: CommandEvent[]
  errors: string
  /** Milliseconds from the first `mark()` to the end. */
  sinceMark: number
}

export interface Life {
  child: ChildProcess
  mark: () => void
}

/**
 * Trains the pocket recipe at a tiny size in `directory`, continuing where the folder has a run. `onEvent` may signal.
 */
export function train(
  directory: string,
  onEvent: (event: CommandEvent, life: Life) => void = () => {},
): Promise<Ended> {
  const settings = Object.entries({ ...tinyPocket, 'base.steps': '10', 'sft.steps': '12' })
  const child = spawn(
    process.execPath,
    [
      join(root, 'train.js'),
      ...[
        '--recipe',
        'tulu3',
        '--scale',
        'pocket',
        '--stage',
        'base,sft,dpo,reward_model,rlvr,eval',
        '--threads',
        '2',
        '--json',
        '--out',
        directory,
      ],
      ...(existsSync(join(directory, 'recipe.json')) ? ['--resume'] : []),
      ...settings.flatMap(([path, value]) => ['--set', `${path}=${value}`]),
    ],
    { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] },
  )
  const events: CommandEvent[] = []
  let errors = ''
  let rest = ''
  let marked: number | undefined
  const life: Life = {
    child,
    mark: () => {
      marked ??= performance.now()
    },
  }
  child.stderr.on('data', (bytes) => {
    errors += bytes
  })
  child.stdout.on('data', (bytes) => {
    const lines = (rest + bytes).split('\n')
    rest = lines.pop()!
    for (const line of lines) {
      const event = JSON.parse(line) as CommandEvent
      events.push(event)
      onEvent(event, life)
    }
  })
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => {
      const sinceMark = marked === undefined ? 0 : performance.now() - marked
      resolve({ code, signal, events, errors, sinceMark })
    })
  })
}

/** Lines of the rollout log in an order of their own: groups are written as they finish, each once. */
function rolloutLines(folder: string): string[] {
  return readdirSync(folder).flatMap((name) => {
    const lines = readFileSync(join(folder, name), 'utf8').split('\n')
    return lines.filter((line) => line.endsWith('"}')).sort()
  })
}

/** What two runs must have in common to count as the same. */
export async function resultOf(directory: string) {
  const hash = (stage: string) => sha256(readFileSync(join(directory, stage, 'model.safetensors')))
  return {
    base: hash('base'),
    sft: hash('sft'),
    dpo: hash('dpo'),
    rewardModel: hash('reward_model'),
    rlvr: hash('rlvr'),
    values: hash(join('rlvr', 'value')),
    rollouts: rolloutLines(join(directory, 'rollouts', 'rlvr')),
    eval: readFileSync(join(directory, 'eval', 'eval.json'), 'utf8'),
    rows: await lossRows(directory),
    samples: readFileSync(join(directory, 'samples.jsonl'), 'utf8'),
  }
}
