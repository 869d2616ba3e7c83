// Real runs of a tiny model: events, plan, Ctrl-C and resuming.
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { caravan, goldenFolder, jsonLines, temporaryFolder, writeRows } from './command_line.js'

const folder = temporaryFolder()
const model = join(goldenFolder, 'models/llama_mha_tied')
const rows = Array.from({ length: 24 }, (_, i) => ({ question: `What is ${i} + ${i}?`, answer: `It is ${2 * i}.` }))
const data = writeRows(folder, 'rows.jsonl', rows)
const chosen = ['--stage', 'sft', '--model', model, '--data', data, '--fields', 'prompt=question,completion=answer']
const small = ['--set', 'sft.batchSequences=8', '--set', 'sft.template=tulu']

describe('train', () => {
  it('prints events as JSON lines, and a report is there at the end', async () => {
    const out = join(folder, 'json')
    const words = ['train', ...chosen, ...small, '--set', 'sft.epochs=1', '--out', out, '--json', '--threads', '1']
    const { stdout, stderr, exitCode } = await caravan(words)
    expect(stderr).toBe('')
    expect(exitCode).toBe(0)
    const events = jsonLines(stdout)
    expect(events[0]).toMatchObject({ type: 'run', recipe: 'tulu3', scale: 'pocket', directory: out, stages: ['sft'] })
    expect(events.filter(({ type }) => type === 'step')).toHaveLength(3)
    expect(events.at(-1)).toMatchObject({ type: 'done', gatesPassed: true })
    expect(readFileSync(join(out, 'report.html'), 'utf8')).toContain('<h2>sft</h2>')
    expect(existsSync(join(out, 'sft/config.json'))).toBe(true)
  })

  it('prints plain lines where nothing can be rewritten', async () => {
    const out = join(folder, 'plain')
    const words = ['train', ...chosen, ...small, '--set', 'sft.epochs=1', '--out', out]
    const { stdout, exitCode } = await caravan(words, { script: 'train.js' as const, environment: {} })
    // train.js adds the command itself.
    expect(exitCode).toBe(2)
    expect(stdout).toBe('')
    const again = await caravan(words.slice(1), { script: 'train.js' })
    expect(again.stdout).not.toContain('\u001b')
    expect(again.stdout).toMatch(
      /^sft {2}3\/3 {2}loss [\d.]+ {2}lr \S+ {2}\S+( k)? tokens\/s {2}.*GFLOP\/s {2}.*MiB {2}.* left$/m,
    )
    expect(again.stdout).toMatch(/^done in .*, last loss/m)
    expect(again.exitCode).toBe(0)
  })

  it('shows a plan with memory, work and the origin of every setting', async () => {
    const { stdout, exitCode } = await caravan(['train', ...chosen, ...small, '--dry-run'])
    expect(exitCode).toBe(0)
    expect(stdout).toMatch(/^ {4}batchSequences +8 +flag$/m)
    expect(stdout).toMatch(/^ {4}maxTokens +160 +recipe$/m)
    expect(stdout).toMatch(/^ {4}beta1 +0\.9 +default$/m)
    for (const name of ['parameters', 'steps', 'tokens', 'work', 'time', 'memory']) {
      expect(stdout).toMatch(new RegExp(`^  ${name} +\\S`, 'm'))
    }
    const size = '[\\d.]+ [KMG]iB'
    expect(stdout).toMatch(new RegExp(`^  by checkpointing +none ${size}, selective ${size}, full ${size}$`, 'm'))
    const json = await caravan(['train', ...chosen, ...small, '--dry-run', '--json'])
    expect(JSON.parse(json.stdout)).toMatchObject({ recipe: 'tulu3', stages: [{ name: 'sft', steps: 9 }] })
    expect(existsSync(join(folder, 'runs'))).toBe(false)
  })
})

describe('Ctrl-C', () => {
  const out = join(folder, 'stopped')
  const long = ['train', ...chosen, ...small, '--set', 'sft.epochs=2000', '--out', out, '--json']

  it('finishes the step, saves and exits with 130; --resume goes on from there', async () => {
    let sent = false
    const { exitCode, stderr, stdout } = await caravan(long, {
      onOutput(child, text) {
        if (sent || !text.includes('"type":"step"')) return
        sent = true
        child.kill('SIGINT')
      },
    })
    expect(exitCode).toBe(130)
    expect(stderr).toMatch(/SIGINT: finishing the step and saving; once more to stop without saving/)
    expect(stderr).toContain(`caravan train --resume ${out}`)
    const stopped = jsonLines(stdout).at(-1)!
    expect(stopped.type).toBe('stopped')
    expect(existsSync(join(stopped.checkpoint as string, 'MANIFEST.json'))).toBe(true)

    let resumedFrom: unknown
    sent = false
    const again = await caravan(['train', '--resume', out, '--json'], {
      onOutput(child, text) {
        if (sent || !text.includes('"type":"step"')) return
        sent = true
        resumedFrom = jsonLines(text.slice(0, text.lastIndexOf('\n'))).find(({ type }) => type === 'stage')?.resumedFrom
        child.kill('SIGTERM')
      },
    })
    expect(again.exitCode).toBe(143)
    expect(resumedFrom).toBe(stopped.step)
  })

  it('twice ends the process at once', async () => {
    const words = [...long.slice(0, -3), '--out', join(folder, 'killed'), '--json']
    let sent = false
    const { exitCode } = await caravan(words, {
      onOutput(child, text) {
        if (sent || !text.includes('"type":"step"')) return
        sent = true
        child.kill('SIGINT')
        child.kill('SIGTERM')
      },
    })
    expect([130, 143]).toContain(exitCode)
  })
})
