// The report of a made-up run: what it says, that nothing in it can become markup, and, where Chromium is installed,
// that a browser draws it without an error.
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { Browser, Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { writeReport } from '../../lib/train/report.js'
import { html } from '../../lib/train/report_html.js'
import { linearTicks } from '../../lib/train/report_plot.js'

const chromiumPath = '/usr/bin/chromium'
const attack = '</pre><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
const directory = mkdtempSync(join(tmpdir(), 'caravan-report-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))

function lines(rows: readonly object[]): string {
  return rows.map((row) => `${JSON.stringify(row)}\n`).join('')
}

function madeUpRows(stage: string, count: number): object[] {
  const random = new Random(3)
  const rows: object[] = []
  for (let step = 1; step <= count; step++) {
    const loss = 6 * Math.exp(-step / (count / 4)) + 1 + 0.1 * random.normal()
    const lr = 1e-3 * Math.min(1, step / 20) * (1 - step / (count + 1))
    const gradNorm = step === 40 ? 1000 : 1 + 0.3 * random.uniform()
    rows.push({
      stage,
      step,
      loss,
      lr,
      gradNorm,
      skipped: step === 7,
      tokens: 2048,
      tokensPerSecond: 9000,
      gflops: 50,
      peakMiB: 90,
    })
    if (step % 100 === 0) rows.push({ stage, step, heldOutLoss: loss + 0.1 })
  }
  return rows
}

function writeRun(): void {
  const stage = (name: string, lr: number) => ({
    name,
    kind: 'sft',
    settings: { lr, template: attack, data: ['a.jsonl'], steps: 0 },
    origins: { lr: 'flag', template: 'recipe', data: 'default', steps: 'default' },
  })
  const recipe = {
    format: 1,
    recipe: 'tulu3',
    scale: 'pocket',
    dtype: 'f32',
    seed: 1,
    data: [],
    stages: [stage('base', 3e-3), stage('sft', 1e-3)],
  }
  writeFileSync(join(directory, 'recipe.json'), JSON.stringify(recipe))
  const half = '{"stage":"sft","step":301,"loss":0.'
  writeFileSync(
    join(directory, 'metrics.jsonl'),
    lines([...madeUpRows('base', 1200), ...madeUpRows('sft', 300)]) + half,
  )
  const sample = {
    type: 'sample',
    stage: 'sft',
    prompt: `Say <b>hi</b> & "go"`,
    before: attack,
    after: 'Hi.\n  There.',
  }
  writeFileSync(join(directory, 'samples.jsonl'), lines([sample, { ...sample, before: undefined, after: '' }]))
  const gates = [
    { name: 'held-out loss', value: 1.25, bound: '< 1.4', passed: true },
    { name: 'accuracy', value: 0.31, bound: '>= 0.5', passed: false },
  ]
  writeFileSync(
    join(directory, 'result.json'),
    JSON.stringify({ sft: { metrics: { exactAccuracy: 0.31, none: null }, gates } }),
  )
}

beforeAll(writeRun)

describe('report.html', () => {
  it('holds stages, gates, settings with origins and samples', async () => {
    const text = readFileSync(await writeReport(directory), 'utf8')
    for (const part of [
      '<h2>base</h2>',
      '<h2>sft</h2>',
      '1 of 2 passed',
      '1,200 steps',
      '1 skipped, since',
      'flag',
      'exact accuracy',
    ]) {
      expect(text).toContain(part)
    }
    expect(text.match(/class="plot"/g)).toHaveLength(8)
    expect(text).toContain('Say &lt;b&gt;hi&lt;/b&gt; &amp; &quot;go&quot;')
  })

  it('lets no text become markup', async () => {
    const text = readFileSync(await writeReport(directory), 'utf8')
    expect(text.match(/<script>/g)).toHaveLength(1)
    expect(text).not.toContain('<img')
  })

  it('keeps a spike when it thins out the points', async () => {
    const text = readFileSync(await writeReport(directory), 'utf8')
    expect(text).toMatch(/\[40,1000\]/)
  })

  it('is written for a run that has done nothing', async () => {
    const empty = mkdtempSync(join(tmpdir(), 'caravan-report-'))
    try {
      expect(readFileSync(await writeReport(empty), 'utf8')).toContain('has not done anything')
    } finally {
      rmSync(empty, { recursive: true })
    }
  })
})

describe('parts', () => {
  it('escapes strings, not Html', () => {
    expect(html`<p title="${'"'}">${['<', html`<b>${"'"}</b>`]}</p>`.text).toBe(
      '<p title="&quot;">&lt;<b>&#39;</b></p>',
    )
  })

  it('has round ticks', () => {
    expect(linearTicks([0, 1], 5)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1])
    expect(linearTicks([-3, 1200], 6)).toEqual([0, 500, 1000])
    expect(linearTicks([1.02e-5, 1.08e-5], 3)).toEqual([1.02e-5, 1.04e-5, 1.06e-5, 1.08e-5])
  })
})

describe.skipIf(!existsSync(chromiumPath))('in a browser (skipped where /usr/bin/chromium is missing)', () => {
  let browser: Browser
  let page: Page
  const messages: string[] = []

  beforeAll(async () => {
    const { chromium } = await import('playwright-core')
    browser = await chromium.launch({ executablePath: chromiumPath, args: ['--no-sandbox'] })
    page = await browser.newPage({ viewport: { width: 1200, height: 900 } })
    page.on('console', (message) => messages.push(message.text()))
    page.on('pageerror', (error) => messages.push(error.message))
    await page.goto(pathToFileURL(await writeReport(directory)).href)
  }, 60_000)

  afterAll(async () => {
    const file = process.env.CARAVAN_REPORT_SCREENSHOT
    if (file) {
      await page.screenshot({ path: `${file}-light.png`, fullPage: true })
      await page.emulateMedia({ colorScheme: 'dark' })
      await page.screenshot({ path: `${file}-dark.png`, fullPage: true })
    }
    await browser?.close()
  })

  it('draws every plot', async () => {
    const sizes = await page
      .locator('svg.linear .line')
      .evaluateAll((all) => all.map((line) => line.getBoundingClientRect().width))
    expect(sizes.length).toBeGreaterThanOrEqual(8)
    for (const width of sizes) expect(width).toBeGreaterThan(100)
  })

  it('shows the values under the pointer', async () => {
    const figure = page.locator('.plot').first()
    await figure.locator('svg.linear').hover()
    expect(await figure.locator('output').textContent()).toMatch(/^step \d+: loss \d/)
  })

  it('switches to a logarithmic scale', async () => {
    const figure = page.locator('.plot').first()
    expect(await figure.locator('svg.log').isVisible()).toBe(false)
    await figure.locator('input').check()
    expect(await figure.locator('svg.log').isVisible()).toBe(true)
    expect(await figure.locator('svg.linear').isVisible()).toBe(false)
  })

  it('runs no script of the samples and reports no error', async () => {
    expect(await page.title()).toContain('tulu3 pocket')
    expect(await page.locator('.sample img').count()).toBe(0)
    expect(messages).toEqual([])
  })
})
