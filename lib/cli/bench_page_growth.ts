// The figures of growth: for each series its time, and its memory where that grows.
import type { Html } from '../train/report_html.js'
import type { GrowthFile, GrowthPoint, GrowthSeries } from './bench_file.js'
import { orderText } from './bench_growth_lines.js'
import { rivalColor } from './bench_page_kernels.js'
import { logPlot, type PlotLine } from './bench_plots.js'
import { bytesText, grouped, shortNumber } from './format.js'

/** Two figures a series, one where only threads change. */
export function growthFigures(file: GrowthFile): Html[] {
  return file.series.flatMap((series) => {
    const time = timeFigure(series, file)
    return series.variable === 'threads' ? [time] : [time, memoryFigure(series)]
  })
}

function timeFigure(series: GrowthSeries, { rivals }: GrowthFile): Html {
  const { what, variable, sizes, points } = series
  const millisecondsOf = (seconds: number) => 1000 * seconds
  const text = (name: string) => (x: number, y: number) => `${name}, ${variable} ${grouped(x)}: ${shortNumber(y)} ms`
  const ours: PlotLine = {
    name: 'caravan',
    color: 0,
    points: points.map(({ x, medianSeconds }) => [x, millisecondsOf(medianSeconds)] as const),
    pointText: text('caravan'),
  }
  const theirs = rivals.map(({ name }, i): PlotLine => {
    const measured = points.flatMap(({ x, rivals: at }) => {
      const spread = at[name]
      return spread ? [[x, millisecondsOf(spread.medianSeconds)] as const] : []
    })
    return { name, color: rivalColor(i), points: measured, pointText: text(name) }
  })
  return logPlot({
    title: `${what} against ${variable}: ${orderText(series)}`,
    xTitle: `${variable} (${sizes})`,
    yTitle: 'ms',
    xTicks: points.map(({ x }) => x),
    lines: [ours, ...theirs.filter((line) => line.points.length > 0)],
  })
}

function memoryFigure({ what, variable, sizes, points }: GrowthSeries): Html {
  const memory = ({ x, peakBytes }: GrowthPoint) => [x, peakBytes / 2 ** 20] as const
  return logPlot({
    title: `${what}: most tensor memory`,
    xTitle: `${variable} (${sizes})`,
    yTitle: 'MiB',
    xTicks: points.map(({ x }) => x),
    lines: [
      {
        name: 'memory',
        color: 2,
        points: points.map(memory),
        pointText: (x, y) => `${variable} ${grouped(x)}: ${bytesText(y * 2 ** 20)}`,
      },
    ],
  })
}
