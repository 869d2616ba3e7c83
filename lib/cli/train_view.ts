// A run on the screen: a live line for what is going on, lasting lines for what has happened. Samples and gates are
// collected and shown together when the next event of another kind comes.
import type { RunEvent, StepEvent } from '../train/events.js'
import { bytesText, countText, durationText, grouped, measureText } from './format.js'
import { ProgressLine } from './progress_line.js'
import { tableLines, wrapText } from './table.js'
import { printable, type Terminal } from './terminal.js'

type Sample = RunEvent & { type: 'sample' }
type Gate = RunEvent & { type: 'gate' }
type LastingEvent = Exclude<RunEvent, { type: 'step' | 'progress' | 'sample' | 'gate' | 'done' }>

export class TrainView {
  readonly #progress: ProgressLine
  readonly #quiet: boolean
  #samples: Sample[] = []
  #gates: Gate[] = []
  #lastStep: StepEvent | undefined

  constructor(
    private readonly terminal: Terminal,
    options: { quiet?: boolean },
  ) {
    this.#quiet = options.quiet ?? false
    this.#progress = new ProgressLine(terminal)
  }

  /** Takes the live line away, so that something else can be written. */
  pause(): void {
    this.#progress.clear()
  }

  show(event: RunEvent): void {
    if (event.type !== 'sample' && event.type !== 'gate') this.#showCollected()
    if (event.type === 'step') this.#step(event)
    else if (event.type === 'progress') this.#preparation(event)
    else if (event.type === 'sample') this.#samples.push(event)
    else if (event.type === 'gate') this.#gates.push(event)
    else if (event.type === 'done') this.#done(event)
    else this.#lasting(this.#linesOf(event))
  }

  #linesOf(event: LastingEvent): string[] {
    const { dim, yellow } = this.terminal.color
    switch (event.type) {
      case 'run':
        return [this.#runHeader(event)]
      case 'stage':
        return this.#stageHeader(event)
      case 'evaluation':
        return [`${this.#label('eval')} step ${grouped(event.step)}: ${metricsText(event.metrics)}`]
      case 'comparison':
        return this.#comparisonLines(event)
      case 'checkpoint':
        return [dim(checkpointText(event))]
      case 'saved':
        return [`${this.#label('saved')} ${event.directory}`]
      case 'note':
        return [dim(`${event.stage}: ${event.text}`)]
      case 'warning': // with --quiet the command writes it to stderr
        return [`${yellow('warning')} ${event.stage}: ${event.message}`]
    }
  }

  #lasting(lines: readonly string[]): void {
    if (!this.#quiet) this.#always(lines)
  }

  #always(lines: readonly string[]): void {
    this.#progress.clear()
    for (const line of lines) this.terminal.line(line)
  }

  #label(text: string): string {
    return this.terminal.color.cyan(text.padEnd(7))
  }

  #runHeader({ recipe, scale, stages, directory }: RunEvent & { type: 'run' }): string {
    const { bold, dim } = this.terminal.color
    return `${bold(`${recipe} ${scale}`)}  ${stages.join(' -> ')}  ${dim(`in ${directory}`)}`
  }

  #stageHeader(event: RunEvent & { type: 'stage' }): string[] {
    const { bold, dim, green } = this.terminal.color
    const { stage, totalSteps, parameters, resumedFrom, notes } = event
    const from = resumedFrom === undefined ? '' : green(`, continued after step ${grouped(resumedFrom)}`)
    const size = `${grouped(totalSteps)} steps, ${countText(parameters)} parameters`
    return ['', `${bold(stage)}  ${size}${from}`, ...notes.map((note) => dim(`  ${note}`))]
  }

  #step(event: StepEvent): void {
    this.#lastStep = event
    if (event.skipped) {
      const where = event.notFinite === undefined ? '' : `, first that of ${event.notFinite}`
      this.#always([`${this.terminal.color.yellow('skipped')} step ${event.step}: gradients were not finite${where}`])
    }
    if (this.#quiet) return
    const { stage, step, totalSteps } = event
    this.#progress.show({ id: stage, done: step, total: totalSteps, parts: stepParts(event) })
  }

  #preparation({ stage, what, done, total }: RunEvent & { type: 'progress' }): void {
    if (this.#quiet) return
    const amount = total === undefined ? grouped(done) : `${grouped(done)}/${grouped(total)}`
    this.#progress.show({ id: `${stage} ${what}`, done, total, parts: [stage, what, amount] })
  }

  #showCollected(): void {
    const [samples, gates] = [this.#samples, this.#gates]
    this.#samples = []
    this.#gates = []
    if (samples.length > 0) this.#lasting(this.#sampleLines(samples))
    if (gates.length > 0) this.#always(this.#gateLines(gates))
  }

  #sampleLines(samples: readonly Sample[]): string[] {
    const { bold, dim } = this.terminal.color
    const width = Math.min(this.terminal.columns, 110) - 10
    const block = (label: string, text: string) =>
      wrapText(printable(text.trim() === '' ? '(empty)' : text.trimEnd()), width).map(
        (line, i) => `  ${i === 0 ? dim(label.padEnd(7)) : '       '} ${line}`,
      )
    return samples.flatMap(({ prompt, before, after }) => [
      '',
      ...block('prompt', prompt).map((line) => bold(line)),
      ...(before === undefined ? [] : block('before', before)),
      ...block('after', after),
    ])
  }

  #comparisonLines({ metrics, answers }: RunEvent & { type: 'comparison' }): string[] {
    const { bold, dim } = this.terminal.color
    const stages = Object.keys(metrics)
    const names = [...new Set(stages.flatMap((stage) => Object.keys(metrics[stage]!)))]
    const rows = names.map((name) => [name, ...stages.map((stage) => measureText(metrics[stage]![name] ?? null))])
    const table = tableLines([['', ...stages.map((stage) => bold(stage))], ...rows], {
      align: `l${'r'.repeat(stages.length)}`,
      indent: '  ',
    })
    const width = Math.min(this.terminal.columns, 110) - 18
    const said = answers.flatMap(({ prompt, byStage }) => [
      '',
      ...wrapText(printable(prompt), width + 14).map((line) => `  ${bold(line)}`),
      ...Object.entries(byStage).flatMap(([stage, answer]) =>
        wrapText(printable(answer.trim() === '' ? '(empty)' : answer.trimEnd()), width).map(
          (line, i) => `  ${dim((i === 0 ? stage : '').padEnd(14))} ${line}`,
        ),
      ),
    ])
    return [...said, '', ...table]
  }

  #gateLines(gates: readonly Gate[]): string[] {
    const { green, red, bold, dim } = this.terminal.color
    const rows = gates.map(({ name, value, bound, passed }) => [
      passed ? green('pass') : red(bold('FAIL')),
      name,
      measureText(value),
      dim(bound),
    ])
    return ['', ...tableLines(rows, { align: 'llrl', indent: '  ' })]
  }

  #done({ directory, gatesPassed, seconds }: RunEvent & { type: 'done' }): void {
    const { bold, green, red } = this.terminal.color
    const verdict = gatesPassed ? green(bold('done')) : red(bold('finished, but not all gates were passed'))
    const loss = this.#lastStep ? `, last loss ${measureText(this.#lastStep.loss)}` : ''
    this.#always(['', `${verdict} in ${durationText(seconds)}${loss}`, `  report  ${directory}/report.html`])
  }
}

function stepParts(event: StepEvent): string[] {
  const { stage, step, totalSteps, loss, lr, metrics, tokensPerSecond, gflops, peakMiB, secondsLeft } = event
  const accuracy = metrics['rewards/accuracy']
  const verified = metrics['objective/verified']
  return [
    stage,
    `${grouped(step)}/${grouped(totalSteps)}`,
    `loss ${measureText(loss)}`,
    ...(accuracy === undefined ? [] : [`accuracy ${measureText(accuracy)}`]),
    ...(verified === undefined ? [] : [`verified ${measureText(verified)}`]),
    `lr ${measureText(lr)}`,
    `${countText(Math.round(tokensPerSecond))} tokens/s`,
    `${countText(Math.round(gflops))} GFLOP/s`,
    bytesText(peakMiB * 2 ** 20),
    `${durationText(secondsLeft)} left`,
  ]
}

function metricsText(metrics: Record<string, number | null>): string {
  return Object.entries(metrics)
    .map(([name, value]) => `${name} ${measureText(value)}`)
    .join(', ')
}

function checkpointText({ step, bytes, seconds, directory }: RunEvent & { type: 'checkpoint' }): string {
  return `checkpoint step ${grouped(step)}: ${bytesText(bytes)} in ${durationText(seconds)}, ${directory}`
}
