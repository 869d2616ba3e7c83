// Growth measurements as a table for people.
import { benchMachineLine, type GrowthFile, type GrowthSeries } from './bench_file.js'
import { growthOrder } from './bench_growth_order.js'
import { relativeSpread } from './bench_spread.js'
import { bytesText, grouped, percentText, shortNumber } from './format.js'
import { tableLines } from './table.js'
import type { Terminal } from './terminal.js'

/** A table for each series; the exponents are those of the larger half of the sizes. */
export function growthLines(file: GrowthFile, terminal: Terminal): string[] {
  const { dim } = terminal.color
  const names = file.rivals.map(({ name, version }) => `${name} ${version}`).join(', ')
  return [
    dim(benchMachineLine(file.machine)),
    ...(names ? [dim(`in turns with ${names}; x: its time / ours`)] : []),
    ...file.notes.map((note) => dim(note)),
    ...file.series.flatMap((series) => seriesLines(series, file, terminal)),
  ]
}

function seriesLines(series: GrowthSeries, file: GrowthFile, terminal: Terminal): string[] {
  const { bold, dim } = terminal.color
  const rivals = file.rivals.map(({ name }) => name).filter((name) => series.points.some((point) => point.rivals[name]))
  const header = [series.variable, 'ms', '+-', 'peak memory', ...rivals.map((name) => `x ${name}`)]
  const rows = series.points.map((point) => [
    grouped(point.x),
    shortNumber(point.medianSeconds * 1000),
    dim(percentText(relativeSpread(point))),
    bytesText(point.peakBytes),
    ...rivals.map((name) => {
      const theirs = point.rivals[name]
      return theirs ? shortNumber(theirs.medianSeconds / point.medianSeconds) : ''
    }),
  ])
  const left = series.left.length > 0 ? dim(`; left out for time: ${series.left.map(grouped).join(', ')}`) : ''
  return [
    `${bold(series.what)} against ${series.variable} (${series.sizes}): ${orderText(series)}${left}`,
    ...tableLines([header.map((title) => dim(title)), ...rows], { align: 'rrrrrrr', indent: '  ' }),
  ]
}

/** `time ~ T^1.92, memory ~ T^1.00`. */
export function orderText({ variable, points }: GrowthSeries): string {
  const order = (y: (point: GrowthSeries['points'][number]) => number) =>
    growthOrder(points.map((point) => ({ x: point.x, y: y(point) })))
  const [time, memory] = [order((point) => point.medianSeconds), order((point) => point.peakBytes)]
  if (!Number.isFinite(time)) return 'one point'
  if (variable === 'threads') return `time ~ threads^${time.toFixed(2)}`
  return `time ~ ${variable}^${time.toFixed(2)}, memory ~ ${variable}^${memory.toFixed(2)}`
}
