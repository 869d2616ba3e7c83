// The pool: the same verdicts as in this thread, whatever verifiers do to the processes they run in.
import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { workerUrl } from '../../lib/base/worker.js'
import { findVerifier } from '../../lib/verify/registry.js'
import { guardedVerify, type VerifyInput } from '../../lib/verify/verifier.js'
import { isVerifierPath, loadVerifier } from '../../lib/verify/verifier_module.js'
import { VerifierPool, type VerifierPoolOptions, type VerifyTask } from '../../lib/verify/verifier_pool.js'

const folder = mkdtempSync(join(tmpdir(), 'caravan-pool-'))
const pools: VerifierPool[] = []
afterEach(async () => {
  await Promise.all(pools.splice(0).map((pool) => pool.dispose()))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function poolOf(options: VerifierPoolOptions = {}): VerifierPool {
  const pool = new VerifierPool(options)
  pools.push(pool)
  return pool
}

function moduleFile(name: string, text: string): string {
  const path = join(folder, name)
  writeFileSync(path, text)
  return path
}

const journal = join(folder, 'journal.txt')

/** For tests that leave their process as they found it: starting one takes longer than they do. */
const shared = new VerifierPool({ timeoutMs: 400 })
afterAll(() => shared.dispose())

/** Does what the completion says, and notes every completion that it begins. */
const obedient = moduleFile(
  'obedient.mjs',
  `import { appendFileSync } from 'node:fs'
  const deeds = {
    hang() { for (;;); },
    exit() { process.exit(7) },
    fill() { const all = []; for (;;) all.push({ a: [1, 2, 3] }) },
    leap() { return 'ab'.repeat(2 ** 27).split('') },
    bytes() { const all = []; for (let i = 0; i < 128; i++) all.push(Buffer.alloc(2 ** 24, 1)); return { score: 1 } },
    leave() { setImmediate(() => process.exit(5)) },
    throw() { throw new Error('thrown') },
    deep() { return deeds.deep() + 1 },
    signal() { process.kill(process.pid, 'SIGKILL'); for (;;); },
    nothing() { return undefined },
    circle() { const verdict = { score: 1, reason: {} }; verdict.strict = [verdict]; return verdict },
    getter() { return { score: 1, get reason() { for (;;); } } },
    bare() { return { score: 0.5 } },
    promise() { return Promise.resolve({ score: 1, reason: '' }) },
    large() { return { score: 1, reason: 'x'.repeat(2 ** 22) } },
    long() { return { score: 1, reason: 'x'.repeat(2 ** 20) } },
    surrogate() { return { score: 1, reason: '\\ud800 \\n é 😀' } },
    late() { const end = performance.now() + 450; while (performance.now() < end); return { score: 1 } },
  }
  export const verifier = {
    name: 'obedient',
    summary: 'does what the completion says',
    verify({ completion, row }) {
      if (row?.journal) appendFileSync(row.journal, completion + '\\n')
      return deeds[completion.split(' ')[0]]?.() ?? { score: 1, reason: completion }
    },
  }`,
)

const tasksOf = (completions: readonly string[], row?: VerifyInput['row']): VerifyTask[] =>
  completions.map((completion) => ({ verifier: obedient, input: { completion, row } }))

/** A verdict each, in order: that of the deed, or else the completion itself. */
const expected = (completions: readonly string[], deeds: Record<string, unknown>) =>
  completions.map((completion) => deeds[completion] ?? { score: 1, reason: completion })

describe('verdicts', () => {
  const tasks: VerifyTask[] = Array.from({ length: 3000 }, (_, i) =>
    i % 3 === 0
      ? { verifier: 'math', input: { completion: `\\boxed{\\frac{${i}}{6}}`, groundTruth: `${i / 6}` } }
      : { verifier: 'gsm8k', input: { completion: `it is ${i % 7} \ud800 ünd 😀`, groundTruth: 3 } },
  )
  const direct = tasks.map(({ verifier, input }) => guardedVerify(findVerifier(verifier), input))

  it.each([1, 3])('are those of this thread, in order, with %i processes', async (threads) => {
    const pool = poolOf({ threads })
    const [all, few, none] = await Promise.all([pool.verify(tasks), pool.verify(tasks.slice(0, 10)), pool.verify([])])
    expect(all).toEqual(direct)
    expect(few).toEqual(direct.slice(0, 10))
    expect(none).toEqual([])
  })

  it('come from instructions, prompts, lengths and labels of any form, too', async () => {
    const rows: VerifyTask[] = [
      {
        verifier: 'ifeval',
        input: { completion: 'a, b', row: { instruction_id_list: ['punctuation:no_comma'], kwargs: [{}] } },
      },
      { verifier: 'format', input: { completion: 'x</think> <answer>1</answer>', prompt: 'p <think>' } },
      { verifier: 'max_length', input: { completion: 'x', groundTruth: 10, tokenCount: 20 } },
      { verifier: 'string_f1', input: { completion: 'x y', groundTruth: ['x', 'z'] } },
    ]
    expect(await shared.verify(rows)).toEqual(
      rows.map(({ verifier, input }) => guardedVerify(findVerifier(verifier), input)),
    )
  })
})

describe('a verifier that', () => {
  const deeds: [deed: string, verdict: object][] = [
    ['hang', { score: 0, reason: `${obedient} took more than 400 ms` }],
    ['getter', { score: 0, reason: `${obedient} took more than 400 ms` }],
    ['late', { score: 0, reason: expect.stringMatching(/ took more than 400 ms$/) }],
    ['exit', { score: 0, reason: `${obedient} ended its process (exit code 7)` }],
    ['signal', { score: 0, reason: `${obedient} ended its process (SIGKILL)` }],
    ['throw', { score: 0, reason: 'obedient failed: thrown' }],
    ['deep', { score: 0, reason: expect.stringMatching(/obedient failed: .*call stack/) }],
    ['circle', { score: 1, reason: '', strict: [true] }],
    ['bare', { score: 0.5, reason: '' }],
    ['promise', { score: 0, reason: expect.stringMatching(/the score undefined/) }],
    ['large', { score: 0, reason: 'obedient gave a verdict of 4194312 characters' }],
    ['long', { score: 1, reason: 'x'.repeat(2 ** 20) }],
    ['surrogate', { score: 1, reason: '\ud800 \n é 😀' }],
  ]

  it.each(deeds)('does this costs its completion alone: %s', async (deed, verdict) => {
    rmSync(journal, { force: true })
    const completions = ['one', 'two', deed, ...Array.from({ length: 50 }, (_, i) => `after ${i}`)]
    const verdicts = await shared.verify(tasksOf(completions, { journal }))
    expect(verdicts).toEqual(expected(completions, { [deed]: verdict }))
    // Without notice from the process, what it had not reported is judged again; nothing else ever is.
    const judged = readFileSync(journal, 'utf8').trimEnd().split('\n')
    expect(judged.slice(judged.lastIndexOf(deed) + 1)).toEqual(completions.slice(3))
    if (deed === 'exit' || deed === 'signal') expect(new Set(judged)).toEqual(new Set(completions))
    else expect(judged).toEqual(completions)
  })

  it('runs out of memory costs its completion alone, however it does that', async () => {
    const deeds = ['fill', 'leap', 'bytes']
    const completionsOf = (deed: string) => ['one', deed, 'two', deed, 'three']
    const verdicts = await Promise.all(
      deeds.map((deed) => poolOf({ timeoutMs: 30_000, memoryMiB: 32 }).verify(tasksOf(completionsOf(deed)))),
    )
    const verdict = { score: 0, reason: `${obedient} ran out of memory (it may have 32 MiB)` }
    expect(verdicts).toEqual(deeds.map((deed) => expected(completionsOf(deed), { [deed]: verdict })))
  })

  it('ends its process between two batches is not noticed', async () => {
    const pool = poolOf()
    for (const verifier of ['gsm8k', 'math', 'string_match']) {
      expect(await pool.verify(tasksOf(['leave']))).toEqual([{ score: 1, reason: 'leave' }])
      const input = { completion: '1', groundTruth: '1' }
      expect(await pool.verify([{ verifier, input }])).toMatchObject([{ score: 1 }])
    }
  })

  it('hangs again and again holds up nobody else for long', async () => {
    const completions = Array.from({ length: 12 }, (_, i) => (i % 4 === 1 ? `hang ${i}` : `fine ${i}`))
    const pool = poolOf({ threads: 2, timeoutMs: 100 })
    const [hostile, friendly] = await Promise.all([
      pool.verify(tasksOf(completions)),
      pool.verify([{ verifier: 'gsm8k', input: { completion: '1', groundTruth: '1' } }]),
    ])
    expect(hostile.map(({ score }) => score)).toEqual(completions.map((one) => (one.startsWith('hang') ? 0 : 1)))
    expect(friendly[0]!.score).toBe(1)
  })
})

describe('errors', () => {
  it('of the first bad row are reported, whichever process finds one first', async () => {
    const tasks: VerifyTask[] = Array.from({ length: 4000 }, (_, i) => ({
      verifier: 'gsm8k',
      input: { completion: '1', groundTruth: i >= 1700 && i % 100 === 0 ? undefined : '1' },
    }))
    const error = await poolOf({ threads: 3 })
      .verify(tasks)
      .catch((one) => one)
    expect(error).toMatchObject({
      code: 'ERR_DATA',
      message: 'task 1700: gsm8k: `ground_truth` must be text or a number; got nothing',
      details: { task: 1700, verifier: 'gsm8k', field: 'ground_truth' },
      hint: expect.stringMatching(/correct the row/),
    })
  })

  it('name a row that cannot be sent', async () => {
    const tasks = tasksOf(['a', 'b'])
    tasks[1]!.input.row = { deed: () => {} }
    await expect(shared.verify(tasks)).rejects.toMatchObject({
      code: 'ERR_DATA',
      message: expect.stringMatching(/^task 1: .*no plain data/),
    })
  })

  it('name a task without an input, and one whose completion is no text', async () => {
    const pool = shared
    for (const [input, message] of [
      [undefined, 'task 1: gsm8k: `input` must be an object; got nothing'],
      [{ completion: 7, groundTruth: '7' }, 'task 1: gsm8k: `completion` must be text; got 7'],
    ] as const) {
      const tasks = [{ completion: '7', groundTruth: '7' }, input].map((one) => ({ verifier: 'gsm8k', input: one }))
      await expect(pool.verify(tasks as VerifyTask[])).rejects.toMatchObject({ code: 'ERR_DATA', message })
    }
  })

  it('leave the pool usable', async () => {
    const pool = shared
    await expect(pool.verify([{ verifier: 'gsm8k', input: { completion: '1' } }])).rejects.toThrow(/task 0/)
    await expect(pool.verify([{ verifier: 'gms8k', input: { completion: '1' } }])).rejects.toThrow(/no verifier/)
    expect(await pool.verify(tasksOf(['fine']))).toEqual([{ score: 1, reason: 'fine' }])
  })

  it.each([{ threads: 0 }, { threads: 1.5 }, { timeoutMs: -1 }, { memoryMiB: Number.NaN }])('%j', (options) => {
    expect(() => new VerifierPool(options)).toThrow(expect.objectContaining({ code: 'ERR_CONFIG' }))
  })
})

/** Hangs, having written the number of its process. */
const pidFile = join(folder, 'pid')
const telling = moduleFile(
  'telling.mjs',
  `import { writeFileSync } from 'node:fs'
  export const verifier = { name: 'telling', summary: '', verify() {
    writeFileSync(${JSON.stringify(pidFile)}, String(process.pid)); for (;;); } }`,
)
const pidOfTelling = () => Number(readFileSync(pidFile, 'utf8'))

describe('ending', () => {
  it('is at once when the signal fires, and other work goes on', async () => {
    const pool = poolOf({ timeoutMs: 20_000 })
    const stop = new AbortController()
    const hanging = pool.verify(tasksOf(['hang']), stop.signal)
    setTimeout(() => stop.abort(new Error('enough')), 300)
    await expect(hanging).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: new Error('enough') })
    expect(await pool.verify(tasksOf(['fine']))).toEqual([{ score: 1, reason: 'fine' }])
    await expect(pool.verify(tasksOf(['fine']), stop.signal)).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  })

  it('rejects what is in work and what comes after', async () => {
    const pool = poolOf({ timeoutMs: 20_000 })
    rmSync(pidFile, { force: true })
    const hanging = pool.verify([{ verifier: telling, input: { completion: '' } }])
    hanging.catch(() => {})
    await expect.poll(() => existsSync(pidFile), { timeout: 10_000 }).toBe(true)
    expect(isRunning(pidOfTelling())).toBe(true)
    await pool.dispose()
    expect(isRunning(pidOfTelling())).toBe(false)
    await expect(hanging).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
    await expect(pool.verify(tasksOf(['fine']))).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
    await pool.dispose()
  })

  it('needs nobody: a process with an idle pool ends, and takes its own processes along', async () => {
    const pool = workerUrl(new URL('../../lib/verify/x.js', import.meta.url).href, './verifier_pool.js')
    const script = (last: string) => `
      import { VerifierPool } from '${pool.href}'
      const pool = new VerifierPool({ timeoutMs: 600000 })
      const task = (completion) => ({ verifier: ${JSON.stringify(obedient)}, input: { completion } })
      console.log((await pool.verify([task('fine')]))[0].score)
      ${last}`
    const run = (last: string) =>
      promisify(execFile)(process.execPath, ['--input-type=module', '-e', script(last)], { timeout: 20_000 })
    rmSync(pidFile, { force: true })
    const hanging = `import { existsSync } from 'node:fs'
      pool.verify([{ verifier: ${JSON.stringify(telling)}, input: { completion: '' } }]).catch(() => {})
      setInterval(() => existsSync(${JSON.stringify(pidFile)}) && process.exit(0), 20)`
    const [idle] = await Promise.all([run(''), run(hanging)])
    expect(idle.stdout).toBe('1\n')
    await expect.poll(() => isRunning(pidOfTelling()), { timeout: 10_000 }).toBe(false)
  })
})

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

describe('modules', () => {
  const verify = 'verify: () => ({ score: 1, reason: "" })'
  const faults: [name: string, text: string | undefined, message: RegExp][] = [
    ['missing.mjs', undefined, /missing\.mjs: there is no such file; expected a module that exports `verifier`/],
    ['other.mjs', 'export const rule = 1, truth = 2', /other\.mjs: it exports rule, truth, but no `verifier`/],
    ['empty.mjs', '', /it exports nothing, but no `verifier`/],
    ['syntax.mjs', 'export const = 1', /it does not load: SyntaxError/],
    ['throws.mjs', 'throw new Error("not today")', /it does not load: Error: not today/],
    ['text.mjs', 'export const verifier = "math"', /its `verifier` must be an object; got "math"/],
    [
      'nameless.mjs',
      `export const verifier = { summary: '', ${verify} }`,
      /`verifier\.name` must be text; got undefined/,
    ],
    ['summary.mjs', `export const verifier = { name: 'a', ${verify} }`, /`verifier\.summary` must be text/],
    ['idle.mjs', `export const verifier = { name: 'a', summary: '' }`, /`verifier\.verify` must be a function/],
    [
      'async.mjs',
      `export const verifier = { name: 'a', summary: '', async verify() {} }`,
      /must return its verdict, not a promise of one; got an async function/,
    ],
    [
      'unready.mjs',
      `export const verifier = { name: 'a', summary: '', prepare() { throw new Error('no table') }, ${verify} }`,
      /its `prepare` failed: no table/,
    ],
    ['exits.mjs', 'process.exit(3)', /it ended its process \(exit code 3\) while it was loaded/],
  ]

  it.each(faults)('%s is ERR_CONFIG', async (name, text, message) => {
    const path = text === undefined ? join(folder, name) : moduleFile(name, text)
    const pool = shared
    for (const attempt of [pool.load([path]), pool.verify([{ verifier: path, input: { completion: '' } }])]) {
      await expect(attempt).rejects.toMatchObject({ code: 'ERR_CONFIG', message: expect.stringMatching(message) })
    }
  })

  it('are told from names by a separator or an ending', () => {
    const paths = ['./a', 'a/b', '/a', 'a.js', 'a.mjs', 'a.cjs', 'a.ts', 'a.mts', '..\\a']
    expect(paths.map(isVerifierPath)).toEqual(paths.map(() => true))
    const names = ['gsm8k', 'gsm8k_v1', 'a.json', 'js', 'ts']
    expect(names.map(isVerifierPath)).toEqual(names.map(() => false))
  })

  it('are loaded into this thread on request', async () => {
    expect((await loadVerifier(obedient)).verify({ completion: 'x' })).toEqual({ score: 1, reason: 'x' })
    expect(await loadVerifier('math')).toBe(findVerifier('math'))
    await expect(loadVerifier('./nowhere.js')).rejects.toMatchObject({ code: 'ERR_CONFIG' })
  })

  it('may be TypeScript where Node strips types', async () => {
    const path = moduleFile(
      'typed.ts',
      `export const verifier = { name: 'typed', summary: '', verify: (_: object): object => ({ score: 1, reason: 'ts' }) }`,
    )
    const attempt = shared.verify([{ verifier: path, input: { completion: '' } }])
    if ((process.features as { typescript?: unknown }).typescript) {
      expect(await attempt).toEqual([{ score: 1, reason: 'ts' }])
    } else {
      await expect(attempt).rejects.toMatchObject({
        code: 'ERR_CONFIG',
        message: expect.stringMatching(/does not run TypeScript/),
      })
    }
  })
})
