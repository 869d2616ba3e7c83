import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { baseDocument, drawDescription, drawDrill } from '../../lib/recipes/pocket_corpus.js'
import { pocketWorld } from '../../lib/recipes/pocket_world.js'

const COUNT = 12_000
const world = pocketWorld(1)
const options = { seed: 1, stream: 1, isReserved: () => false }
const documents = Array.from({ length: COUNT }, (_, index) => baseDocument(world, index, options))
const unlike = <T>(items: readonly T[], isFine: (item: T) => boolean) =>
  items.filter((item) => !isFine(item)).slice(0, 3)
const near = (observed: number, expected: number, count: number) =>
  expect(Math.abs(observed - expected)).toBeLessThan(4 * Math.sqrt((expected * (1 - expected)) / count))

/** Whether all equations of a text hold, and how many there are. */
function equations(text: string): number {
  const found = [...text.matchAll(/(\d+)([-+*])(\d+)=(\d+)/g)]
  for (const [equation, a, operator, b, c] of found) {
    const [left, right] = [Number(a), Number(b)]
    const value = operator === '+' ? left + right : operator === '-' ? left - right : left * right
    if (Number(c) !== value) expect.fail(equation)
  }
  return found.length
}

describe('baseDocument', () => {
  it('mixes 28 % descriptions, 47 % stories and 25 % drills', () => {
    const share = (kind: string) => documents.filter((document) => document.kind === kind).length / COUNT
    near(share('description'), 0.28, COUNT)
    near(share('story'), 0.47, COUNT)
    near(share('drill'), 0.25, COUNT)
  })

  it('tells stories to the end: right steps, no question, no chat form', () => {
    expect(unlike(documents, ({ text }) => !/####|<\||undefined|[{}?]/.test(text))).toEqual([])
    const stories = documents.filter((document) => document.kind === 'story')
    expect(unlike(stories, ({ text }) => [1, 2, 3].includes(equations(text)))).toEqual([])
    // The closing sentence repeats the result of the last step.
    expect(unlike(stories, ({ text }) => /=(\d+)\D*\b\1\b[^\d]*$/.test(text))).toEqual([])
  })

  it('states every fact of the world, held ones too', () => {
    const text = documents.map((document) => document.text.toLowerCase()).join('\n')
    for (const fact of world.facts) {
      expect(fact.statements.some((statement) => text.includes(statement.toLowerCase().slice(0, -1)))).toBe(true)
    }
  })

  it('can be entered anywhere and depends on seed and index alone', () => {
    expect(baseDocument(world, 4321, options)).toEqual(documents[4321])
    expect(baseDocument(world, 4321, { ...options, seed: 2 })).not.toEqual(documents[4321])
  })

  it('draws each document afresh: neighbours have no more in common than strangers', () => {
    const drills = documents.map(({ kind, text }) => (kind === 'drill' ? text.split(/[^-+*=\d]+/) : []))
    // An equation takes three random numbers, so documents on overlapping stretches agree at a distance of three.
    for (const distance of [1, 2, 3, 6]) {
      const shared = drills.map(
        (drill, i) => drill.filter((equation) => drills[i + distance]?.includes(equation)).length,
      )
      expect(shared.filter((count) => count >= 3)).toEqual([])
    }
  })

  it('leaves reserved stories out', () => {
    const isReserved = ({ scenario }: { scenario: string }) => scenario.includes('loaves')
    const texts = Array.from(
      { length: 1000 },
      (_, index) => baseDocument(world, index, { ...options, isReserved }).text,
    )
    expect(documents.slice(0, 1000).some(({ text }) => text.includes('loaves'))).toBe(true)
    expect(texts.some((text) => text.includes('loaves'))).toBe(false)
  })
})

describe('drawDescription', () => {
  it('carries each surface form in about a twelfth of the documents and none in a quarter', () => {
    const random = new Random(3, 1)
    const texts = Array.from({ length: 6000 }, () => drawDescription(random, world))
    const twelfth = 0.75 / 9
    const share = (test: (text: string) => boolean) => texts.filter(test).length / texts.length
    near(
      share((text) => text === text.toUpperCase()),
      twelfth,
      6000,
    )
    near(
      share((text) => text === text.toLowerCase()),
      twelfth,
      6000,
    )
    near(
      share((text) => text.startsWith('"') && text.endsWith('"')),
      twelfth,
      6000,
    )
    near(
      share((text) => text.startsWith('- ')),
      twelfth,
      6000,
    )
    near(
      share((text) => text.startsWith('<<')),
      twelfth,
      6000,
    )
    near(
      share((text) => /\nP\.S\. [A-Z]/.test(text)),
      twelfth,
      6000,
    )
    near(
      share((text) => /^(To be|As you|In short|Let me|As far|To tell)/.test(text)),
      twelfth,
      6000,
    )
    near(
      share((text) =>
        / (That is all|Thank you for asking|I hope this helps|Goodbye for now|Have a nice day|Now you know)\.$/.test(
          text,
        ),
      ),
      twelfth,
      6000,
    )
  })

  it('states two to four facts of one entity', () => {
    const random = new Random(4, 1)
    const counts = new Set<number>()
    for (let i = 0; i < 400; i++) {
      const text = drawDescription(random, world).toLowerCase()
      const stated = world.facts.filter((fact) =>
        fact.statements.some((form) => text.includes(form.toLowerCase().slice(0, -1))),
      )
      expect(new Set(stated.map((fact) => fact.entity)).size).toBe(1)
      counts.add(stated.length)
    }
    expect([...counts].sort()).toEqual([2, 3, 4])
  })
})

describe('drawDrill', () => {
  it('holds four to nine right equations within the ranges', () => {
    const random = new Random(5, 1)
    const lengths = new Set<number>()
    for (let i = 0; i < 800; i++) {
      const text = drawDrill(random)
      lengths.add(equations(text))
      const isFine = ([, a, operator, b, c]: string[]) =>
        Number(c) > 0 &&
        (operator === '*' ? Math.max(Number(a), Number(b)) <= 12 : Math.max(Number(a), Number(c)) <= 190)
      expect(unlike([...text.matchAll(/(\d+)([-+*])(\d+)=(\d+)/g)], isFine)).toEqual([])
      expect(text.replace(/\d+[-+*]\d+=\d+/g, '')).toMatch(/^(\n+|(, )+|(; )+)$/)
    }
    expect([...lengths].sort()).toEqual([4, 5, 6, 7, 8, 9])
  })
})
