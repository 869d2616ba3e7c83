// Plots of the benchmark page as SVG with logarithmic axes on both sides, since rooflines and growth are straight lines
// there; and bars. What a mark stands for is its title, which a browser shows under the pointer: no script is needed.
import { type Html, html } from '../train/report_html.js'

export interface PlotLine {
  name: string
  points: readonly (readonly [x: number, y: number])[]
  /** Number of the colour. */
  color: number
  /** Also a dot with this text at each point. */
  pointText?: (x: number, y: number) => string
}

export interface PlotDot {
  x: number
  y: number
  label: string
  text: string
  color: number
}

export interface LogPlot {
  title: string
  xTitle: string
  yTitle: string
  lines: readonly PlotLine[]
  dots?: readonly PlotDot[]
  /** Where the ticks are; default round numbers. */
  xTicks?: readonly number[]
  xText?: (value: number) => string
  yText?: (value: number) => string
  wide?: boolean
}

interface Frame {
  width: number
  height: number
  x: (value: number) => number
  y: (value: number) => number
}

interface Box {
  left: number
  right: number
  top: number
  bottom: number
}

const MARGIN = { left: 70, right: 24, top: 14, bottom: 40 }
const SIZE = { width: 560, height: 280 }
const WIDE_SIZE = { width: 1100, height: 520 }
const LETTER_WIDTH = 6.4
const LABEL_HEIGHT = 12

/** A figure; nothing where there is no point with positive coordinates. */
export function logPlot(plot: LogPlot): Html {
  const { title, xTitle, yTitle, lines, dots = [], xText = shortText, yText = shortText, wide = false } = plot
  const all = [...lines.flatMap(({ points }) => points), ...dots.map(({ x, y }) => [x, y] as const)]
  if (!all.some(([x, y]) => x > 0 && y > 0)) return html``
  const [xRange, yRange] = [decades(all.map(([x]) => x)), decades(all.map(([, y]) => y))]
  const { width, height } = wide ? WIDE_SIZE : SIZE
  const [right, bottom] = [width - MARGIN.right, height - MARGIN.bottom]
  const place = (value: number, [low, high]: Range) => (Math.log10(value) - low) / (high - low)
  const frame: Frame = {
    width,
    height,
    x: (value) => round(MARGIN.left + place(value, xRange) * (right - MARGIN.left)),
    y: (value) => round(bottom - place(value, yRange) * (bottom - MARGIN.top)),
  }
  const xMarks = (plot.xTicks ?? logTicks(xRange)).map((value) => {
    const x = frame.x(value)
    return html`<line class="grid" x1="${x}" x2="${x}" y1="${MARGIN.top}" y2="${bottom}"/>
<text class="tick" x="${x}" y="${bottom + 15}" text-anchor="middle">${xText(value)}</text>`
  })
  const yTicks = logTicks(yRange).map((value) => {
    const y = frame.y(value)
    return html`<line class="grid" x1="${MARGIN.left}" x2="${right}" y1="${y}" y2="${y}"/>
<text class="tick" x="${MARGIN.left - 8}" y="${y}" text-anchor="end" dominant-baseline="middle">${yText(value)}</text>`
  })
  const middle = (MARGIN.top + bottom) / 2
  return html`<figure class="plot${wide ? ' wide' : ''}"><figcaption>${title}</figcaption>
<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${title}">${xMarks}${yTicks}
<text class="axis" x="${(MARGIN.left + right) / 2}" y="${height - 6}" text-anchor="middle">${xTitle}</text>
<text class="axis" transform="translate(14 ${middle}) rotate(-90)" text-anchor="middle">${yTitle}</text>
${lines.map((line) => lineMarks(line, frame))}${dotMarks(dots, frame)}</svg>
${legend(lines)}</figure>`
}

function lineMarks({ points, color, pointText }: PlotLine, frame: Frame): Html {
  const path = points.map(([x, y]) => `${frame.x(x)},${frame.y(y)}`).join(' ')
  const dots = pointText
    ? points.map(
        ([x, y]) => html`<circle class="dot s${color}" cx="${frame.x(x)}" cy="${frame.y(y)}" r="3.5">
<title>${pointText(x, y)}</title></circle>`,
      )
    : []
  return html`<polyline class="line s${color}" points="${path}"/>${dots}`
}

/** Dots with their labels, each where it covers nothing drawn before; a label without a place is left to its title. */
function dotMarks(dots: readonly PlotDot[], frame: Frame): Html[] {
  const at = dots.map((dot) => ({ ...dot, px: frame.x(dot.x), py: frame.y(dot.y) }))
  const taken: Box[] = at.map(({ px, py }) => ({ left: px - 5, right: px + 5, top: py - 5, bottom: py + 5 }))
  return at.map(({ px, py, label, text, color }) => {
    const width = label.length * LETTER_WIDTH
    const places = [
      { x: px + 8, y: py },
      { x: px - 8 - width, y: py },
      { x: px - width / 2, y: py - 13 },
      { x: px - width / 2, y: py + 13 },
    ].map(({ x, y }) => ({ left: x, right: x + width, top: y - LABEL_HEIGHT / 2, bottom: y + LABEL_HEIGHT / 2 }))
    const free = places.find((box) => isInside(box, frame) && !taken.some((other) => overlaps(box, other)))
    if (free) taken.push(free)
    const shown = free
      ? html`<text class="label" x="${round(free.left)}" y="${round(free.bottom - 2)}">${label}</text>`
      : ''
    return html`<circle class="dot s${color}" cx="${px}" cy="${py}" r="4"><title>${text}</title></circle>${shown}`
  })
}

function isInside(box: Box, { width, height }: Frame): boolean {
  return box.left > MARGIN.left && box.right < width - 4 && box.top > 0 && box.bottom < height - MARGIN.bottom
}

function overlaps(a: Box, b: Box): boolean {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
}

function legend(lines: readonly { name: string; color: number }[]): Html | string {
  if (lines.length < 2) return ''
  return html`<p class="legend">${lines.map(({ name, color }) => html`<span class="s${color}">${name}</span>`)}</p>`
}

export interface Bar {
  name: string
  detail: string
  /** 1 is the whole width before the line of 100 %. */
  share: number
  text: string
  marks: readonly { name: string; share: number; color: number }[]
}

const BAR = { width: 1100, left: 390, right: 70, row: 22, top: 26, thick: 12 }
/** Bars end here; what is beyond says so in its text. */
const MOST_SHARE = 1.25

/** Shares as horizontal bars, with the same of others as marks on them. */
export function barPlot(title: string, bars: readonly Bar[], others: readonly { name: string; color: number }[]): Html {
  if (bars.length === 0) return html``
  const height = BAR.top + bars.length * BAR.row + 8
  const x = (share: number) =>
    round(BAR.left + (Math.min(MOST_SHARE, share) / MOST_SHARE) * (BAR.width - BAR.left - BAR.right))
  const ticks = [0, 0.25, 0.5, 0.75, 1].map(
    (share) => html`<line class="grid${share === 1 ? ' whole' : ''}" x1="${x(share)}" x2="${x(share)}"
y1="${BAR.top - 6}" y2="${height - 8}"/><text class="tick" x="${x(share)}" y="14"
text-anchor="middle">${Math.round(100 * share)} %</text>`,
  )
  const rows = bars.map(({ name, detail, share, text, marks }, i) => {
    const middle = BAR.top + i * BAR.row + BAR.row / 2 - 3
    const sizes = name.length + detail.length > 48 ? `${detail.slice(0, 46 - name.length)}…` : detail
    return html`<g><title>${text}</title>
<text class="name" x="${BAR.left - 8}" y="${middle}" text-anchor="end" dominant-baseline="middle">${name}
<tspan class="tick">${sizes}</tspan></text>
<rect class="bar" x="${BAR.left}" y="${middle - BAR.thick / 2}" width="${round(x(share) - BAR.left)}"
height="${BAR.thick}"/><text class="tick" x="${BAR.width - 6}" y="${middle}" text-anchor="end"
dominant-baseline="middle">${Math.round(100 * share)} %</text>
${marks.map(
  (
    mark,
  ) => html`<rect class="dot s${mark.color}" x="${round(x(mark.share) - 2)}" y="${middle - 8}" width="4" height="16">
<title>${mark.name} ${Math.round(100 * mark.share)} %</title></rect>`,
)}</g>`
  })
  return html`<figure class="plot wide"><figcaption>${title}</figcaption>
<svg viewBox="0 0 ${BAR.width} ${height}" role="img" aria-label="${title}">${ticks}${rows}</svg>
${legend([{ name: 'caravan', color: 0 }, ...others])}</figure>`
}

type Range = readonly [low: number, high: number]

/** Exponents that hold all positive values, with a twentieth to spare on both sides. */
function decades(values: readonly number[]): Range {
  const logs = values.filter((value) => value > 0).map(Math.log10)
  const [low, high] = [Math.min(...logs), Math.max(...logs)]
  const spare = Math.max(0.05, (high - low) * 0.05)
  return [low - spare, high + spare]
}

/** Ticks of a logarithmic axis: powers of ten, with 2 and 5, or more, between where there are few of them. */
export function logTicks([low, high]: Range): number[] {
  const wide = high - low > 4
  const ticks = multiples(wide ? [1] : [1, 2, 5], [low, high])
  return ticks.length >= 3 || wide ? ticks : multiples([1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], [low, high])
}

function multiples(factors: readonly number[], [low, high]: Range): number[] {
  const values: number[] = []
  for (let exponent = Math.floor(low); exponent <= high; exponent++) {
    for (const factor of factors) {
      const value = Number((factor * 10 ** exponent).toPrecision(6))
      if (Math.log10(value) >= low && Math.log10(value) <= high) values.push(value)
    }
  }
  return values
}

/** 1500 -> 1.5k, 0.002 -> 0.002. */
export function shortText(value: number): string {
  const [divisor, suffix] = value >= 1e9 ? [1e9, 'G'] : value >= 1e6 ? [1e6, 'M'] : value >= 1e3 ? [1e3, 'k'] : [1, '']
  return `${Number((value / divisor).toPrecision(3))}${suffix}`
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}
