import { describe, expect, it } from 'vitest'
import {
  END_PHRASES,
  FILLERS,
  KEYWORD_SENTENCES,
  KEYWORDS,
  POSTSCRIPTS,
  START_PHRASES,
} from '../../lib/recipes/pocket_style.js'
import { TRADES } from '../../lib/recipes/pocket_trades.js'
import { ATTRIBUTES, pocketWorld } from '../../lib/recipes/pocket_world.js'

const world = pocketWorld(1)
const words = (text: string) =>
  text
    .toLowerCase()
    .split(/[^a-z0-9']+/)
    .filter((word) => word !== '')

describe('pocketWorld', () => {
  it('holds 12 towns, 40 people and 220 facts, 55 of them held', () => {
    expect([world.towns.length, world.people.length, world.entities.length]).toEqual([12, 40, 52])
    expect([world.facts.length, world.askedFacts.length, world.heldFacts.length]).toEqual([220, 165, 55])
    for (const town of world.towns) expect(world.factsByEntity.get(town)).toHaveLength(5)
    for (const { name } of world.people) expect(world.factsByEntity.get(name)).toHaveLength(4)
    expect(world.facts.map((fact) => fact.index)).toEqual([...Array(220).keys()])
  })

  it('leaves at least two facts of every entity to be asked', () => {
    for (let seed = 1; seed <= 30; seed++) {
      const { entities, askedFacts } = pocketWorld(seed)
      const asked = entities.map((entity) => askedFacts.filter((fact) => fact.entity === entity).length)
      expect(Math.min(...asked)).toBeGreaterThanOrEqual(2)
    }
  })

  it('states and asks each fact in three distinct ways that name the entity', () => {
    for (const fact of world.facts) {
      expect(new Set(fact.statements).size).toBe(3)
      expect(new Set(fact.questions).size).toBe(3)
      for (const statement of fact.statements) {
        expect(statement).toContain(fact.entity)
        expect(statement).toContain(fact.value)
        expect(statement).toMatch(/^[A-Z][^.!?]*\.$/)
        expect(words(statement).length).toBeGreaterThanOrEqual(4)
      }
      for (const question of fact.questions) {
        expect(question).toContain(fact.entity)
        expect(question).not.toContain(fact.value)
      }
    }
  })

  it('uses the right article', () => {
    const text = world.facts.flatMap((fact) => fact.statements).join(' ')
    expect(text).not.toMatch(/\ba [aeiou]/i)
    expect(text).not.toMatch(/\ban [^aeiou]/i)
    expect(text).toMatch(/\ban (owl|otter|eagle|orange)/)
  })

  it('lets every attribute be stated without a comma, "is", "has" or "the"', () => {
    for (const { statements } of ATTRIBUTES) {
      for (const avoided of ['is', 'has', 'the'])
        expect(statements.some((form) => !words(form).includes(avoided))).toBe(true)
      expect(statements.some((form) => !form.includes(','))).toBe(true)
    }
  })

  it('gives no value to two towns and no word two meanings', () => {
    for (const attribute of ATTRIBUTES.filter((candidate) => candidate.entityKind === 'town')) {
      const values = world.facts.filter((fact) => fact.attribute === attribute.name).map((fact) => fact.value)
      expect(new Set(values).size).toBe(12)
    }
    // A person's town is the one value that is meant to be a name from elsewhere.
    const tables = ATTRIBUTES.filter((attribute) => attribute.name !== 'town').map((attribute) => attribute.values)
    const items = TRADES.flatMap(({ item, container }) => [item.one, item.many, container.one, container.many])
    const all = [...world.entities, ...tables.flat(), ...items, ...KEYWORDS]
    expect(all.filter((word, i) => all.indexOf(word) !== i)).toEqual([])
  })

  it('depends on the seed alone', () => {
    expect(pocketWorld(1)).toEqual(world)
    expect(pocketWorld(2).facts.map((fact) => fact.value)).not.toEqual(world.facts.map((fact) => fact.value))
    for (let seed = 2; seed < 30; seed++) expect(pocketWorld(seed).heldFacts).toHaveLength(55)
  })
})

describe('set phrases', () => {
  const phrases = [...START_PHRASES, ...END_PHRASES, ...POSTSCRIPTS, ...FILLERS]

  it('keep the keywords to their own sentences, once in each', () => {
    const others = [...phrases, ...ATTRIBUTES.flatMap((attribute) => [...attribute.statements, ...attribute.values])]
    for (const keyword of KEYWORDS) {
      expect(others.filter((text) => words(text).includes(keyword))).toEqual([])
      for (const [owner, sentences] of Object.entries(KEYWORD_SENTENCES)) {
        for (const sentence of sentences) {
          expect(words(sentence).filter((word) => word === keyword)).toHaveLength(owner === keyword ? 1 : 0)
          expect(sentence).toMatch(/^[A-Z][^.!?,]*\.$/)
        }
      }
    }
  })

  it('count six starts, six ends and ten keywords', () => {
    expect([START_PHRASES.length, END_PHRASES.length, KEYWORDS.length]).toEqual([6, 6, 10])
    expect(new Set(phrases).size).toBe(phrases.length)
  })

  it('hold filler to break each rule and filler to keep it', () => {
    for (const breaks of [/,/, /\bis\b/i, /\bhas\b/i, /\bthe\b/i]) {
      expect(FILLERS.filter((filler) => breaks.test(filler)).length).toBeGreaterThanOrEqual(2)
      expect(FILLERS.filter((filler) => !breaks.test(filler)).length).toBeGreaterThanOrEqual(4)
      expect(POSTSCRIPTS.filter((postscript) => !breaks.test(postscript)).length).toBeGreaterThanOrEqual(2)
    }
  })
})
