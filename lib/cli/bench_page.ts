// `caravan bench page`: measurements as one HTML file that needs no network and no script: rooflines, shares of the
// floor beside other libraries, growth, the start, and every number in a table.
import { writeFileAtomic } from '../data/atomic_file.js'
import { reportStyle } from '../train/report_assets.js'
import { Html, html } from '../train/report_html.js'
import { type BenchFile, benchMachineLine, type KernelFile, readBenchFile, type StartupFile } from './bench_file.js'
import { growthFigures } from './bench_page_growth.js'
import { bandwidthFigure, floorBars, roofline } from './bench_page_kernels.js'
import { relativeSpread } from './bench_spread.js'
import { exitCodes } from './failure.js'
import { percentText, shortNumber } from './format.js'
import { Terminal } from './terminal.js'

const pageStyle = `
:root { --s3: #7c3aed; --s4: #0d9488; } @media (prefers-color-scheme: dark) { :root { --s3: #b79cf2; --s4: #4fd1c5; } }
.wide { margin: 16px 0; } .axis { fill: var(--soft); font-size: 12px; } .label { fill: var(--fg); font-size: 11px; }
.name { fill: var(--fg); font-size: 12px; } .bar { fill: var(--s0); opacity: .8; } .whole { stroke: var(--soft);
  stroke-dasharray: 4 3; }
.line.s3 { stroke: var(--s3); } .line.s4 { stroke: var(--s4); } .dot.s3 { fill: var(--s3); }
.dot.s4 { fill: var(--s4); }
.legend .s3::before { background: var(--s3); } .legend .s4::before { background: var(--s4); }
td { white-space: nowrap; } .scroll { overflow-x: auto; }
`

/** Writes the page of some files; the value is the exit code. */
export async function benchPage(paths: readonly string[], { output }: { output: string }): Promise<number> {
  const files: BenchFile[] = []
  for (const path of paths) files.push(await readBenchFile(path))
  await writeFileAtomic(output, benchDocument(files))
  new Terminal(process.stdout).line(`wrote ${output}`)
  return exitCodes.done
}

/** The whole document as text, the files in their order. */
export function benchDocument(files: readonly BenchFile[]): string {
  const policy = "default-src 'none'; style-src 'unsafe-inline'"
  return html`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<title>Caravan benchmarks</title><style>${new Html(reportStyle + pageStyle)}</style></head>
<body><h1>Caravan benchmarks</h1>
${files.map(section)}
</body></html>
`.text
}

function section(file: BenchFile): Html {
  const machine = html`<p class="facts">${benchMachineLine(file.machine)}, Node ${file.machine.node}</p>`
  if (file.kind === 'startup') return html`<section><h2>Start</h2>${machine}${startupTable(file)}</section>`
  const rivals = file.rivals.map(({ name, version }) => `${name} ${version}`).join(', ')
  const beside = html`<p class="soft">${rivals ? `Measured in turns with ${rivals}. ` : ''}${file.notes.join('. ')}</p>`
  if (file.kind === 'growth') {
    return html`<section><h2>Growth, ${file.dtype}</h2>${machine}${beside}
<p class="soft">Medians. Straight lines are powers; the exponent is that of the larger half of the sizes.</p>
<div class="plots">${growthFigures(file)}</div></section>`
  }
  const { roofs } = file
  return html`<section><h2>Kernels, ${file.dtype}</h2>${machine}${beside}
<p class="soft">Roofs, measured in the same run: ${shortNumber(roofs.gflops)} GFLOP/s (a product, the fastest of
all here: that of ${roofs.product}) and ${shortNumber(roofs.gbps)} GB/s (a copy that fits no cache). The floor of a
call is its bytes, each argument read and each result written once, at the speeds at which so many bytes were measured
to be read and copied; or its operations at that of the product, whichever takes longer.</p>
${roofline(file)}${bandwidthFigure(file)}${floorBars(file)}${kernelTable(file)}</section>`
}

function kernelTable({ kernels, rivals }: KernelFile): Html {
  const head = [
    'kernel',
    'sizes',
    'us',
    '+-',
    'GB/s',
    'GFLOP/s',
    'floor us',
    'of floor',
    ...rivals.map(({ name }) => `${name} us`),
  ]
  const rows = kernels.map((kernel) => {
    const cells = [
      shortNumber(kernel.medianSeconds * 1e6),
      percentText(relativeSpread(kernel)),
      shortNumber(kernel.gbps),
      kernel.gflops === undefined ? '' : shortNumber(kernel.gflops),
      shortNumber(kernel.floorSeconds * 1e6),
      percentText(kernel.shareOfFloor),
      ...rivals.map(({ name }) => {
        const theirs = kernel.rivals[name]
        return theirs ? shortNumber(theirs.medianSeconds * 1e6) : ''
      }),
    ]
    return html`<tr><td>${kernel.op}</td><td class="soft">${kernel.sample}</td>${cells.map(
      (cell) => html`<td class="number">${cell}</td>`,
    )}</tr>`
  })
  return html`<details><summary>All numbers</summary><div class="scroll"><table><tr>${head.map(
    (title) => html`<th>${title}</th>`,
  )}</tr>${rows}</table></div></details>`
}

function startupTable({ measures }: StartupFile): Html {
  return html`<table><tr><th></th><th>median</th><th>goal</th><th></th></tr>${measures.map(
    ({ name, value, unit, goal }) => html`<tr><td>${name}</td><td class="number">${shortNumber(value)} ${unit}</td>
<td class="number">${goal === undefined ? '' : `< ${goal} ${unit}`}</td>${verdict(value, goal)}</tr>`,
  )}</table>`
}

function verdict(value: number, goal: number | undefined): Html {
  if (goal === undefined) return html`<td></td>`
  return value < goal ? html`<td class="pass">reached</td>` : html`<td class="fail">missed</td>`
}
