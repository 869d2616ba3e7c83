// The page of a report: for each stage what it came to, its curves, its gates, its settings, and what the model says.
import { createHash } from 'node:crypto'
import type { MetricsRow } from './metrics.js'
import { reportScript, reportStyle } from './report_assets.js'
import type {
  ReportComparison,
  ReportData,
  ReportGate,
  ReportSample,
  ReportSetting,
  ReportStage,
} from './report_data.js'
import { Html, html } from './report_html.js'
import { plotFigure, type Series } from './report_plot.js'

/** The whole document as text. */
export function reportPage(data: ReportData): string {
  const hash = createHash('sha256').update(reportScript).digest('base64')
  const policy = `default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-${hash}'`
  const facts = data.facts.map(({ name, value }) => `${name} ${value}`).join(' · ')
  const page = html`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<title>${data.title} – Caravan</title><style>${new Html(reportStyle)}</style></head>
<body><h1>${data.title}</h1><p class="facts">${facts}</p>
${data.stages.length === 0 ? html`<p>This run has not done anything yet.</p>` : data.stages.map(stageSection)}
<script>${new Html(reportScript)}</script></body></html>
`
  return page.text
}

function stageSection(stage: ReportStage): Html {
  if (stage.comparison) return comparisonSection(stage.name, stage.comparison)
  return html`<section><h2>${stage.name}</h2>
<p class="soft">${summary(stage)}</p>
<div class="plots">${plots(stage)}</div>
${constantLine(stage.steps)}
${gateTable(stage.gates)}
${measureTable(stage.metrics)}
${settingTable(stage.settings)}
${sampleList(stage.samples)}
</section>`
}

/** The models of all stages side by side. */
function comparisonSection(name: string, { stages, rows, answers }: ReportComparison): Html {
  const cells = (values: readonly (number | null)[]) =>
    values.map((value) => html`<td class="number">${measure(value)}</td>`)
  return html`<section><h2>${name}</h2><p class="soft">The models of all stages on the same held-out things.</p>
<table><tr><th></th>${stages.map((stage) => html`<th class="number">${stage}</th>`)}</tr>${rows.map(
    ({ name: what, values }) => html`<tr><td>${what}</td>${cells(values)}</tr>`,
  )}</table>
${answers.length > 0 ? html`<h3>The same prompts, answered by each stage</h3>` : ''}${answers.map(
  ({ prompt, byStage }) =>
    html`<div class="sample"><pre class="prompt">${prompt}</pre><div class="answers many">${byStage.map(
      ([stage, said]) => answerBlock(stage, said),
    )}</div></div>`,
)}</section>`
}

function answerBlock(title: string, text: string): Html {
  return html`<div><h4>${title}</h4><pre>${text === '' ? '(empty)' : text}</pre></div>`
}

function summary({ steps }: ReportStage): string {
  const last = steps.at(-1)
  if (!last) return 'No step has been made.'
  const count = (name: string) => steps.reduce((sum, row) => sum + numberOf(row, name), 0)
  const seconds = steps.reduce(
    (sum, row) => sum + numberOf(row, 'tokens') / Math.max(1e-9, numberOf(row, 'tokensPerSecond')),
    0,
  )
  const skipped = steps.filter((row) => row.skipped === true).length
  const losses = steps.map((row) => numberOf(row, 'loss', Number.NaN)).filter(Number.isFinite)
  const parts = [
    `${steps.length.toLocaleString('en-US')} steps`,
    `${count('tokens').toLocaleString('en-US')} tokens`,
    `${timeText(seconds)} of training`,
    losses.length > 0 ? `loss ${measure(losses[0]!)} to ${measure(losses.at(-1)!)}` : 'no finite loss',
  ]
  if (skipped > 0) parts.push(`${skipped} skipped, since their gradients were not finite`)
  return parts.join(' · ')
}

function plots({ steps, evaluations }: ReportStage): Html[] {
  const held = new Set(evaluations.flatMap((row) => Object.keys(row).filter((key) => /loss/i.test(key))))
  const loss = pointsOf(steps, 'loss')
  const window = Math.max(1, Math.round(loss.length / 40))
  const lossSeries: Series[] = [{ name: 'loss', points: loss, faint: window > 1 }]
  if (window > 1) lossSeries.push({ name: `mean of the last ${window}`, points: runningMean(loss, window) })
  for (const name of held) lossSeries.push({ name: words(name), points: pointsOf(evaluations, name) })
  const single = (title: string, name: string, log = false) =>
    plotFigure({ title, series: [{ name: words(name), points: pointsOf(steps, name) }], log })
  return [
    plotFigure({ title: 'Loss', series: lossSeries, log: true }),
    single('Gradient norm', 'gradNorm', true),
    single('Learning rate', 'lr'),
    ...methodPlots(steps),
    single('Tokens per second', 'tokensPerSecond'),
  ]
}

/** Families that are shown before others: what training is for comes first. */
const FAMILIES = ['objective', 'rewards', 'policy', 'value', 'rollout', 'time']

/** Names of what the method logs as `family/member`, with those that never change apart. */
function methodNames(steps: readonly MetricsRow[]): { changing: string[]; constant: string[] } {
  const names = [...new Set(steps.flatMap((row) => Object.keys(row).filter((key) => key.includes('/'))))]
  const rank = (name: string) => {
    const place = FAMILIES.indexOf(name.split('/')[0]!)
    return place < 0 ? FAMILIES.length : place
  }
  const ordered = names.sort((a, b) => rank(a) - rank(b))
  const isConstant = (name: string) => new Set(pointsOf(steps, name).map(([, value]) => value)).size <= 1
  const single = steps.length < 2
  return {
    changing: ordered.filter((name) => single || !isConstant(name)),
    constant: ordered.filter((name) => !single && isConstant(name)),
  }
}

/** What stayed the same in all steps, in one line. */
function constantLine(steps: readonly MetricsRow[]): Html {
  const parts = methodNames(steps).constant.flatMap((name) => {
    const [first] = pointsOf(steps, name)
    return first ? [`${name} ${measure(first[1])}`] : []
  })
  return parts.length === 0 ? html`` : html`<p class="soft">In every step: ${parts.join(' · ')}</p>`
}

/** The two sides of a pair share a plot, everything else has its own. */
function methodPlots(steps: readonly MetricsRow[]): Html[] {
  const names = methodNames(steps).changing
  const plots = new Map<string, string[]>()
  for (const name of names) {
    const [family, member] = name.split('/') as [string, string]
    const title = member === 'chosen' || member === 'rejected' ? family : `${family}: ${member}`
    plots.set(title, [...(plots.get(title) ?? []), name])
  }
  return [...plots].map(([title, members]) => {
    const series = members.map((name) => {
      const points = pointsOf(steps, name)
      return { name, points: runningMean(points, Math.max(1, Math.round(points.length / 40))) }
    })
    return plotFigure({ title: title[0]!.toUpperCase() + title.slice(1), series })
  })
}

function pointsOf(rows: readonly MetricsRow[], name: string): [number, number][] {
  return rows.flatMap((row): [number, number][] => {
    const value = row[name]
    return typeof value === 'number' && Number.isFinite(row.step) ? [[row.step, value]] : []
  })
}

/** Mean of the last `window` values at each point. */
function runningMean(points: readonly [number, number][], window: number): [number, number][] {
  let sum = 0
  return points.map(([x, y], i) => {
    sum += y - (i >= window ? points[i - window]![1] : 0)
    return [x, sum / Math.min(window, i + 1)]
  })
}

function gateTable(gates: readonly ReportGate[]): Html {
  if (gates.length === 0) return html``
  const passed = gates.filter((gate) => gate.passed).length
  return html`<h3>Gates: ${passed} of ${gates.length} passed</h3><table>${gates.map(
    (gate) => html`<tr><td class="${gate.passed ? 'pass' : 'fail'}">${gate.passed ? 'pass' : 'fail'}</td>
<td>${gate.name}</td><td class="number">${measure(gate.value)}</td><td class="soft">${gate.bound}</td></tr>`,
  )}</table>`
}

function measureTable(metrics: ReportStage['metrics']): Html {
  const entries = Object.entries(metrics)
  if (entries.length === 0) return html``
  return html`<h3>Measured</h3><table>${entries.map(
    ([name, value]) => html`<tr><td>${words(name)}</td><td class="number">${measure(value)}</td></tr>`,
  )}</table>`
}

function settingTable(settings: readonly ReportSetting[]): Html {
  if (settings.length === 0) return html``
  return html`<details><summary>Settings, and where they come from</summary><table>${settings.map(
    ({ key, value, origin }) => html`<tr><td>${key}</td><td><code>${value}</code></td>
<td class="${origin === 'default' ? 'soft' : origin}">${origin}</td></tr>`,
  )}</table></details>`
}

function sampleList(samples: readonly ReportSample[]): Html {
  if (samples.length === 0) return html``
  return html`<h3>What the model says</h3>${samples.map(
    (sample) => html`<div class="sample"><pre class="prompt">${sample.prompt}</pre><div class="answers">
${answerBlocks(sample)}</div></div>`,
  )}`
}

function answerBlocks({ before, after }: ReportSample) {
  if (before === undefined) return answerBlock('answer', after)
  return [answerBlock('before', before), answerBlock('after', after)]
}

/** heldOutLoss -> held out loss. */
function words(name: string): string {
  return name.replaceAll(/([a-z])([A-Z])/g, '$1 $2').toLowerCase()
}

function numberOf(row: MetricsRow, name: string, fallback = 0): number {
  const value = row[name]
  return typeof value === 'number' ? value : fallback
}

function measure(value: number | null): string {
  if (value === null) return '–'
  const size = Math.abs(value)
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)))
}

function timeText(seconds: number): string {
  if (seconds < 120) return `${Math.round(seconds)} s`
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`
  return `${(seconds / 3600).toFixed(1)} h`
}
