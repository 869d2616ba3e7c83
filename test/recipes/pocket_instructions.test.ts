import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { areCompatible, composeAnswer, composeBroken, drawInstruction } from '../../lib/recipes/pocket_instructions.js'
import { pocketWorld } from '../../lib/recipes/pocket_world.js'
import { CONSTRAINT_KINDS, sentencesOf, verifyInstruction } from '../../lib/verify/instruction_constraints.js'

const COUNT = 20_000
const world = pocketWorld(1)
const random = new Random(11, 1)
const instructions = Array.from({ length: COUNT }, () => drawInstruction(random, world))
const unlike = <T>(items: readonly T[], isFine: (item: T) => boolean) =>
  items.filter((item) => !isFine(item)).slice(0, 3)
const near = (observed: number, expected: number) =>
  expect(Math.abs(observed - expected)).toBeLessThan(4 * Math.sqrt((expected * (1 - expected)) / COUNT))

describe('drawInstruction', () => {
  it('draws one constraint 65 % and two 35 % of the time, every kind among them', () => {
    const two = instructions.filter(({ truth }) => truth.constraints.length === 2)
    expect(instructions.every(({ truth }) => [1, 2].includes(truth.constraints.length))).toBe(true)
    near(two.length / COUNT, 0.35)
    for (const kind of CONSTRAINT_KINDS) {
      const first = instructions.filter(({ truth }) => truth.constraints[0]!.kind === kind)
      near(first.length / COUNT, 1 / 12)
    }
  })

  it('puts the constraints first a quarter of the time', () => {
    const topic =
      /^(Tell me about|Describe|What do you know about|Write something about|Say a few words about|I want to learn about) [A-Z]/
    near(instructions.filter(({ prompt }) => !topic.test(prompt)).length / COUNT, 0.25)
  })

  it('names the entity and every parameter in the prompt', () => {
    const digits = ['zero', 'one', 'two', 'three', 'four']
    expect(
      unlike(instructions, ({ prompt, truth }) => {
        const isSound = prompt.includes(truth.entity) && !/[{}]|undefined/.test(prompt)
        return truth.constraints.every((constraint) => {
          if (
            'count' in constraint &&
            !prompt.match(new RegExp(`\\b(${constraint.count}|${digits[constraint.count]})\\b`))
          )
            return false
          if ('word' in constraint) return isSound && prompt.includes(`"${constraint.word}"`)
          return isSound && (!('phrase' in constraint) || prompt.includes(`"${constraint.phrase}"`))
        })
      }),
    ).toEqual([])
  })

  it('never combines the pairs on the exclusion list', () => {
    // caps+lower; bullets with eight kinds; nsent with five; ps+end; quote+ps; quote+title; title+start; start+nocomma;
    // avoid+kw
    const pairs = CONSTRAINT_KINDS.flatMap((a, i) => CONSTRAINT_KINDS.slice(i + 1).map((b) => [a, b] as const))
    expect(pairs.filter(([a, b]) => !areCompatible(a, b))).toHaveLength(1 + 8 + 5 + 6)
    expect(
      unlike(instructions, ({ truth: { constraints } }) => {
        const [a, b] = constraints
        return b === undefined || (areCompatible(a!.kind, b.kind) && areCompatible(b.kind, a!.kind))
      }),
    ).toEqual([])
    expect(areCompatible('caps', 'caps')).toBe(false)
  })

  it('draws from a space of the size that the recipe was measured on', () => {
    const distinct = new Set(instructions.map(({ prompt }) => prompt)).size
    expect(distinct).toBeGreaterThan(16_000)
    expect(distinct).toBeLessThan(18_500)
  })
})

describe('composeAnswer', () => {
  const answers = instructions.map((instruction) => ({
    instruction,
    text: composeAnswer(random, world, instruction.truth),
  }))

  it('meets every constraint and fails only where phrases contradict each other', () => {
    const failures = answers.filter(({ text }) => text === undefined)
    expect(failures.length / COUNT).toBeLessThan(1 / 700)
    for (const { instruction } of failures) {
      expect(instruction.truth.constraints).toEqual(
        expect.arrayContaining([
          { kind: 'avoid', word: 'is' },
          { kind: 'end', phrase: 'That is all.' },
        ]),
      )
    }
    const isFine = ({ instruction, text }: (typeof answers)[number]) =>
      text === undefined || verifyInstruction(text, instruction.truth).score === 1
    expect(unlike(answers, isFine)).toEqual([])
  })

  it('says no sentence twice and no held fact', () => {
    const held = world.heldFacts.flatMap((fact) => fact.statements.map((statement) => statement.toLowerCase()))
    const texts = answers.flatMap(({ text }) => text?.toLowerCase() ?? []).slice(0, 3000)
    expect(unlike(texts, (text) => new Set(sentencesOf(text)).size === sentencesOf(text).length)).toEqual([])
    expect(unlike(texts, (text) => !held.some((statement) => text.includes(statement.slice(0, -1))))).toEqual([])
  })

  it('gives undefined where the constraints cannot be met together', () => {
    const { truth } = instructions[0]!
    const impossible = { ...truth, constraints: [{ kind: 'caps' } as const, { kind: 'lower' } as const] }
    expect(composeAnswer(random, world, impossible)).toBeUndefined()
  })

  it('refuses entities and keywords that it has no sentences for', () => {
    const compose = (entity: string, word: string) => () =>
      composeAnswer(random, world, { entity, constraints: [{ kind: 'kw', word, count: 1 }] })
    expect(compose('Atlantis', 'market')).toThrow(expect.objectContaining({ code: 'ERR_DATA' }))
    expect(compose('Windle', 'submarine')).toThrow(expect.objectContaining({ code: 'ERR_DATA' }))
  })
})

describe('composeBroken', () => {
  it('breaks exactly the one constraint that it names', () => {
    const brokenKinds = new Set<string>()
    let failures = 0
    const tried = instructions.slice(0, 8000)
    for (const { truth } of tried) {
      const answer = composeBroken(random, world, truth)
      if (answer === undefined) {
        // Some entities have no asked fact with a comma in it, and one sentence leaves no room for filler.
        expect(truth.constraints.map(({ kind }) => kind)).toContain('nocomma')
        failures++
        continue
      }
      const verdict = verifyInstruction(answer.text, truth)
      const isFine = verdict.constraints.every(({ passed }, i) => passed === (truth.constraints[i] !== answer.broken))
      if (verdict.score === 1 || !isFine) expect.fail(answer.text)
      brokenKinds.add(answer.broken.kind)
    }
    expect(brokenKinds.size).toBe(12)
    expect(failures / tried.length).toBeLessThan(1 / 1000)
  })
})
