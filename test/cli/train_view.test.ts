// What a run looks like on a stream that is no terminal, event by event, and what a missed gate does to the exit code.
import { describe, expect, it, vi } from 'vitest'
import { ProgressLine } from '../../lib/cli/progress_line.js'
import { type OutputStream, Terminal } from '../../lib/cli/terminal.js'
import { train } from '../../lib/cli/train.js'
import { TrainView } from '../../lib/cli/train_view.js'
import type { RunEvent, StepEvent } from '../../lib/train/events.js'

function captured(isTTY = false): { stream: OutputStream; text: () => string } {
  let text = ''
  return { stream: { isTTY, columns: 80, write: (more: string) => (text += more) }, text: () => text }
}

const step: StepEvent = {
  type: 'step',
  stage: 'sft',
  step: 3,
  totalSteps: 30,
  loss: 1.23456,
  lr: 1e-5,
  metrics: {},
  gradientNorm: 0.5,
  skipped: false,
  notFinite: undefined,
  skippedInARow: 0,
  tokens: 2048,
  seconds: 1,
  peakBytes: 2 ** 20,
  tokensPerSecond: 12_345,
  gflops: 61.2,
  peakMiB: 1536,
  secondsLeft: 125,
}

const gates: RunEvent[] = [
  { type: 'gate', stage: 'sft', name: 'held-out loss', value: 1.25, bound: '< 1.4', passed: true },
  { type: 'gate', stage: 'sft', name: 'accuracy', value: null, bound: '>= 0.5', passed: false },
]

function shown(events: readonly RunEvent[], options: { quiet?: boolean } = {}): string {
  const { stream, text } = captured()
  const view = new TrainView(new Terminal(stream, {}), options)
  for (const event of events) view.show(event)
  return text()
}

describe('the view of a run', () => {
  it('has stage, step, loss, rate, throughput, memory and time left in a progress line', () => {
    const line = 'sft  3/30  loss 1.235  lr 1.00e-5  12.3 k tokens/s  61 GFLOP/s  1.50 GiB  2 m 05 s left\n'
    expect(shown([step])).toBe(line)
  })

  it('lists gates together, with pass and FAIL', () => {
    const text = shown([...gates, { type: 'saved', stage: 'sft', directory: 'x/sft' }])
    expect(text).toBe('\n  pass  held-out loss  1.25  < 1.4\n  FAIL  accuracy          -  >= 0.5\nsaved   x/sft\n')
  })

  it('shows samples before and after, with control characters made visible', () => {
    const sample: RunEvent = { type: 'sample', stage: 'sft', prompt: 'Hi?', before: '\u001b[2J', after: 'Hello.\nBye.' }
    const text = shown([sample, { type: 'note', stage: 'sft', text: 'end' }])
    expect(text).toContain('  prompt  Hi?\n  before  \\x1b[2J\n  after   Hello.\n          Bye.\n')
  })

  it('says that steps were skipped and where a run was continued', () => {
    const stage: RunEvent = {
      type: 'stage',
      stage: 'sft',
      totalSteps: 30,
      parameters: 1e6,
      resumedFrom: 12,
      notes: ['passed over: x'],
    }
    const text = shown([stage, { ...step, skipped: true, notFinite: 'lm_head.weight' }])
    expect(text).toContain('continued after step 12')
    expect(text).toContain('passed over: x')
    expect(text).toContain('skipped step 3: gradients were not finite, first that of lm_head.weight')
  })

  it('keeps gates, skipped steps and the end when quiet', () => {
    const done: RunEvent = { type: 'done', directory: 'x', gatesPassed: false, seconds: 61 }
    const text = shown([step, ...gates, done], { quiet: true })
    expect(text).not.toContain('tokens/s')
    expect(text).toContain('FAIL  accuracy')
    expect(text).toContain('finished, but not all gates were passed in 1 m 01 s')
  })
})

describe('progress without a terminal', () => {
  it('prints the first, the last, each tenth and one every 2 seconds', () => {
    const { stream, text } = captured()
    let now = 0
    const line = new ProgressLine(new Terminal(stream, {}), () => now)
    for (let done = 1; done <= 100; done++) {
      line.show({ id: 'a', done, total: 100, parts: [String(done)] })
      now += 300
    }
    const printed = text().trim().split('\n').map(Number)
    expect(printed[0]).toBe(1)
    expect(printed.at(-1)).toBe(100)
    for (const tenth of [10, 20, 30, 90]) expect(printed).toContain(tenth)
    const gaps = printed.slice(1).map((value, i) => value - printed[i]!)
    expect(Math.max(...gaps)).toBeLessThanOrEqual(7)
    expect(printed.length).toBeLessThan(30)
  })

  it('is rare in a long run', () => {
    const { stream, text } = captured()
    let now = 0
    const line = new ProgressLine(new Terminal(stream, {}), () => now)
    for (let done = 1; done <= 86_400; done++) {
      line.show({ id: 'a', done, total: 1e6, parts: [String(done)] })
      now += 1000
    }
    expect(text().split('\n').length).toBeLessThan(1700)
  })
})

vi.mock('../../lib/recipes/run.js', () => ({
  run: async function* () {
    yield { type: 'done', directory: 'x', gatesPassed: false, seconds: 1 }
  },
}))

describe('a run that missed its gates', () => {
  it('exits with 1', async () => {
    const output = vi.spyOn(process.stdout, 'write').mockReturnValue(true)
    try {
      expect(await train({ recipe: 'tulu3', scale: 'pocket', quiet: true })).toBe(1)
    } finally {
      output.mockRestore()
    }
  })
})
