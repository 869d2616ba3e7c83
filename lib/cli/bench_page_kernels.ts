// The figures of kernels: in the roofline those that count operations, by bytes those that do not, and all of them as
// shares of their floors.

import type { Html } from '../train/report_html.js'
import type { KernelFile, KernelResult } from './bench_file.js'
import { barPlot, logPlot, type PlotDot, type PlotLine, shortText } from './bench_plots.js'
import { bytesText, percentText, shortNumber } from './format.js'

/** Colours of the rivals, in their order; the first colour is ours. */
export function rivalColor(index: number): number {
  return 1 + (index % 4)
}

/** GFLOP/s by operations per byte, under the two roofs. */
export function roofline({ kernels, roofs }: KernelFile): Html {
  const counted = kernels.filter((kernel): kernel is KernelResult & { flops: number; gflops: number } => {
    return kernel.flops !== undefined && kernel.gflops !== undefined
  })
  const dots = counted.map((kernel): PlotDot => {
    return {
      x: kernel.flops / kernel.bytes,
      y: kernel.gflops,
      label: kernel.op,
      text: kernelText(kernel),
      color: kernel.bound === 'compute' ? 0 : 1,
    }
  })
  if (dots.length === 0) return logPlot({ title: '', xTitle: '', yTitle: '', lines: [] })
  const ridge = roofs.gflops / roofs.gbps
  const lowest = Math.min(...dots.map(({ x }) => x), ridge / 10)
  const highest = Math.max(...dots.map(({ x }) => x), ridge * 10)
  const memory: PlotLine = {
    name: `copy, ${shortNumber(roofs.gbps)} GB/s`,
    color: 1,
    points: [
      [lowest, lowest * roofs.gbps],
      [ridge, roofs.gflops],
    ],
  }
  const compute: PlotLine = {
    name: `product, ${shortNumber(roofs.gflops)} GFLOP/s`,
    color: 0,
    points: [
      [ridge, roofs.gflops],
      [highest, roofs.gflops],
    ],
  }
  return logPlot({
    title: 'Roofline: kernels that count operations',
    xTitle: 'operations per byte',
    yTitle: 'GFLOP/s',
    lines: [memory, compute],
    dots,
    wide: true,
  })
}

/** GB/s by bytes moved, under the measured copies. */
export function bandwidthFigure({ kernels, roofs }: KernelFile): Html {
  const dots = kernels
    .filter(({ flops }) => flops === undefined)
    .map((kernel): PlotDot => {
      return { x: kernel.bytes, y: kernel.gbps, label: kernel.op, text: kernelText(kernel), color: 0 }
    })
  const line = (name: string, color: number, of: 'copyGbps' | 'readGbps'): PlotLine => {
    return { name, color, points: roofs.levels.map((level) => [level.bytes, level[of]] as const) }
  }
  return logPlot({
    title: 'Bandwidth: kernels that only move and transform',
    xTitle: 'bytes of a call, read and written',
    yTitle: 'GB/s',
    lines: [line('reading that many bytes', 2, 'readGbps'), line('a copy of that many bytes', 1, 'copyGbps')],
    dots,
    xText: (value) => `${shortText(value)}B`,
    wide: true,
  })
}

/** Shares of the floor, with those of the rivals as marks. */
export function floorBars({ kernels, rivals }: KernelFile): Html {
  const colors = rivals.map(({ name }, i) => ({ name, color: rivalColor(i) }))
  const bars = kernels.map((kernel) => ({
    name: kernel.op,
    detail: kernel.sample,
    share: kernel.shareOfFloor,
    text: kernelText(kernel),
    marks: colors.flatMap(({ name, color }) => {
      const theirs = kernel.rivals[name]
      return theirs ? [{ name, color, share: kernel.floorSeconds / theirs.medianSeconds }] : []
    }),
  }))
  return barPlot('Share of the floor: the least time possible / the time', bars, colors)
}

function kernelText(kernel: KernelResult): string {
  const rates = [
    `${shortNumber(kernel.medianSeconds * 1e6)} us`,
    `${shortNumber(kernel.gbps)} GB/s`,
    ...(kernel.gflops === undefined ? [] : [`${shortNumber(kernel.gflops)} GFLOP/s`]),
    `${percentText(kernel.shareOfFloor)} of the floor (${kernel.bound})`,
  ]
  return `${kernel.op} ${kernel.sample}, ${bytesText(kernel.bytes)}: ${rates.join(', ')}`
}
