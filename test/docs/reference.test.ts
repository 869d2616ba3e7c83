// What the documentation lists is what there is: options, settings with their defaults, numbers of the recipe, error
// codes, environment variables. A list that nobody checks is wrong after the next change.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { isDeepStrictEqual } from 'node:util'
import type { Command } from 'commander'
import { describe, expect, it } from 'vitest'
import { createProgram } from '../../lib/cli/program.js'
import { groupAdvantageKinds } from '../../lib/losses/advantage.js'
import { ktoMetrics } from '../../lib/losses/kto.js'
import { preferenceLosses } from '../../lib/losses/preference.js'
import { rewardMetrics } from '../../lib/losses/reward.js'
import { lossAverages } from '../../lib/methods/online_method.js'
import { blockKeptBytesPerToken, forwardFlopsPerToken } from '../../lib/models/index.js'
import { klKinds, policyMetrics, preferenceMetrics, surrogates, valueMetrics } from '../../lib/ops/index.js'
import { loraDefaults } from '../../lib/recipes/lora_setting.js'
import {
  dpoDefaults,
  evalDefaults,
  pretrainDefaults,
  resolveStage,
  rewardDefaults,
  rlvrDefaults,
  type Settings,
  sftDefaults,
  trainingDefaults,
} from '../../lib/recipes/stage.js'
import { tulu3 } from '../../lib/recipes/tulu3.js'
import { checkpointings } from '../../lib/tensor/index.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const textOf = (path: string) => readFileSync(join(root, path), 'utf8')

/** The text below `heading`, to the next heading of the same or a higher level. */
function section(text: string, heading: string): string {
  const level = /^#+/.exec(heading)![0].length
  const lines = text.split('\n')
  const begin = lines.indexOf(heading)
  expect(begin, heading).toBeGreaterThanOrEqual(0)
  const end = lines.findIndex((line, i) => i > begin && /^#+ /.test(line) && /^#+/.exec(line)![0].length <= level)
  return lines.slice(begin + 1, end < 0 ? undefined : end).join('\n')
}

/** The cells of the rows of all tables in `text`, in the order of the text. */
function tableRows(text: string): string[][] {
  const rows = text.split('\n').filter((line) => line.startsWith('|') && !/^\|[-|\s]+$/.test(line))
  return rows.map((line) =>
    line
      .slice(1, -1)
      .split(/(?<!\\)\|/)
      .map((cell) => cell.trim()),
  )
}

const codeWords = (text: string) => [...text.matchAll(/`([^`]+)`/g)].map(([, word]) => word!)
const quotedWords = (text: string) => [...text.matchAll(/'(\w+)'/g)].map(([, word]) => word!)
const longOptions = (text: string) => new Set([...text.matchAll(/(?<![\w-])--[a-z][a-z-]*/g)].map(([option]) => option))

describe('docs/cli.md', () => {
  const text = textOf('docs/cli.md')
  const commands = createProgram(() => {}).commands.filter((command) => command.name() !== 'help')

  /** Options of a command and of those below it. */
  const optionsOf = (command: Command): string[] => [
    ...command.options.filter(({ hidden }) => !hidden).map(({ long }) => long!),
    ...command.commands.flatMap(optionsOf),
  ]

  it.each(commands.map((command) => [command.name(), command] as const))('lists the options of %s', (name, command) => {
    const documented = longOptions(section(text, `## ${name}`))
    expect([...documented].sort()).toEqual([...new Set(optionsOf(command))].sort())
  })

  it('has a section for every command and no other', () => {
    const linked = [...text.matchAll(/^\| \[`([\w-]+)`\]/gm)].map(([, name]) => name)
    expect(linked.sort()).toEqual(commands.map((command) => command.name()).sort())
  })

  it('names the environment variables that the code reads', () => {
    const sources = readdirSync(join(root, 'lib'), { recursive: true, encoding: 'utf8' }).filter((name) =>
      name.endsWith('.ts'),
    )
    const read = sources.flatMap(
      (name) => textOf(`lib/${name}`).match(/(?:process\.env|environment)\.CARAVAN_\w+/g) ?? [],
    )
    const wanted = new Set(read.map((use) => use.replace(/.*\./, '')))
    const named = new Set(section(text, '## Environment').match(/CARAVAN_\w+/g))
    expect([...named].sort()).toEqual([...wanted].sort())
  })
})

/** As docs/recipes.md writes a value: numbers in either notation, words, nothing for what is empty. */
function sameValue(written: string, value: Settings[string]): boolean {
  const plain = written.replaceAll('`', '').trim()
  if (typeof value === 'number') return plain !== '' && Number(plain.replaceAll(' ', '')) === value
  if (Array.isArray(value)) return plain === value.join(',')
  if (typeof value === 'object') return plain === '' && Object.keys(value).length === 0
  return plain === String(value)
}

/** Rows of a table of settings as [key, value] pairs; a row may hold several, separated by commas. */
function settingPairs(text: string): [string, string][] {
  return tableRows(text).flatMap(([keys, values]) => {
    const names = codeWords(keys!)
    const parts = names.length > 1 ? values!.split(',') : [values!]
    return names.map((name, i): [string, string] => [name, parts[i] ?? ''])
  })
}

/** The settings of a stage that are not among `shared` ones. */
function without(settings: Settings, ...shared: Settings[]): Settings {
  return Object.fromEntries(Object.entries(settings).filter(([key]) => !shared.some((others) => key in others)))
}

/** The settings that `a` has in common with `b`, with the same default. */
function common(a: Settings, b: Settings): Settings {
  return Object.fromEntries(Object.entries(a).filter(([key, value]) => key in b && isDeepStrictEqual(b[key], value)))
}

const ofAll = common(trainingDefaults, rlvrDefaults)
const onAnswers = without(common(common(sftDefaults, dpoDefaults), rewardDefaults), trainingDefaults, loraDefaults)
const onData = common(onAnswers, rlvrDefaults)
const onPairs = without(common(dpoDefaults, rewardDefaults), trainingDefaults, loraDefaults, onAnswers)

/** What the tables of published numbers say of one scale. An empty cell repeats the one to its left. */
function publishedNumbers(text: string, scale: string): Map<string, string> {
  const [header, ...rows] = tableRows(text)
  const column = Math.max(header!.indexOf(scale), header!.indexOf('all scales'))
  expect(column).toBeGreaterThan(0)
  const written = new Map<string, string>()
  for (const cells of rows) {
    const cell = cells.slice(1, column + 1).findLast((part) => part !== '') ?? ''
    const names = codeWords(cells[0]!)
    const parts = cell.replace(' to 0', '').split(',')
    for (const [i, name] of names.entries()) written.set(name, parts[i] ?? '')
  }
  return written
}

describe('docs/recipes.md', () => {
  const text = textOf('docs/recipes.md')

  it.each([
    ['### All stages', ofAll],
    ['### Stages on fixed data', without(trainingDefaults, ofAll)],
    ['### Stages on data', onData],
    ['### Stages on answers', without(onAnswers, onData)],
    ['### sft', without(sftDefaults, trainingDefaults, loraDefaults, onAnswers)],
    ['### Stages on pairs', onPairs],
    ['### dpo', without(dpoDefaults, trainingDefaults, loraDefaults, onAnswers, onPairs)],
    ['### reward_model', without(rewardDefaults, trainingDefaults, loraDefaults, onAnswers, onPairs)],
    ['### rlvr', without(rlvrDefaults, ofAll, loraDefaults, onData)],
    ['### eval', evalDefaults],
    ['### lora', loraDefaults],
    ['### base (pretrain)', without(pretrainDefaults, trainingDefaults)],
  ] as [string, Settings][])('lists the settings of %s with their defaults', (heading, defaults) => {
    const pairs = settingPairs(section(text, heading))
    expect(pairs.map(([key]) => key).sort()).toEqual(Object.keys(defaults).sort())
    for (const [key, written] of pairs) expect(sameValue(written, defaults[key]!), `${key}: ${written}`).toBe(true)
  })

  it.each([
    ['#### Supervised fine-tuning', 'sft'],
    ['#### Preference tuning', 'dpo'],
    ['#### Reward model', 'reward_model'],
    ['#### Verifiable rewards: PPO', 'rlvr', 'ppo'],
    ['#### Verifiable rewards: GRPO', 'rlvr', 'grpo'],
  ])('has the published numbers: %s', (heading, name, algorithm?: string) => {
    for (const scale of ['8b', '70b', '405b']) {
      const stage = tulu3({ scale, algorithm }).stages.find((candidate) => candidate.name === name)!
      const settings: Settings = resolveStage(stage, {}).values
      const written = publishedNumbers(section(text, heading), scale)
      for (const [key, value] of written) {
        expect(sameValue(value, settings[key]!), `${scale}: ${key} ${value}`).toBe(true)
      }
      const unwritten = Object.keys(stage.settings).filter((key) => !written.has(key))
      expect(unwritten).toEqual(['activationCheckpointing']) // in the text below the tables
    }
  })

  it('names the stages that a recipe has', () => {
    const names = [...tableRows(section(text, '## tulu3'))].map(([cell]) => codeWords(cell!)[0])
    for (const { name } of tulu3().stages) expect(names).toContain(name)
  })
})

describe('docs/memory.md', () => {
  const rows = tableRows(section(textOf('docs/memory.md'), '## Activation checkpointing'))
  const shape = tulu3({ scale: '8b' }).model!.shape

  it('lists every mode of checkpointing', () => {
    expect(rows.slice(1, 1 + checkpointings.length).map(([mode]) => codeWords(mode!)[0])).toEqual([...checkpointings])
  })

  it('has the sizes of the formula, and rows that add up to them', () => {
    const from = rows.findIndex(([what]) => what === 'what')
    const parts = rows.slice(from + 1).filter(([what]) => !what!.startsWith('**'))
    const totals = (what: string) =>
      rows
        .find(([name]) => name!.startsWith(`**${what}`))!
        .slice(3)
        .map(Number)
    const written = checkpointings.map((_, column) => {
      const kept = parts.filter((cells) => cells[3 + column] === 'kept')
      const again = parts.filter((cells) => cells[3 + column] === 'again')
      const sum = (of: string[][], cell: number) => of.reduce((total, cells) => total + Number(cells[cell]), 0)
      return { kept: sum(kept, 1), again: sum(again, 2) }
    })
    for (const [column, mode] of checkpointings.entries()) {
      const bytes = blockKeptBytesPerToken(shape, 'bf16', mode)
      // The norms' numbers, one a row, are not in the rows.
      expect(Math.abs(written[column]!.kept * 1024 - bytes), mode).toBeLessThanOrEqual(8)
      expect(totals('a block')[column]).toBe(Math.round((bytes / 1024) * 10) / 10)
      expect(totals('all 32')[column]).toBe(Math.round((bytes * shape.L) / 1024))
      expect(totals('computed again')[column]).toBeCloseTo(written[column]!.again, 0)
    }
    // Products and attention of a block: all but the last product are computed again in full.
    const block = forwardFlopsPerToken({ ...shape, L: 1, V: 0, windows: [0] }, 2048) - 2 * shape.F * shape.D
    expect(written[2]!.again * 1e6).toBeCloseTo(block, -6)
  })
})

describe('docs/preference.md', () => {
  const text = textOf('docs/preference.md')

  it('has a formula for every loss', () => {
    const rows = tableRows(section(text, '## Losses')).slice(1)
    expect(rows.flatMap(([cell]) => codeWords(cell!))).toEqual([...preferenceLosses])
  })

  it.each([
    ['## Metrics', preferenceMetrics],
    ['## KTO', ktoMetrics],
    ['### Loss', rewardMetrics],
  ])('lists what is logged: %s', (heading, names) => {
    const rows = tableRows(section(text, heading)).slice(1)
    const logged = rows.flatMap(([cell]) => codeWords(cell!)).filter((name) => !name.startsWith('eval/'))
    expect(logged).toEqual([...names])
  })
})

describe('docs/rl.md', () => {
  const text = textOf('docs/rl.md')

  it.each([
    ['## Loss of the policy', [...surrogates, ...klKinds.filter((kind) => kind !== 'none'), 'none', ...lossAverages]],
    ['## GRPO', groupAdvantageKinds],
  ] as [string, readonly string[]][])('explains every word of the settings: %s', (heading, words) => {
    const explained = tableRows(section(text, heading)).flatMap(([cell]) => codeWords(cell!))
    expect(explained.filter((word) => words.includes(word))).toEqual([...words])
  })

  it('lists what is logged', () => {
    const sources = ['online_method', 'rollout_facts', 'ppo', 'grpo'].map((name) => textOf(`lib/methods/${name}.ts`))
    const facts = sources.flatMap((source) => source.match(/(?<=')(?:objective|rollout|value|time)\/\w+(?=')/g) ?? [])
    const logged = tableRows(section(text, '## Metrics')).flatMap(([cell]) => codeWords(cell!))
    // The norm of the value model is named by the optimizer.
    expect(logged.sort()).toEqual([...facts, ...policyMetrics, ...valueMetrics, 'value/gradNorm'].sort())
  })

  it('lists the columns of prompts in the order in which they are tried', () => {
    const source = textOf('lib/data/prompt_rows.ts')
    const tried = quotedWords(/const PROMPTS = \[([^\]]+)\]/.exec(source)![1]!)
    const labels = quotedWords(/const LABELS: FieldName\[\] = \[([^\]]+)\]/.exec(source)![1]!)
    const rows = tableRows(section(text, '## Prompts')).map(([cell]) => codeWords(cell!))
    expect(rows.flat().filter((word) => tried.includes(word))).toEqual(tried)
    expect(
      rows
        .flat()
        .filter((word) => labels.includes(word))
        .sort(),
    ).toEqual(labels.sort())
  })
})

describe('docs/embedding.md', () => {
  it('lists the error codes', () => {
    const declared = new Set(
      [...textOf('lib/base/errors.ts').matchAll(/^ {2}\| '(ERR_\w+)'/gm)].map(([, code]) => code!),
    )
    const rows = tableRows(section(textOf('docs/embedding.md'), '## Errors'))
    expect([...new Set(rows.flatMap(([codes]) => codeWords(codes!)))].sort()).toEqual([...declared].sort())
  })
})

describe('docs/data.md', () => {
  it.each([
    ['## Rows', 'lib/data/rows.ts', 9],
    ['## Pairs', 'lib/data/pair_rows.ts', 3],
  ])('lists the shapes of %s in the order in which they are tried', (heading, path, count) => {
    const source = textOf(path)
    const tried = [...source.matchAll(/^ +(?:\{ )?fields: \[([^\]]+)\]/gm)].map(([, list]) => quotedWords(list!))
    expect(tried.length).toBe(count)
    const rows = tableRows(section(textOf('docs/data.md'), heading)).slice(1)
    const documented = rows.flatMap(([cell]) => cell!.split(', or').map((part) => codeWords(part)))
    const required = documented.map((fields, i) => fields.slice(0, tried[i]?.length))
    expect(required).toEqual(tried)
  })
})
