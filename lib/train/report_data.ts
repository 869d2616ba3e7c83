// What a report shows, read back from the files of a run folder. They are read as untrusted: a run that was killed, or
// an older version, leaves less than all of it.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileError } from '../data/atomic_file.js'
import { MetricsLog, type MetricsRow } from './metrics.js'

export interface ReportGate {
  name: string
  value: number | null
  bound: string
  passed: boolean
}

export interface ReportSample {
  stage: string
  prompt: string
  before?: string
  after: string
}

export interface ReportSetting {
  key: string
  value: string
  origin: string
}

export interface ReportStage {
  name: string
  settings: ReportSetting[]
  /** One row an optimizer step. */
  steps: MetricsRow[]
  /** One row an evaluation. */
  evaluations: MetricsRow[]
  gates: ReportGate[]
  /** What the finished stage was measured at. */
  metrics: { [name: string]: number | null }
  samples: ReportSample[]
  comparison: ReportComparison | undefined
}

/** Models of several stages on the same things. */
export interface ReportComparison {
  stages: string[]
  /** A value for each stage. */
  rows: { name: string; values: (number | null)[] }[]
  answers: { prompt: string; byStage: [stage: string, answer: string][] }[]
}

export interface ReportData {
  title: string
  facts: { name: string; value: string }[]
  stages: ReportStage[]
}

type Json = { [key: string]: unknown }

/** Reads recipe.json, metrics.jsonl, samples.jsonl and result.json of a run folder. */
export async function readReportData(directory: string): Promise<ReportData> {
  const recipe = (await readJson(join(directory, 'recipe.json'))) ?? {}
  const results = (await readJson(join(directory, 'result.json'))) ?? {}
  const rows = await new MetricsLog(directory).rows()
  const samples = parseLines(await readText(join(directory, 'samples.jsonl'))).flatMap(asSample)
  const described = asList(recipe.stages).map((stage) => asObject(stage))
  const names = new Set([...described.map(({ name }) => text(name)), ...rows.map(({ stage }) => stage)])
  const comparisons = new Map<string, ReportComparison>()
  for (const { name, kind } of described) {
    const found = kind === 'eval' ? await readJson(join(directory, text(name), 'eval.json')) : undefined
    if (found) comparisons.set(text(name), asComparison(found))
  }
  const stages = [...names].map((name): ReportStage => {
    const own = rows.filter(({ stage }) => stage === name)
    const { settings, origins } = described.find((stage) => stage.name === name) ?? {}
    const result = asObject(results[name])
    return {
      name,
      settings: settingRows(asObject(settings), asObject(origins)),
      steps: own.filter((row) => 'loss' in row && 'lr' in row),
      evaluations: own.filter((row) => !('lr' in row)),
      gates: asList(result.gates).flatMap(asGate),
      metrics: numbersOf(asObject(result.metrics)),
      samples: samples.filter(({ stage }) => stage === name),
      comparison: comparisons.get(name),
    }
  })
  return { title: `${text(recipe.recipe, 'run')} ${text(recipe.scale)}`.trim(), facts: factsOf(recipe), stages }
}

function factsOf(recipe: Json): ReportData['facts'] {
  const given = [
    ['precision', recipe.dtype],
    ['seed', recipe.seed],
    ['model', recipe.model],
    ['data', asList(recipe.data).map(String).join(', ')],
  ] as const
  return given.flatMap(([name, value]) => (value === undefined || value === '' ? [] : [{ name, value: String(value) }]))
}

function settingRows(settings: Json, origins: Json): ReportSetting[] {
  return Object.entries(settings).map(([key, value]) => ({
    key,
    value: typeof value === 'string' ? value : JSON.stringify(value),
    origin: text(origins[key], 'default'),
  }))
}

function asGate(value: unknown): ReportGate[] {
  const { name, value: measured, bound, passed } = asObject(value)
  if (typeof name !== 'string' || typeof passed !== 'boolean') return []
  return [{ name, value: typeof measured === 'number' ? measured : null, bound: text(bound), passed }]
}

function asSample(value: unknown): ReportSample[] {
  const { stage, prompt, before, after } = asObject(value)
  if (typeof prompt !== 'string' || typeof after !== 'string') return []
  return [{ stage: text(stage), prompt, before: typeof before === 'string' ? before : undefined, after }]
}

function asComparison({ metrics, answers }: Json): ReportComparison {
  const byStage = Object.entries(asObject(metrics)).map(([stage, values]) => ({
    stage,
    values: numbersOf(asObject(values)),
  }))
  const names = new Set(byStage.flatMap(({ values }) => Object.keys(values)))
  return {
    stages: byStage.map(({ stage }) => stage),
    rows: [...names].map((name) => ({ name, values: byStage.map(({ values }) => values[name] ?? null) })),
    answers: asList(answers).map((one) => {
      const given = asObject(asObject(one).byStage)
      return {
        prompt: text(asObject(one).prompt),
        byStage: Object.entries(given).map(([stage, said]) => [stage, text(said)]),
      }
    }),
  }
}

function numbersOf(values: Json): { [name: string]: number | null } {
  const isMeasure = (value: unknown): value is number | null => typeof value === 'number' || value === null
  return Object.fromEntries(
    Object.entries(values).filter((entry): entry is [string, number | null] => isMeasure(entry[1])),
  )
}

function text(value: unknown, fallback = ''): string {
  return typeof value === 'string' ? value : fallback
}

function asObject(value: unknown): Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : {}
}

function asList(value: unknown): unknown[] {
  return Array.isArray(value) ? value : []
}

function parseLines(lines: string | undefined): unknown[] {
  return (lines ?? '').split('\n').flatMap((line) => {
    const value = line === '' ? undefined : parsed(line)
    return value === undefined ? [] : [value]
  })
}

function parsed(json: string): unknown {
  try {
    return JSON.parse(json)
  } catch {
    return undefined
  }
}

async function readJson(path: string): Promise<Json | undefined> {
  const content = await readText(path)
  return content === undefined ? undefined : asObject(parsed(content))
}

async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw fileError('read', path, error)
  }
}
