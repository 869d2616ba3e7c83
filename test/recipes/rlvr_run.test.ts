// The stage with verifiable rewards on files of one's own: prompts, verifiers by column and by module, reward models,
// what is refused before anything is generated, and what a stop during generation leaves behind.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import type { Recipe, StageRecipe } from '../../lib/recipes/stage.js'
import { MetricsLog } from '../../lib/train/metrics.js'
import { hashOfFile, modelFolder, outcomeOf, writeLines } from './small_run.js'

let root: string
let letters: string
let directory: string
let runs = 0
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'caravan-rlvr-'))
  letters = join(root, 'letters.mjs')
  // Half of all answers or so are accepted, whatever a random model writes.
  writeFileSync(
    letters,
    `export const verifier = {
       name: 'letters', summary: 'even length',
       verify: ({ completion, groundTruth }) => ({ score: completion.length % 2, reason: String(groundTruth) }),
     }`,
  )
})
afterAll(() => rmSync(root, { recursive: true, force: true }))
beforeEach(() => {
  directory = join(root, `run-${runs++}`)
})

const prompts = (count: number, more: object = {}) =>
  Array.from({ length: count }, (_, i) => ({ prompt: `Say ${i} words.`, ground_truth: `${i}`, ...more }))

function recipe(settings: (StageRecipe & { kind: 'rlvr' })['settings'] = {}): Recipe {
  return {
    name: 'small',
    scale: 'test',
    description: 'rewards on a random model',
    stages: [
      {
        name: 'rlvr',
        kind: 'rlvr',
        settings: {
          rollouts: 3,
          promptsPerRollout: 4,
          samplesPerPrompt: 2,
          maxNewTokens: 8,
          miniBatches: 2,
          microBatchTokens: 256,
          lr: 1e-3,
          penaliseUnfinished: false,
          ...settings,
        },
      },
    ],
    dtype: 'f32',
  }
}

interface Given {
  rows?: readonly unknown[]
  settings?: (StageRecipe & { kind: 'rlvr' })['settings']
  folder?: string
  resume?: boolean
  stopAt?: (event: { type: string; step?: number }) => boolean
}

async function trained({
  rows = prompts(9, { verifier: letters }),
  settings,
  folder = directory,
  ...given
}: Given = {}) {
  const stop = new AbortController()
  const data = [writeLines(join(root, 'prompts.jsonl'), rows)]
  const options = { directory: folder, model: modelFolder, data, resume: given.resume, stop: stop.signal }
  const outcome = await outcomeOf(options, {
    recipe: recipe(settings),
    leave: (event) => {
      if (given.stopAt?.(event)) stop.abort()
      return false
    },
  })
  return { ...outcome, rows: await new MetricsLog(folder).rows() }
}

describe.each(['ppo', 'grpo', 'rloo'] as const)('%s', (algorithm) => {
  it('trains on prompts of a file, logs its rollouts and saves what it has trained', async () => {
    const { error, rows } = await trained({ settings: { algorithm } })
    expect(error).toBeUndefined()
    expect(rows.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6])
    for (const row of rows) expect(row['rollout/logprob_diff_max']).toBe(0)
    expect(rows[0]!['objective/verified']).toBeGreaterThan(0)
    expect(rows[0]!['objective/verified']).toBeLessThan(1)
    expect(rows[0]!['objective/kl']).toBeCloseTo(0, 6)
    expect(rows.at(-1)!['objective/kl3']).toBeGreaterThan(1e-6)
    expect(readdirSync(join(directory, 'rlvr')).includes('value')).toBe(algorithm === 'ppo')
    const log = join(directory, 'rollouts', 'rlvr')
    expect(readdirSync(log).length).toBe(3)
    const lines = readFileSync(join(log, 'rollout-000001.jsonl'), 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
    expect(
      lines
        .filter((line) => 'group' in line)
        .map(({ group }) => group)
        .sort(),
    ).toEqual([0, 1, 2, 3])
    expect(lines[0].answers.length).toBe(2)
  })

  it('stopped and resumed, has the same weights', async () => {
    const settings = { algorithm, checkpointEvery: 1 }
    const whole = join(root, `whole-${algorithm}`)
    await trained({ settings, folder: whole })
    const stopped = await trained({ settings, stopAt: ({ type, step }) => type === 'step' && step === 3 })
    expect(stopped.error).toMatchObject({ code: 'ERR_ABORTED' })
    const rest = await trained({ settings, resume: true })
    expect(rest.error).toBeUndefined()
    expect(hashOfFile(directory, 'rlvr', 'model.safetensors')).toBe(hashOfFile(whole, 'rlvr', 'model.safetensors'))
  })
})

it('asks every prompt once in a pass, in an order of its own for each', async () => {
  await trained({ rows: prompts(8, { verifier: letters }), settings: { rollouts: 4, algorithm: 'grpo' } })
  const asked = [1, 2, 3, 4].map((n) =>
    readFileSync(join(directory, 'rollouts', 'rlvr', `rollout-00000${n}.jsonl`), 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
      .filter((line) => 'group' in line)
      .sort((a, b) => a.group - b.group)
      .map(({ prompt }) => prompt as string),
  )
  const passes = [asked.slice(0, 2).flat(), asked.slice(2).flat()]
  for (const pass of passes) expect([...pass].sort()).toEqual(prompts(8).map(({ prompt }) => prompt))
  expect(passes[0]).not.toEqual(passes[1])
})

it('gives an answer that did not end the penalty in place of its verdict', async () => {
  const settings = { algorithm: 'grpo', rollouts: 1, penaliseUnfinished: true, unfinishedReward: -7, maxNewTokens: 2 }
  expect((await trained({ settings })).error).toBeUndefined()
  const log = readFileSync(join(directory, 'rollouts', 'rlvr', 'rollout-000001.jsonl'), 'utf8')
  const lines = log
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { answers?: Record<string, unknown>[] })
  const cut = lines.flatMap(({ answers = [] }) => answers).filter((answer) => answer.finish_reason === 'length')
  expect(cut.length).toBeGreaterThan(2)
  for (const { reward, score, reason } of cut) {
    expect({ reward, score, reason }).toEqual({ reward: -7, score: 0, reason: 'the answer did not end' })
  }
})

it('adds the opinion of a reward model', async () => {
  const reward = join(root, 'reward')
  const pairs = Array.from({ length: 8 }, (_, i) => ({ prompt: `Say ${i}.`, chosen: `${i}`, rejected: 'No.' }))
  const made = await outcomeOf(
    { directory: reward, model: modelFolder, data: [writeLines(join(root, 'pairs.jsonl'), pairs)] },
    {
      recipe: {
        ...recipe(),
        stages: [{ name: 'reward_model', kind: 'reward_model', settings: { steps: 1, batchSequences: 4 } }],
      },
    },
  )
  expect(made.error).toBeUndefined()
  const settings = { algorithm: 'grpo', rewardModel: join(reward, 'reward_model'), rewardModelWeight: 2 }
  const { error, rows } = await trained({ settings })
  expect(error).toBeUndefined()
  // Whole scores of the verifier alone would be 0 or 10.
  expect((rows[0]!['objective/reward']! as number) % 1).not.toBe(0)
})

it('a verifier that hangs costs its answers their reward, and training goes on', async () => {
  const hanging = join(root, 'hanging.mjs')
  writeFileSync(
    hanging,
    `export const verifier = { name: 'hanging', summary: '', verify({ completion }) {
       if (completion.length % 2) for (;;);
       if (completion.length % 3) throw new Error('broken')
       return { score: 1, reason: '' } } }`,
  )
  const { error, rows } = await trained({
    rows: prompts(4, { verifier: hanging }),
    settings: { algorithm: 'grpo', rollouts: 1, verifierTimeoutMs: 100 },
  })
  expect(error).toBeUndefined()
  expect(rows.length).toBe(2)
  const log = readFileSync(join(directory, 'rollouts', 'rlvr', 'rollout-000001.jsonl'), 'utf8')
  expect(log).toMatch(/"score":0,"reward":0,"reason":"[^"]*(100 ms|broken)/)
}, 60_000)

it('is stopped within a rollout, saves, and goes on from there', async () => {
  const whole = join(root, 'whole-stop')
  const settings = { algorithm: 'grpo' as const, rollouts: 2, miniBatches: 1 }
  await trained({ settings, folder: whole })
  const slow = join(root, 'slow.mjs')
  writeFileSync(
    slow,
    `import { verifier as inner } from './letters.mjs'
     export const verifier = { ...inner, name: 'slow', verify(input) {
       const until = Date.now() + 50
       while (Date.now() < until);
       return inner.verify(input) } }`,
  )
  const rows = prompts(9, { verifier: slow })
  // The first step is past; the next rollout is under way when the timer fires.
  let timer: NodeJS.Timeout | undefined
  const stop = new AbortController()
  const data = [writeLines(join(root, 'slow.jsonl'), rows)]
  const options = { directory, model: modelFolder, data, stop: stop.signal }
  const outcome = await outcomeOf(options, {
    recipe: recipe(settings),
    leave: (event) => {
      if (event.type === 'step' && event.step === 1) timer = setTimeout(() => stop.abort(), 120)
      return false
    },
  })
  clearTimeout(timer)
  expect(outcome.error).toMatchObject({ code: 'ERR_ABORTED', details: { step: 1 } })
  const rest = await outcomeOf({ ...options, stop: undefined, resume: true }, { recipe: recipe(settings) })
  expect(rest.error).toBeUndefined()
  expect(hashOfFile(directory, 'rlvr', 'model.safetensors')).toBe(hashOfFile(whole, 'rlvr', 'model.safetensors'))
})

describe('before anything is generated', () => {
  const refused = async (given: Given) => (await trained(given)).error

  it('a row without a verifier is named', async () => {
    expect(await refused({ rows: prompts(5) })).toMatchObject({
      code: 'ERR_DATA',
      message: expect.stringMatching(/prompts\.jsonl:1: no column says which verifier/),
      hint: expect.stringContaining('--set rlvr.verifier=gsm8k'),
    })
  })

  it('so is a label that its verifier cannot read', async () => {
    const rows = [...prompts(4, { verifier: 'gsm8k' }), { prompt: 'x', ground_truth: 'no number', verifier: 'gsm8k' }]
    expect(await refused({ rows })).toMatchObject({
      code: 'ERR_DATA',
      message: expect.stringMatching(/prompts\.jsonl:5: .*ground_truth/),
      details: { line: 5 },
    })
  })

  it('so is a verifier that does not exist', async () => {
    expect(await refused({ rows: prompts(4, { verifier: 'gsm8' }) })).toMatchObject({
      code: 'ERR_CONFIG',
      hint: expect.stringContaining("'gsm8k'"),
    })
  })

  it('so are fewer prompts than a rollout has', async () => {
    expect(await refused({ rows: prompts(3, { verifier: letters }) })).toMatchObject({
      code: 'ERR_CONFIG',
      message: expect.stringContaining('promptsPerRollout is 4, but there are only 3 prompts'),
    })
  })

  it('long prompts are left out and counted', async () => {
    const long = { prompt: 'word '.repeat(200), ground_truth: '1', verifier: letters }
    const { events } = await trained({
      rows: [...prompts(4, { verifier: letters }), long],
      settings: { maxPromptTokens: 60, rollouts: 1 },
    })
    expect(events).toContainEqual(
      expect.objectContaining({ type: 'warning', message: expect.stringMatching(/^1 prompts have more than 60/) }),
    )
  })

  it.each([
    [{ temperature: 0 }, 'temperature must be above 0'],
    [{ algorithm: 'grpo', samplesPerPrompt: 1 }, 'samplesPerPrompt must be at least 2'],
    [{ rewardModelWeight: 1 }, 'rewardModelWeight needs a model'],
    [{ asyncRollouts: true, 'lora.rank': 4 }, 'asyncRollouts copies all weights'],
    [{ clipLow: 0 }, 'clipLow must be above 0'],
    [{ miniBatches: 0 }, 'miniBatches must be a whole number of at least 1'],
    [{ gamma: 2 }, 'gamma must be in [0, 1]'],
  ])('settings that make no sense are: %j', async (settings, message) => {
    expect(await refused({ settings })).toMatchObject({ code: 'ERR_CONFIG', message: expect.stringContaining(message) })
  })
})

it('trains an adapter in place of the weights', async () => {
  const { error, rows } = await trained({ settings: { algorithm: 'grpo', 'lora.rank': 4 } })
  expect(error).toBeUndefined()
  for (const row of rows) expect(row['rollout/logprob_diff_max']).toBe(0)
  expect(readdirSync(join(directory, 'rlvr', 'adapter'))).toContain('adapter_model.safetensors')
})
