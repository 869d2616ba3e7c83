// `caravan bench` as a user runs it: files of measurements, comparing them, the page, and a browser that draws it.
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { describe, expect, it } from 'vitest'
import type { BenchFile, GrowthFile, KernelFile, KernelResult, StartupFile } from '../../lib/cli/bench_file.js'
import { kernelLines } from '../../lib/cli/bench_kernel_lines.js'
import { benchDocument } from '../../lib/cli/bench_page.js'
import { logPlot, logTicks, shortText } from '../../lib/cli/bench_plots.js'
import type { Spread } from '../../lib/cli/bench_spread.js'
import { Terminal } from '../../lib/cli/terminal.js'
import { caravan, jsonLines, temporaryFolder } from './command_line.js'

const folder = temporaryFolder()
const chromiumPath = '/usr/bin/chromium'
const noPython = { CARAVAN_PYTHON: join(folder, 'no_python') }
const attack = '<img src=x onerror="document.title=1">'

const machine = {
  processor: 'Test <processor>',
  cores: 2,
  memoryBytes: 2 ** 34,
  node: 'v20.0.0',
  isa: 'avx2',
  threads: 2,
  load: { before: [0.5, 0, 0], after: [1.5, 0, 0] },
}

function spread(medianSeconds: number): Spread {
  const [lowSeconds, highSeconds] = [medianSeconds * 0.99, medianSeconds * 1.01]
  return { medianSeconds, bestSeconds: lowSeconds, lowSeconds, highSeconds, measurements: 9 }
}

function kernel(op: string, seconds: number, flops?: number): KernelResult {
  const bytes = 1e6
  return {
    op,
    sample: 'N=1 D=2',
    dtype: 'fp32',
    ...spread(seconds),
    bytes,
    written: 0,
    flops,
    gbps: bytes / seconds / 1e9,
    gflops: flops === undefined ? undefined : flops / seconds / 1e9,
    shareOfPeak: 0.5,
    floorSeconds: 1e-4,
    bound: flops === undefined ? 'memory' : 'compute',
    shareOfFloor: 1e-4 / seconds,
    rivals: { torch: spread(4e-4) },
  }
}

function kernelFile(kernels: KernelResult[]): KernelFile {
  const levels = [1, 4, 16].map((size) => ({ bytes: size * 2 ** 20, copyGbps: 40 / size, readGbps: 50 }))
  return {
    kind: 'kernels',
    machine,
    dtype: 'fp32',
    roofs: { gflops: 100, gbps: 10, levels, product: 'caravan' },
    rivals: [{ name: 'torch', version: '2.0' }],
    notes: [attack],
    kernels,
  }
}

const growth: GrowthFile = {
  kind: 'growth',
  machine,
  dtype: 'fp32',
  rivals: [{ name: 'torch', version: '2.0' }],
  notes: [],
  series: [
    {
      what: 'attention',
      variable: 'T',
      sizes: 'one sequence',
      points: [128, 256, 512].map((x) => ({
        x,
        ...spread(1e-9 * x * x),
        peakBytes: 1000 * x,
        rivals: { torch: spread(3e-9 * x * x) },
      })),
      left: [1024],
    },
  ],
}

const startup: StartupFile = {
  kind: 'startup',
  machine,
  measures: [
    { name: 'import', value: 80, unit: 'ms', goal: 100 },
    { name: 'memory', value: 70, unit: 'MiB', goal: 60 },
    { name: 'train', value: 5, unit: 's' },
  ],
}

const kernels = kernelFile([kernel('swiglu', 2e-4), kernel('linear', 1.25e-4, 8e6), kernel('rope', 1e-4)])

/** Writes a file as `caravan bench` does and returns its path. */
function written(name: string, file: BenchFile, head: object = {}): string {
  const path = join(folder, name)
  writeFileSync(path, JSON.stringify({ format: 'caravan-bench', version: 1, ...file, ...head }))
  return path
}

describe('bench kernels --json FILE', () => {
  it('writes what compare and page read', async () => {
    const path = join(folder, 'rope.json')
    const words = ['bench', 'kernels', 'rope', '--samples', '3', '--threads', '2', '--json', path]
    const { stdout, exitCode } = await caravan(words, { environment: noPython })
    expect(exitCode).toBe(0)
    expect(stdout).toMatch(/kernel +sizes +us +\+- +GB\/s +GFLOP\/s +of peak +floor us +of floor/)
    const file = JSON.parse(readFileSync(path, 'utf8')) as KernelFile
    expect(file).toMatchObject({ kind: 'kernels', dtype: 'fp32', machine: { threads: 2 } })
    expect(file.roofs.levels.length).toBeGreaterThan(3)
    const [rope] = file.kernels
    // x and y [4096,16,64] and the table [4096,64], f32.
    expect(rope!.bytes).toBe(4 * 4096 * 64 * (16 + 16 + 1))
    expect(rope!.shareOfFloor).toBeCloseTo(rope!.floorSeconds / rope!.medianSeconds, 9)
    const same = await caravan(['bench', 'compare', path, path, '--fail-above', '1.01'])
    expect(same.stdout).toContain('0 faster, 0 slower, 1 the same')
    expect(same.exitCode).toBe(0)
  }, 120_000)

  it('measures several ops, and at the sizes that only try the way', async () => {
    const words = [
      'bench',
      'kernels',
      'rope',
      'swiglu',
      '--shapes',
      'tiny',
      '--samples',
      '1',
      '--threads',
      '1',
      '--json',
    ]
    const { stdout, exitCode, stderr } = await caravan([...words, '--no-peer'])
    expect(exitCode, stderr).toBe(0)
    const rows = jsonLines(stdout).filter(({ type }) => type === 'kernel')
    expect(rows.map(({ op, sample }) => `${op} ${sample}`)).toEqual(['rope N=5 H=3 C=8', 'swiglu N=3 F=64'])
  }, 60_000)

  it('names what could not be measured', () => {
    const failed = [{ op: 'adamw', sample: '1235814400', reason: 'out of memory' }]
    const lines = kernelLines({ ...kernelFile([kernel('rope', 1e-4)]), failed }, new Terminal({ write: () => {} }, {}))
    expect(lines.at(-2)).toContain('rope')
    expect(lines.at(-1)).toContain('adamw 1235814400 could not be measured: out of memory')
  })

  it('does not take an op for a file name', async () => {
    const { stderr, exitCode } = await caravan(['bench', 'kernels', '--json', 'rope'])
    expect(exitCode).toBe(2)
    expect(stderr).toContain('bench kernels rope --json [file]')
  })
})

describe('bench compare', () => {
  const before = written('before.json', kernels)
  const slow = kernelFile([kernel('swiglu', 2.3e-4), kernel('linear', 1e-4, 8e6), kernel('rope', 1e-4)])
  const after = written('after.json', slow)

  it('prints ratios and verdicts', async () => {
    const { stdout, exitCode } = await caravan(['bench', 'compare', before, after])
    expect(stdout).toMatch(/swiglu .* 200 +230 +1\.150 +slower 15\.0 %/)
    expect(stdout).toMatch(/linear .* 0\.800 +faster 20\.0 %/)
    expect(stdout).toMatch(/rope .* 1\.000 +same/)
    // (1.15 * 0.8 * 1)^(1/3)
    expect(stdout).toContain('1 faster, 1 slower, 1 the same; geometric mean of the ratios 0.973')
    expect(exitCode).toBe(0)
  })

  it('fails above the ratio that is given, and only there', async () => {
    const strict = await caravan(['bench', 'compare', before, after, '--fail-above', '1.10', '--json'])
    expect(strict.exitCode).toBe(1)
    expect(jsonLines(strict.stdout)[0]).toMatchObject({ failed: 1, differences: [] })
    const lenient = await caravan(['bench', 'compare', before, after, '--fail-above', '1.2'])
    expect(lenient.exitCode).toBe(0)
  })

  it('refuses another machine unless told', async () => {
    const other = written('other.json', { ...slow, machine: { ...machine, isa: 'avx512' } })
    const refused = await caravan(['bench', 'compare', before, other])
    expect(refused.stderr).toContain('measured under different conditions: isa avx2 and avx512')
    expect(refused.stderr).toContain('--force')
    expect(refused.exitCode).toBe(2)
    expect((await caravan(['bench', 'compare', before, other, '--force'])).exitCode).toBe(0)
  })

  it('names what a file is, where it is something else', async () => {
    const cases: [string, RegExp][] = [
      [join(folder, 'missing.json'), /missing\.json: read failed with ENOENT/],
      [written('text.json', kernels, { format: 'other' }), /holds no measurements of caravan bench/],
      [written('new.json', kernels, { version: 2 }), /has version 2, and this caravan reads version 1/],
      [written('growth.json', growth), /holds measurements of bench growth, not of bench kernels/],
    ]
    for (const [path, message] of cases) {
      const { stderr, exitCode } = await caravan(['bench', 'compare', before, path])
      expect(stderr).toMatch(message)
      expect(exitCode).toBe(1)
    }
  })
})

describe('bench page', () => {
  const text = benchDocument([kernels, growth, startup])

  it('draws every kernel under its roofs, against its floor, and with its rivals', () => {
    expect(text.match(/<h2>/g)).toHaveLength(3)
    // linear counts operations, the two others do not.
    const [roofline, bandwidth, floors] = text.split('<figure').slice(1) as [string, string, string]
    expect(roofline.match(/<circle/g)).toHaveLength(1)
    expect(roofline).toContain('64.0 GFLOP/s, 80.0 % of the floor (compute)')
    expect(bandwidth.match(/<circle/g)).toHaveLength(2)
    expect(floors.match(/class="bar"/g)).toHaveLength(3)
    expect(floors.match(/<title>torch 25 %/g)).toHaveLength(3)
    expect(text).toContain('attention against T: time ~ T^2.00, memory ~ T^1.00')
    expect(text).toContain('torch, T 512: 0.79 ms')
    expect(text).toMatch(/80\.0 ms<\/td>\s*<td class="number">&lt; 100 ms<\/td><td class="pass">reached/)
    expect(text).toMatch(/70\.0 MiB<\/td>\s*<td class="number">&lt; 60 MiB<\/td><td class="fail">missed/)
  })

  it('lets no text become markup, and needs no script', () => {
    expect(text).not.toContain('<img')
    expect(text).not.toContain('<script')
    expect(text).toContain('Test &lt;processor&gt;, 2 of 2 threads, avx2, load 0.5 before, 1.5 after')
  })

  it('puts points where their values are', () => {
    // Axes of two decades with a twentieth to spare at both ends: 1, 10 and 100 at 1/22, 11/22 and 21/22 of the width.
    const points = [1, 10, 100].map((value) => [value, value] as const)
    const line = { name: '', color: 0, points }
    const figure = logPlot({ title: '', xTitle: '', yTitle: '', lines: [line] }).text
    const [, path] = /polyline class="line s0" points="([^"]+)"/.exec(figure)!
    const [left, width, bottom, height] = [70, 560 - 70 - 24, 280 - 40, 280 - 40 - 14]
    const place = [1 / 22, 11 / 22, 21 / 22]
    const found = path!.split(' ').map((pair) => pair.split(',').map(Number))
    for (const [i, [x, y]] of found.entries()) {
      expect(x).toBeCloseTo(left + place[i]! * width, 1)
      expect(y).toBeCloseTo(bottom - place[i]! * height, 1)
    }
    expect(logTicks([-0.1, 1.1])).toEqual([1, 2, 5, 10])
    // A range without three of these has finer ones.
    expect(logTicks([0.1, 0.5])).toEqual([1.5, 2, 3])
    expect(logTicks([-0.1, 5.1])).toEqual([1, 10, 100, 1000, 10_000, 100_000])
    expect([0.002, 1500, 2_000_000].map(shortText)).toEqual(['0.002', '1.5k', '2M'])
  })

  it('is nothing where there is nothing', () => {
    expect(benchDocument([kernelFile([])])).toContain('<h2>Kernels, fp32</h2>')
  })
})

describe.skipIf(!existsSync(chromiumPath))('the page in a browser (skipped where /usr/bin/chromium is missing)', () => {
  it('is drawn without an error and without a request', async () => {
    const output = join(folder, 'bench.html')
    const paths = [written('k.json', kernels), written('g.json', growth), written('s.json', startup)]
    const { exitCode } = await caravan(['bench', 'page', ...paths, '--output', output])
    expect(exitCode).toBe(0)
    const { chromium } = await import('playwright-core')
    const browser = await chromium.launch({ executablePath: chromiumPath, args: ['--no-sandbox'] })
    try {
      const page = await browser.newPage({ viewport: { width: 1200, height: 900 } })
      page.setDefaultTimeout(120_000)
      const messages: string[] = []
      page.on('console', (message) => messages.push(message.text()))
      page.on('pageerror', (error) => messages.push(error.message))
      page.on('request', (request) => messages.push(request.url()))
      await page.goto(pathToFileURL(output).href)
      expect(messages).toEqual([pathToFileURL(output).href])
      expect(await page.locator('svg').count()).toBe(5)
      const wide = await page.locator('figure.wide svg').first().boundingBox()
      expect(wide!.width).toBeGreaterThan(900)
      // Nothing sticks out at the side.
      expect(await page.evaluate('document.documentElement.scrollWidth <= innerWidth')).toBe(true)
    } finally {
      await browser.close()
    }
  }, 240_000)
})

describe('bench step --profile', () => {
  it('says how long each op of a step took, the longest first', async () => {
    const sizes = ['--batch', '2', '--length', '8', '--steps', '1', '--threads', '1']
    const { stdout, exitCode, stderr } = await caravan(['bench', 'step', '--profile', ...sizes, '--json'])
    expect(exitCode, stderr).toBe(0)
    const [{ ops }] = jsonLines(stdout) as unknown as [{ ops: { op: string; calls: number; seconds: number }[] }]
    // Of four blocks with seven products each.
    expect(ops.find(({ op }) => op === 'linear')).toMatchObject({ calls: 28 })
    expect(ops.map(({ seconds }) => seconds)).toEqual(ops.map(({ seconds }) => seconds).sort((a, b) => b - a))
  }, 60_000)
})

describe('bench rl', () => {
  it.each(['ppo', 'grpo'])(
    'says where the time of a %s step goes',
    async (algorithm) => {
      const words = ['bench', 'rl', '--algorithm', algorithm, '--answers', '32', '--threads', '2', '--json']
      const { stdout, exitCode, stderr } = await caravan(words)
      expect(exitCode, stderr).toBe(0)
      const [result] = jsonLines(stdout)
      const { generate, score, train, answersPerSecond } = result as Record<string, number>
      for (const part of [generate, score, train]) expect(part).toBeGreaterThan(0)
      expect(answersPerSecond).toBeCloseTo(32 / (generate! + score! + train!), 5)
      expect(result).toMatchObject({ algorithm, answers: 32, answerTokens: 32 * 64, model: 'tiny' })
    },
    120_000,
  )

  it('refuses answers that do not fill groups and minibatches', async () => {
    const { stderr, exitCode } = await caravan(['bench', 'rl', '--answers', '40'])
    expect(exitCode).toBe(2)
    expect(stderr).toContain('--answers must be a multiple of 32; got 40')
  })
})

describe('bench verify', () => {
  it('measures verifiers directly and through the pool', async () => {
    const { stdout, exitCode, stderr } = await caravan([
      'bench',
      'verify',
      '--completions',
      '50',
      '--rounds',
      '1',
      '--json',
    ])
    expect(exitCode, stderr).toBe(0)
    const rows = jsonLines(stdout) as { verifier: string; direct: number; pool: number }[]
    expect(rows.map(({ verifier }) => verifier)).toContain('ifeval')
    for (const { direct, pool } of rows) expect(Math.min(direct, pool)).toBeGreaterThan(0)
  }, 60_000)
})
