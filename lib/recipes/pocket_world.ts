// The invented world that the pocket run learns and is asked about: 12 towns and 40 people, 220 facts. A quarter of the
// facts is held: the base corpus states them, chat training never asks them, so asking them shows whether training to
// chat opened access to what the base model had read.

import { Random } from '../base/random.js'
import { fill, withArticle } from './pocket_english.js'
import { TRADES } from './pocket_trades.js'

export type EntityKind = 'town' | 'person'

/** One kind of fact. `{E}` stands for the entity, `{V}` for the value, `{aV}` for the value with its article. */
export interface Attribute {
  name: string
  entityKind: EntityKind
  values: readonly string[]
  statements: readonly [string, string, string]
  questions: readonly [string, string, string]
}

export interface Fact {
  index: number
  entity: string
  attribute: string
  value: string
  held: boolean
  /** Three sentences that state the fact; each has at least 4 words, names the entity and says the value. */
  statements: readonly string[]
  /** Three questions that ask for the value. */
  questions: readonly string[]
}

export interface Person {
  name: string
  pronoun: 'she' | 'he'
}

export interface PocketWorld {
  seed: number
  towns: readonly string[]
  people: readonly Person[]
  /** The 52 names that an instruction may ask about: towns, then people. */
  entities: readonly string[]
  facts: readonly Fact[]
  /** The facts that may be asked and stated in chat training. */
  askedFacts: readonly Fact[]
  heldFacts: readonly Fact[]
  factsByEntity: ReadonlyMap<string, readonly Fact[]>
  /** Words that keep their capital in mid-sentence. */
  properNames: ReadonlySet<string>
}

const HELD_FACTS = 55
const MIN_ASKED_PER_ENTITY = 2

export const TOWNS = list(
  'Windle Fernhollow Asterby Brindleford Cawthorpe Dunmere Elmstead Gorsley Lowmoor Pellham Quarrington Tarnwick',
)
const WOMEN = list(
  'Mara Nina Ada Bea Clara Dora Elsa Freya Greta Hanna Ines Julia Kira Lena Olga Petra Ruth Sonia Tessa Wanda',
)
const MEN = list(
  'Adam Boris Carl Daniel Emil Felix Gustav Henry Ivan Jonas Kurt Leo Martin Nils Oscar Paul Ralph Samuel Tom Viktor',
)
const RIVERS = list('Arrel Bourne Calder Derwen Esker Frome Glaven Kennet Lodden Nidder Tavon Wharfe')
const MAYORS = list('Aldous Bramwell Crowther Duckworth Eastman Fairfax Grimshaw Hartley Ingram Jessop Kirkby Lockwood')

export const PEOPLE: readonly Person[] = [
  ...WOMEN.map((name): Person => ({ name, pronoun: 'she' })),
  ...MEN.map((name): Person => ({ name, pronoun: 'he' })),
]

export const ATTRIBUTES: readonly Attribute[] = [
  {
    name: 'river',
    entityKind: 'town',
    values: RIVERS,
    statements: ['The {V} flows through {E}.', 'In {E}, boats sail on the {V}.', 'A river named {V} runs through {E}.'],
    questions: ['Which river flows through {E}?', 'What is the river in {E} called?', 'Name the river of {E}.'],
  },
  {
    name: 'goods',
    entityKind: 'town',
    values: list('rope glass paper salt wool ink soap tea silk bricks barrels clocks'),
    statements: ['{E} is known for its {V}.', '{E} sells {V} to every other town.', 'Traders come to {E} for the {V}.'],
    questions: ['What is {E} known for?', 'What does {E} sell?', 'Name the goods that {E} sells.'],
  },
  {
    name: 'mayor',
    entityKind: 'town',
    values: MAYORS,
    statements: ['The mayor of {E} is {V}.', '{V} is the mayor of {E}.', '{V} leads {E} as mayor.'],
    questions: ['Who is the mayor of {E}?', 'Who leads {E}?', 'Name the mayor of {E}.'],
  },
  {
    name: 'flag',
    entityKind: 'town',
    values: list('red blue green yellow white black purple orange grey brown pink silver'),
    statements: ['The flag of {E} is {V}.', '{E} flies {aV} flag.', 'Over {E}, {aV} flag waves.'],
    questions: ['What colour is the flag of {E}?', 'Which colour does {E} fly?', 'Name the flag colour of {E}.'],
  },
  {
    name: 'animal',
    entityKind: 'town',
    values: list('owl fox bear stag wolf heron otter badger hare eagle lion swan'),
    statements: ['The gate of {E} shows {aV}.', '{E} has {aV} on its gate.', 'At the gate of {E}, you can see {aV}.'],
    questions: [
      'Which animal is on the gate of {E}?',
      'What does the gate of {E} show?',
      'Name the animal on the gate of {E}.',
    ],
  },
  {
    name: 'trade',
    entityKind: 'person',
    values: TRADES.map((trade) => trade.name),
    statements: ['{E} is {aV}.', '{E} works as {aV}.', 'By trade, {E} is {aV}.'],
    questions: ['What is the trade of {E}?', 'What work does {E} do?', 'Name the trade of {E}.'],
  },
  {
    name: 'town',
    entityKind: 'person',
    values: TOWNS,
    statements: ['{E} lives in {V}.', 'The home of {E} is in {V}.', '{E} has a house in {V}.'],
    questions: ['Where does {E} live?', 'In which town is the home of {E}?', 'Name the home town of {E}.'],
  },
  {
    name: 'pet',
    entityKind: 'person',
    values: list('cat dog parrot rabbit turtle pony goat hamster canary goldfish ferret duck'),
    statements: ['{E} has {aV} as a pet.', '{E} keeps {aV} at home.', 'The pet of {E} is {aV}.'],
    questions: ['Which pet does {E} keep?', 'What pet lives with {E}?', 'Name the pet of {E}.'],
  },
  {
    name: 'food',
    entityKind: 'person',
    values: list('soup pancakes dumplings noodles porridge pie curry stew salad omelettes beans pasta plums cherries'),
    statements: ['{E} loves to eat {V}.', 'The favourite food of {E} is {V}.', 'For dinner, {E} likes {V}.'],
    questions: ['What does {E} love to eat?', 'What is the favourite food of {E}?', 'Name the favourite food of {E}.'],
  },
]

/**
 * Builds the world of a seed: 12 towns with 5 attributes each (no value twice among the towns), 40 people with 4 each,
 * 55 of the 220 facts held. Every entity keeps at least two facts that may be asked.
 */
export function pocketWorld(seed = 1): PocketWorld {
  const random = new Random(seed, 0)
  const values = ATTRIBUTES.map((attribute) => drawValues(random, attribute))
  const entities = [...TOWNS, ...PEOPLE.map((person) => person.name)]
  const owned = entities.flatMap((entity, position) => {
    const kind: EntityKind = position < TOWNS.length ? 'town' : 'person'
    const row = kind === 'town' ? position : position - TOWNS.length
    return ATTRIBUTES.flatMap((attribute, a) =>
      attribute.entityKind === kind ? [{ entity, attribute, value: values[a]![row]! }] : [],
    )
  })
  const held = drawHeld(
    random,
    owned.map((fact) => fact.entity),
  )
  const facts = owned.map(({ entity, attribute, value }, index): Fact => {
    const words = { E: entity, V: value, aV: withArticle(value) }
    return {
      index,
      entity,
      attribute: attribute.name,
      value,
      held: held.has(index),
      statements: attribute.statements.map((form) => fill(form, words)),
      questions: attribute.questions.map((form) => fill(form, words)),
    }
  })
  return {
    seed,
    towns: TOWNS,
    people: PEOPLE,
    entities,
    facts,
    askedFacts: facts.filter((fact) => !fact.held),
    heldFacts: facts.filter((fact) => fact.held),
    factsByEntity: new Map(entities.map((entity) => [entity, facts.filter((fact) => fact.entity === entity)])),
    properNames: new Set([...entities, ...MAYORS, ...RIVERS, 'I']),
  }
}

/** Towns differ in every attribute; people may share a trade, a town, a pet or a food. */
function drawValues(random: Random, attribute: Attribute): string[] {
  if (attribute.entityKind === 'town') return random.shuffle(attribute.values)
  return PEOPLE.map(() => random.choice(attribute.values))
}

function drawHeld(random: Random, entityOfFact: readonly string[]): Set<number> {
  const asked = new Map<string, number>()
  for (const entity of entityOfFact) asked.set(entity, (asked.get(entity) ?? 0) + 1)
  const held = new Set<number>()
  for (const index of random.permutation(entityOfFact.length)) {
    const left = asked.get(entityOfFact[index]!)! - 1
    if (held.size === HELD_FACTS || left < MIN_ASKED_PER_ENTITY) continue
    asked.set(entityOfFact[index]!, left)
    held.add(index)
  }
  return held
}

function list(words: string): readonly string[] {
  return words.split(' ')
}
