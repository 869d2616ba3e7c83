// `caravan train --dry-run`: what a run would do, before it takes any time: sizes, work, memory, and every setting with
// where it came from.
import { planRun, type RunOptions, type RunPlan, type StagePlan } from '../recipes/run.js'
import type { Recipe, Setting } from '../recipes/stage.js'
import { bytesText, countText, durationText, grouped } from './format.js'
import { tableLines } from './table.js'
import { Terminal } from './terminal.js'

/** Prints the plan of a run, as tables or as one line of JSON. */
export async function showPlan(recipe: Recipe, options: RunOptions, asJson: boolean): Promise<void> {
  const terminal = new Terminal(process.stdout)
  const plan = await planRun(recipe, options)
  if (asJson) terminal.line(JSON.stringify(plan))
  else for (const line of planLines(plan, terminal)) terminal.line(line)
}

/** The plan as lines of text. */
export function planLines(plan: RunPlan, terminal: Terminal): string[] {
  const { bold, yellow } = terminal.color
  const { recipe, scale, dtype, threads, stages } = plan
  const lines = [
    `${bold(`${recipe} ${scale}`)}  ${dtype}, ${threads} threads, ${stages.map(({ name }) => name).join(' -> ')}`,
  ]
  for (const stage of stages) lines.push('', ...stageLines(stage, terminal))
  const most = Math.max(...stages.map(({ memoryBytes }) => memoryBytes))
  const seconds = stages.reduce((sum: number | null, stage) => plus(sum, stage.seconds), 0)
  const time =
    seconds === null
      ? 'time unknown'
      : `${stages.some(({ atMost }) => atMost) ? 'at most' : 'about'} ${durationText(seconds)} in all`
  lines.push('', `${bold('in all')}  ${time}, at most ${bytesText(most)} of memory at once`)
  const notes = stages.flatMap(({ name, notes }) => notes.map((note) => `${yellow('note')} ${name}: ${note}`))
  return [...lines, ...notes]
}

function plus(a: number | null, b: number | null): number | null {
  return a === null || b === null ? null : a + b
}

function stageLines(stage: StagePlan, terminal: Terminal): string[] {
  const { bold, dim } = terminal.color
  const unknown = dim('known once the data are read')
  const counts = [
    ['parameters', countText(stage.parameters)],
    ...(stage.trainedParameters === stage.parameters ? [] : [['trained', countText(stage.trainedParameters)]]),
    ['steps', stage.steps === null ? unknown : grouped(stage.steps)],
    ['tokens', stage.tokens === null ? unknown : countText(stage.tokens)],
    ['work', stage.flops === null ? unknown : `${countText(stage.flops)}FLOP`.replace(/(\d)FLOP/, '$1 FLOP')],
    ['time', stage.seconds === null ? unknown : `${stage.atMost ? 'at most' : 'about'} ${durationText(stage.seconds)}`],
    ['memory', bytesText(stage.memoryBytes)],
    ...stage.memory.map(({ name, bytes }) => [dim(`  ${name}`), dim(bytesText(bytes))]),
    [
      'by checkpointing',
      Object.entries(stage.checkpointing)
        .map(([mode, bytes]) => `${mode} ${bytesText(bytes)}`)
        .join(', '),
    ],
  ]
  const settings = Object.entries(stage.settings).map(([key, value]) => {
    const origin = stage.origins[key] ?? 'default'
    return [key, settingText(value), origin === 'default' ? dim(origin) : origin]
  })
  return [
    bold(stage.name),
    ...tableLines(counts, { indent: '  ' }),
    dim('  settings'),
    ...tableLines(settings, { indent: '    ' }),
  ]
}

/** A setting as it would be typed. */
export function settingText(value: Setting): string {
  if (typeof value === 'string') return value === '' ? '""' : value
  if (Array.isArray(value)) return value.length === 0 ? '[]' : value.join(',')
  if (typeof value === 'object') {
    const fields = Object.entries(value).map(([key, text]) => `${key}=${text}`)
    return fields.length === 0 ? '{}' : fields.join(',')
  }
  return String(value)
}
