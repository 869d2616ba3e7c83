// A line plot as SVG: axes with round numbers, thinned lines (a bucket of points keeps its extremes, so no spike is
// lost), a linear and, where all values are positive, a logarithmic form, of which the page shows one.
import { type Html, html } from './report_html.js'

export interface Series {
  name: string
  points: readonly (readonly [x: number, y: number])[]
  /** Faint: raw values behind their mean. */
  faint?: boolean
}

export interface PlotOptions {
  title: string
  series: readonly Series[]
  /** Offer a logarithmic form. */
  log?: boolean
}

const SIZE = { width: 560, height: 220, left: 62, right: 26, top: 10, bottom: 26 }
const MAX_POINTS = 700

/** The plot as a figure element, or nothing where no series has a point. */
export function plotFigure({ title, series, log = false }: PlotOptions): Html {
  const shown = series
    .map((one) => ({ ...one, points: thinned(one.points.filter(([, y]) => Number.isFinite(y))) }))
    .filter(({ points }) => points.length > 0)
  if (shown.length === 0) return html``
  const positive = shown.every(({ points }) => points.every(([, y]) => y > 0))
  const data = JSON.stringify(shown.map(({ name, points }) => ({ name, points })))
  const linear = plotSvg(shown, 'linear')
  const names = shown.map(({ name }, i) => html`<span class="s${i}">${name}</span>`)
  const legend = shown.length > 1 ? html`<p class="legend">${names}</p>` : ''
  const offersLog = log && positive
  return html`<figure class="plot" data-series="${data}" data-left="${SIZE.left}" data-right="${SIZE.right}">
<figcaption>${title}${offersLog ? html`<label><input type="checkbox"> log</label>` : ''}<output></output></figcaption>
${linear}${offersLog ? plotSvg(shown, 'log') : ''}
${legend}
</figure>`
}

/** At most MAX_POINTS points: of each bucket the lowest and the highest, in order. */
function thinned(points: Series['points']): Series['points'] {
  if (points.length <= MAX_POINTS) return points
  const buckets = MAX_POINTS / 2
  return Array.from({ length: buckets }, (_, bucket) => {
    const from = Math.floor((bucket * points.length) / buckets)
    const to = Math.floor(((bucket + 1) * points.length) / buckets)
    let [low, high] = [from, from]
    for (let i = from; i < to; i++) {
      if (points[i]![1] < points[low]![1]) low = i
      if (points[i]![1] > points[high]![1]) high = i
    }
    return low === high ? [points[low]!] : [points[Math.min(low, high)]!, points[Math.max(low, high)]!]
  }).flat()
}

type Scale = 'linear' | 'log'

function plotSvg(series: readonly Series[], scale: Scale): Html {
  const all = series.flatMap(({ points }) => points)
  const xRange = rangeOf(all.map(([x]) => x))
  const warp = scale === 'log' ? Math.log10 : (value: number) => value
  const yRange = padded(rangeOf(all.map(([, y]) => warp(y))))
  const { width, height, left, right, top, bottom } = SIZE
  const px = (x: number) => left + ((x - xRange[0]) / (xRange[1] - xRange[0])) * (width - left - right)
  const py = (y: number) =>
    height - bottom - ((warp(y) - yRange[0]) / (yRange[1] - yRange[0])) * (height - top - bottom)
  const yTicks = scale === 'log' ? logTicks(yRange) : linearTicks(yRange, 5)
  const grid = yTicks.map((value) => {
    const y = coordinate(py(value))
    return html`<line class="grid" x1="${left}" x2="${width - right}" y1="${y}" y2="${y}"/>
<text class="tick" x="${left - 8}" y="${y}" text-anchor="end" dominant-baseline="middle">${tickText(value)}</text>`
  })
  const xLabels = linearTicks(xRange, 6)
    .filter((value) => Number.isInteger(value))
    .map(
      (value) =>
        html`<text class="tick" x="${coordinate(px(value))}" y="${height - 8}"
text-anchor="middle">${value.toLocaleString('en-US')}</text>`,
    )
  const lines = series.map(({ points, faint }, i) => {
    const path = points.map(([x, y]) => `${coordinate(px(x))},${coordinate(py(y))}`).join(' ')
    const line = html`<polyline class="line s${i}${faint ? ' faint' : ''}" points="${path}"/>`
    const [first] = points
    // A line of one point would not be seen.
    return points.length > 1
      ? line
      : html`<circle class="dot s${i}" cx="${coordinate(px(first![0]))}" cy="${coordinate(py(first![1]))}" r="3"/>`
  })
  return html`<svg class="${scale}" viewBox="0 0 ${width} ${height}" role="img"
data-x0="${xRange[0]}" data-x1="${xRange[1]}">
${grid}${xLabels}${lines}
<line class="cursor" x1="0" x2="0" y1="${top}" y2="${height - bottom}" visibility="hidden"/></svg>`
}

type Range = [low: number, high: number]

/** Never empty, so that a constant has a place in the middle. */
function rangeOf(values: readonly number[]): Range {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]
  for (const value of values) {
    low = Math.min(low, value)
    high = Math.max(high, value)
  }
  const half = low === high ? Math.max(Math.abs(low) * 0.05, 1e-9) : 0
  return [low - half, high + half]
}

function padded([low, high]: Range): Range {
  const pad = (high - low) * 0.05
  return [low - pad, high + pad]
}

/** Multiples of 1, 2 or 5 times a power of ten inside the range, about `wanted` of them. */
export function linearTicks([low, high]: Range, wanted: number): number[] {
  const rough = (high - low) / wanted
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough)!
  const ticks: number[] = []
  // A billionth of a step, since 1.02e-5 / 2e-7 is a little more than 51.
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++)
    ticks.push(Number((i * step).toPrecision(12)))
  return ticks
}

/** Ticks for a range of exponents: 1, 2 and 5 of each decade, or round numbers where the range is narrow. */
function logTicks([low, high]: Range): number[] {
  const decades: number[] = []
  for (let exponent = Math.floor(low); exponent <= high; exponent++) {
    for (const factor of high - low > 3 ? [1] : [1, 2, 5]) {
      const value = Number((factor * 10 ** exponent).toPrecision(6))
      if (Math.log10(value) >= low && Math.log10(value) <= high) decades.push(value)
    }
  }
  return decades.length >= 3 ? decades : linearTicks([10 ** low, 10 ** high], 5)
}

function tickText(value: number): string {
  if (value === 0) return '0'
  const size = Math.abs(value)
  if (size >= 10_000 || size < 1e-3) return value.toExponential(1).replace('.0e', 'e').replace('e+', 'e')
  return String(Number(value.toPrecision(4)))
}

function coordinate(value: number): number {
  return Math.round(value * 10) / 10
}
