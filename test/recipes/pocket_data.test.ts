import { describe, expect, it } from 'vitest'
import { type PocketRow, pocketData, TOKENIZER_DOCUMENTS } from '../../lib/recipes/pocket_data.js'
import { PROMPT_SETS, promptSet } from '../../lib/recipes/pocket_partition.js'
import { verifyInstruction } from '../../lib/verify/instruction_constraints.js'
import { verifyProblemAnswer } from '../../lib/verify/problem_answer.js'

const data = pocketData(1)
const begin = process.cpuUsage()
const rows = data.sftRows()
const documents = take(data.baseDocuments(), TOKENIZER_DOCUMENTS)
const generationMs = process.cpuUsage(begin).user / 1000
const held = data.evaluation()

function take<T>(items: Iterable<T>, count: number): T[] {
  const taken: T[] = []
  for (const item of items) {
    if (taken.length === count) break
    taken.push(item)
  }
  return taken
}

type RowOf<K extends PocketRow['kind']> = Extract<PocketRow, { kind: K }>
const ofKind = <K extends PocketRow['kind']>(kind: K) => rows.filter((row): row is RowOf<K> => row.kind === kind)
const promptOf = (row: PocketRow) => row.messages[0]!.content
const answerOf = (row: PocketRow) => row.messages[1]!.content
const near = (observed: number, expected: number, count: number) =>
  expect(Math.abs(observed - expected)).toBeLessThan(4 * Math.sqrt((expected * (1 - expected)) / count))

describe('sftRows', () => {
  it('mixes 42 % problems, 45 % instructions and 13 % chat in random order', () => {
    expect([ofKind('problem').length, ofKind('instruction').length, ofKind('chat').length]).toEqual([3780, 4050, 1170])
    expect(rows).toHaveLength(9000)
    const early = rows.slice(0, 3000)
    near(early.filter((row) => row.kind === 'problem').length / 3000, 0.42, 3000)
    near(early.filter((row) => row.kind === 'chat').length / 3000, 0.13, 3000)
  })

  it('holds one user turn and one assistant turn a row, problems and instructions without repeats', () => {
    expect(rows.filter((row) => row.messages.map((message) => message.role).join() !== 'user,assistant')).toEqual([])
    expect(rows.filter((row) => promptOf(row).trim() === '' || answerOf(row).trim() === '')).toEqual([])
    for (const kind of ['problem', 'instruction'] as const) {
      expect(new Set(ofKind(kind).map(promptOf)).size).toBe(ofKind(kind).length)
    }
  })

  it('solves every problem rightly, 40 % of them in haste, by question form', () => {
    const problems = ofKind('problem')
    const isWrong = (row: RowOf<'problem'>) => verifyProblemAnswer(answerOf(row), row.meta).score === 0
    expect(problems.filter(isWrong)).toEqual([])
    expect(problems.filter((row) => answerOf(row).includes('=') === row.meta.hasty)).toEqual([])
    const inviting = problems.filter((row) => row.meta.invitesHaste)
    const others = problems.filter((row) => !row.meta.invitesHaste)
    near(inviting.filter((row) => row.meta.hasty).length / inviting.length, 0.85, inviting.length)
    near(others.filter((row) => row.meta.hasty).length / others.length, 0.1, others.length)
  })

  it('breaks one constraint in 35 % of the instruction answers and says which', () => {
    const instructions = ofKind('instruction')
    const brokenKinds = (row: RowOf<'instruction'>) =>
      verifyInstruction(answerOf(row), row.meta.truth).constraints.flatMap(({ kind, passed }) => (passed ? [] : [kind]))
    const mislabelled = instructions.filter((row) => brokenKinds(row).join() !== (row.meta.broken ?? ''))
    expect(mislabelled).toEqual([])
    near(instructions.filter((row) => row.meta.broken !== null).length / 4050, 0.35, 4050)
  })

  it('asks each asked fact equally often and no held fact, half the time with a greeting', () => {
    const chat = ofKind('chat')
    const counts = data.world.facts.map((fact) => chat.filter((row) => row.meta.fact === fact.index).length)
    for (const fact of data.world.facts) {
      expect(fact.held ? [0] : [7, 8]).toContain(counts[fact.index])
    }
    expect(chat.filter((row) => !answerOf(row).includes(row.meta.value))).toEqual([])
    near(chat.filter((row) => /^(Hello!|Please help\.|Quick question:) /.test(promptOf(row))).length / 1170, 0.5, 1170)
  })

  it('never states a held fact: only the base corpus does', () => {
    const text = rows.map((row) => answerOf(row).toLowerCase()).join('\n')
    const corpus = documents.join('\n').toLowerCase()
    const statedIn = (where: string) =>
      data.world.heldFacts.filter((fact) =>
        fact.statements.some((form) => where.includes(form.toLowerCase().slice(0, -1))),
      )
    expect(statedIn(text)).toEqual([])
    expect(statedIn(corpus)).toHaveLength(55)
  })

  it('serves any count, also more than the instruction space holds', () => {
    expect(data.sftRows(0)).toEqual([])
    expect(data.sftRows(1)).toHaveLength(1)
    expect(
      data
        .sftRows(100)
        .map((row) => row.kind)
        .sort()
        .join(''),
    ).toBe('chat'.repeat(13) + 'instruction'.repeat(45) + 'problem'.repeat(42))
  })
})

describe('evaluation', () => {
  it('holds 300 problems, 300 instruction prompts, 100 asked and 100 held questions, all distinct', () => {
    const parts = [held.problems, held.instructions, held.asked, held.held]
    expect(parts.map((part) => part.length)).toEqual([300, 300, 100, 100])
    expect(new Set(parts.flat().map((item) => item.prompt)).size).toBe(800)
    expect(held.asked.every(({ fact }) => !fact.held) && held.held.every(({ fact }) => fact.held)).toBe(true)
    expect(new Set(held.asked.map(({ fact }) => fact.index)).size).toBe(100)
    expect(new Set(held.held.map(({ fact }) => fact.index)).size).toBe(55)
  })

  it('is the same for every data seed and grows by appending', () => {
    expect(pocketData(77).evaluation()).toEqual(held)
    const large = data.evaluation({ problems: 600, instructions: 600 })
    expect(large.problems.slice(0, 300)).toEqual(held.problems)
    expect(large.instructions.slice(0, 300)).toEqual(held.instructions)
    expect(large.instructions).toHaveLength(600)
  })

  it('says how many there are when too many are asked for', () => {
    const evaluate = (size: object) => () => data.evaluation(size)
    expect(evaluate({ held: 661 })).toThrow(
      expect.objectContaining({ code: 'ERR_CONFIG', details: { part: 'held', wanted: 661, found: 660 } }),
    )
    expect(evaluate({ asked: 2000 })).toThrow(expect.objectContaining({ code: 'ERR_CONFIG' }))
    expect(evaluate({ problems: -1 })).toThrow(expect.objectContaining({ code: 'ERR_CONFIG' }))
  })
})

describe('prompt sets', () => {
  const prompts = (set: (typeof PROMPT_SETS)[number]) =>
    new Set([
      ...take(data.problems(set), 400).map((problem) => problem.scenario),
      ...take(data.instructions(set), 400).map((instruction) => instruction.prompt),
    ])

  it('share no prompt, and no story either, whatever seed drew them', () => {
    const training = new Set(rows.map(promptOf))
    const evaluated = [...held.problems, ...held.instructions, ...held.asked, ...held.held]
    expect(evaluated.filter(({ prompt }) => training.has(prompt))).toEqual([])
    const otherSeed = new Set(pocketData(999).sftRows(2000).map(promptOf))
    expect(evaluated.filter(({ prompt }) => otherSeed.has(prompt))).toEqual([])
    const sets = PROMPT_SETS.map(prompts)
    const sizes = sets.reduce((sum, set) => sum + set.size, 0)
    expect(new Set(sets.flatMap((set) => [...set])).size).toBe(sizes)
  })

  it('keep the stories of held-out problems out of the base corpus', () => {
    const stories = documents.filter((text) => /\d+[-+*]\d+=/.test(text) && /^[A-Z]/.test(text))
    expect(stories.length).toBeGreaterThan(5000)
    const scenarios = stories.map((text) => text.match(/^.*?\.(?=\s(?:\d+[-+*]|First \d|We find \d))/s)![0])
    expect(scenarios.filter((scenario) => promptSet(scenario) === 'held_out')).toEqual([])
  })

  it('split the space in fixed shares', () => {
    const count = 20_000
    const shares = new Map<string, number>()
    for (let i = 0; i < count; i++) {
      const set = promptSet(`prompt ${i}`)
      shares.set(set, (shares.get(set) ?? 0) + 1 / count)
    }
    near(shares.get('held_out')!, 0.12, count)
    near(shares.get('sft')!, 0.3, count)
    near(shares.get('rl')!, 0.33, count)
  })

  it('can be entered anywhere', () => {
    expect(take(data.problems('rl', 40), 3)).toEqual(take(data.problems('rl'), 43).slice(40))
    expect(take(data.instructions('pairs', 40), 3)).toEqual(take(data.instructions('pairs'), 43).slice(40))
    expect(take(data.baseDocuments(40), 3)).toEqual(documents.slice(40, 43))
  })
})

describe('pocketData', () => {
  it('gives equal data for equal seeds, in whatever order it is drawn', () => {
    const again = pocketData(1)
    take(again.problems('sft'), 10)
    expect(take(again.baseDocuments(), 100)).toEqual(documents.slice(0, 100))
    again.evaluation({ problems: 5 })
    expect(again.sftRows(500)).toEqual(data.sftRows(500))
    expect(pocketData(2).sftRows(500)).not.toEqual(data.sftRows(500))
    expect(take(pocketData(2).baseDocuments(), 100)).not.toEqual(documents.slice(0, 100))
  })

  it('trains the tokenizer on 17 000 texts, none of them a held-out prompt', () => {
    expect(documents).toHaveLength(12_000)
    const prompts = [...data.tokenizerPrompts()]
    expect(prompts).toHaveLength(3_000 + 1_500 + 500)
    const texts = [...documents, ...prompts]
    const evaluated = new Set(
      [held.problems, held.instructions, held.asked, held.held].flat().map(({ prompt }) => prompt),
    )
    expect(texts.filter((text) => evaluated.has(text))).toEqual([])
  })

  it('generates 9 000 rows and 12 000 documents in a second or two of processor time', () => {
    expect(generationMs).toBeLessThan(4000)
  })

  it('refuses impossible seeds, counts, starts and sets', () => {
    const code = expect.objectContaining({ code: 'ERR_CONFIG' })
    for (const value of [-1, 1.5, Number.NaN, 2 ** 60]) {
      expect(() => pocketData(value)).toThrow(code)
      expect(() => data.sftRows(value)).toThrow(code)
      expect(() => data.baseDocuments(value)).toThrow(code)
    }
    expect(() => take(data.problems('heldout' as 'held_out'), 1)).toThrow(
      expect.objectContaining({ code: 'ERR_CONFIG', hint: 'Did you mean "held_out"?' }),
    )
  })
})
