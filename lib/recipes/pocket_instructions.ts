// Instruction prompts ("Tell me about Windle." plus one or two constraints on form) and answers composed to meet them
// or to break exactly one. Every composed answer is put before the verifier; one that it judges otherwise is redrawn,
// or SFT would learn silent noise.

import { CaravanError } from '../base/errors.js'
import type { Random } from '../base/random.js'
import {
  CONSTRAINT_KINDS,
  type ConstraintKind,
  type InstructionConstraint,
  type InstructionTruth,
  verifyInstruction,
  wordsOf,
} from '../verify/instruction_constraints.js'
import { fill, numberWord } from './pocket_english.js'
import {
  dress,
  END_PHRASES,
  FILLERS,
  KEYWORD_SENTENCES,
  KEYWORDS,
  POSTSCRIPTS,
  START_PHRASES,
  type Style,
  TITLES,
} from './pocket_style.js'
import type { Fact, PocketWorld } from './pocket_world.js'

export interface PocketInstruction {
  prompt: string
  /** The entity and the one or two constraints: what `verifyInstruction` needs. */
  truth: InstructionTruth
}

export interface BrokenAnswer {
  text: string
  /** The one constraint that the answer was composed without. */
  broken: InstructionConstraint
}

const TWO_CONSTRAINTS_SHARE = 0.35
const CONSTRAINT_FIRST_SHARE = 0.25
const SENTENCE_COUNT_WEIGHTS = [0.5, 0.5]
const MAX_COMPOSE_TRIES = 8

const AVOIDED_WORDS = ['is', 'has', 'the']

const TOPICS = [
  'Tell me about {E}.',
  'Describe {E}.',
  'What do you know about {E}?',
  'Write something about {E}.',
  'Say a few words about {E}.',
  'I want to learn about {E}.',
]

// {n} a number as digit or word, {s} the plural s, {phrase} and {word} the parameter.
const PHRASINGS: Readonly<Record<ConstraintKind, readonly string[]>> = {
  caps: ['Write in capital letters only.', 'Use only capital letters.', 'Your whole answer must be in capitals.'],
  lower: ['Write in small letters only.', 'Use only lower case.', 'Do not use any capital letters.'],
  nocomma: ['Do not use any commas.', 'Write without commas.', 'Leave out all commas.'],
  end: ['End your answer with "{phrase}"', 'The last words must be "{phrase}"', 'Finish with "{phrase}"'],
  start: ['Start your answer with "{phrase}".', 'The first words must be "{phrase}".', 'Begin with "{phrase}".'],
  bullets: ['Use exactly {n} bullet points.', 'Write exactly {n} bullets.', 'Give your answer as {n} bullet points.'],
  kw: ['Use the word "{word}" exactly {n} time{s}.', 'The word "{word}" must appear exactly {n} time{s}.'],
  quote: ['Put your whole answer in double quotes.', 'Wrap your answer in double quotation marks.'],
  nsent: ['Write exactly {n} sentence{s}.', 'Answer in exactly {n} sentence{s}.', 'Use {n} sentence{s}.'],
  avoid: ['Do not use the word "{word}".', 'Avoid the word "{word}".', 'Never write the word "{word}".'],
  title: ['Give it a title in << >>.', 'Put a title in << >> at the top.'],
  ps: ['Add a postscript that starts with P.S.', 'Close with a line that starts with P.S.', 'Add a P.S. at the end.'],
}

/**
 * Kinds that one prompt never combines: they contradict each other, or one would make the count of the other unclear.
 */
const EXCLUDED: Readonly<Partial<Record<ConstraintKind, readonly ConstraintKind[]>>> = {
  caps: ['lower'],
  bullets: ['nsent', 'ps', 'end', 'start', 'quote', 'title', 'kw', 'avoid'],
  nsent: ['kw', 'end', 'ps', 'title', 'avoid'],
  ps: ['end'],
  quote: ['ps', 'title'],
  title: ['start'],
  start: ['nocomma'],
  avoid: ['kw'],
}

/** Whether one prompt may carry both kinds. */
export function areCompatible(a: ConstraintKind, b: ConstraintKind): boolean {
  return a !== b && !EXCLUDED[a]?.includes(b) && !EXCLUDED[b]?.includes(a)
}

/** Draws a prompt about one of the 52 entities with one (65 %) or two (35 %) compatible constraints. */
export function drawInstruction(random: Random, world: PocketWorld): PocketInstruction {
  const entity = random.choice(world.entities)
  const constraints = [drawConstraint(random, random.choice(CONSTRAINT_KINDS))]
  if (random.chance(TWO_CONSTRAINTS_SHARE)) {
    const others = CONSTRAINT_KINDS.filter((kind) => areCompatible(kind, constraints[0]!.kind))
    constraints.push(drawConstraint(random, random.choice(others)))
  }
  const topic = fill(random.choice(TOPICS), { E: entity })
  const demands = constraints.map((constraint) => phrase(random, constraint))
  const parts = random.chance(CONSTRAINT_FIRST_SHARE) ? [...demands, topic] : [topic, ...demands]
  return { prompt: parts.join(' '), truth: { entity, constraints } }
}

function drawConstraint(random: Random, kind: ConstraintKind): InstructionConstraint {
  switch (kind) {
    case 'end':
      return { kind, phrase: random.choice(END_PHRASES) }
    case 'start':
      return { kind, phrase: random.choice(START_PHRASES) }
    case 'bullets':
      return { kind, count: random.integer(2, 5) }
    case 'kw':
      return { kind, word: random.choice(KEYWORDS), count: random.integer(1, 4) }
    case 'nsent':
      return { kind, count: random.integer(1, 5) }
    case 'avoid':
      return { kind, word: random.choice(AVOIDED_WORDS) }
    default:
      return { kind }
  }
}

function phrase(random: Random, constraint: InstructionConstraint): string {
  const count = 'count' in constraint ? constraint.count : 0
  return fill(random.choice(PHRASINGS[constraint.kind]), {
    n: random.chance(0.5) ? numberWord(count) : count,
    s: count === 1 ? '' : 's',
    phrase: 'phrase' in constraint ? constraint.phrase : '',
    word: 'word' in constraint ? constraint.word : '',
  })
}

/**
 * Composes an answer that meets every constraint, from facts that chat training may state and filler. Undefined when
 * the verifier refuses every try: the constraints contradict each other through their phrases (avoid "is" with the
 * ending "That is all."); draw another prompt then.
 */
export function composeAnswer(random: Random, world: PocketWorld, truth: InstructionTruth): string | undefined {
  for (let attempt = 0; attempt < MAX_COMPOSE_TRIES; attempt++) {
    const text = compose(random, world, { entity: truth.entity, kept: truth.constraints })
    if (accepts(text, truth)) return text
  }
  return undefined
}

/**
 * Composes an answer that meets all constraints but one, drawn at random, which it breaks. Undefined when no try is
 * refused for that constraint alone; draw another prompt then.
 */
export function composeBroken(random: Random, world: PocketWorld, truth: InstructionTruth): BrokenAnswer | undefined {
  const { entity, constraints } = truth
  const broken = random.choice(constraints)
  const kept = constraints.filter((constraint) => constraint !== broken)
  for (let attempt = 0; attempt < MAX_COMPOSE_TRIES; attempt++) {
    const text = compose(random, world, { entity, kept, broken })
    const verdict = verifyInstruction(text, { entity, constraints: [broken] })
    if (verdict.score === 0 && accepts(text, { entity, constraints: kept })) return { text, broken }
  }
  return undefined
}

function accepts(text: string, truth: InstructionTruth): boolean {
  return verifyInstruction(text, { ...truth, distinctSentences: true }).score === 1
}

interface Composition {
  entity: string
  kept: readonly InstructionConstraint[]
  /** A constraint to break: sentences are chosen so that its absence shows. */
  broken?: InstructionConstraint
}

function compose(random: Random, world: PocketWorld, { entity, kept, broken }: Composition): string {
  const allowed = (sentence: string) => !kept.some((constraint) => offends(sentence, constraint))
  const sentences = chooseSentences(random, world, { entity, kept, broken }, allowed)
  const style: Style = {}
  for (const constraint of kept) {
    if (constraint.kind === 'start') style.start = constraint.phrase
    if (constraint.kind === 'title') style.title = fill(random.choice(TITLES), { E: entity })
    if (constraint.kind === 'end') style.end = constraint.phrase
    if (constraint.kind === 'ps') style.postscript = random.choice(POSTSCRIPTS.filter(allowed))
    if (constraint.kind === 'bullets') style.bullets = true
    if (constraint.kind === 'quote') style.quoted = true
    if (constraint.kind === 'caps') style.letters = 'capital'
    if (constraint.kind === 'lower') style.letters = 'small'
  }
  return dress(sentences, style, world.properNames)
}

/** Whether a sentence on its own breaks a constraint about words or commas. */
function offends(sentence: string, constraint: InstructionConstraint): boolean {
  if (constraint.kind === 'nocomma') return sentence.includes(',')
  return constraint.kind === 'avoid' && wordsOf(sentence).includes(constraint.word)
}

function chooseSentences(
  random: Random,
  world: PocketWorld,
  { entity, kept, broken }: Composition,
  allowed: (sentence: string) => boolean,
): string[] {
  const facts = random.shuffle(factsOf(world, entity).filter((fact) => !fact.held))
  const stated = facts.flatMap((fact) => random.shuffle(fact.statements).find(allowed) ?? [])
  const sentences = [...stated, ...random.shuffle(FILLERS.filter(allowed))].slice(
    0,
    sentenceCount(random, kept, broken),
  )
  if (broken?.kind === 'nocomma' || broken?.kind === 'avoid') {
    placeOffender(random, sentences, { facts, fits: (sentence) => allowed(sentence) && offends(sentence, broken) })
  }
  const keyword = kept.find((constraint) => constraint.kind === 'kw')
  if (keyword === undefined) return sentences
  return [...sentences, ...random.shuffle(keywordSentences(keyword.word)).slice(0, keyword.count)]
}

function factsOf(world: PocketWorld, entity: string): readonly Fact[] {
  const facts = world.factsByEntity.get(entity)
  if (facts !== undefined) return facts
  throw new CaravanError('ERR_DATA', `pocket instructions: the world has no entity "${entity}"`, {
    details: { entity },
  })
}

function keywordSentences(word: string): readonly string[] {
  const sentences = KEYWORD_SENTENCES[word]
  if (sentences !== undefined) return sentences
  throw new CaravanError('ERR_DATA', `pocket instructions: no sentences use "${word}"; known: ${KEYWORDS.join(', ')}`, {
    details: { word },
  })
}

/**
 * Makes the last sentence one that breaks the rule, unless one does already: another form of a fact not yet stated or,
 * after a first sentence that names the entity, filler.
 */
function placeOffender(
  random: Random,
  sentences: string[],
  { facts, fits }: { facts: readonly Fact[]; fits: (sentence: string) => boolean },
): void {
  if (sentences.some(fits)) return
  const before = sentences.slice(0, -1)
  const free = facts.filter((fact) => !fact.statements.some((form) => before.includes(form)))
  const forms = free.flatMap((fact) => fact.statements).filter(fits)
  const candidates = forms.length > 0 || before.length === 0 ? forms : FILLERS.filter(fits)
  if (candidates.length > 0) sentences[before.length] = random.choice(candidates)
}

/**
 * How many sentences to say before keyword sentences, an ending or a postscript; never a count that is to be broken.
 */
function sentenceCount(
  random: Random,
  kept: readonly InstructionConstraint[],
  broken: InstructionConstraint | undefined,
): number {
  for (const constraint of kept) {
    if (constraint.kind === 'bullets' || constraint.kind === 'nsent') return constraint.count
  }
  const keyword = kept.some((constraint) => constraint.kind === 'kw')
  const count = keyword ? 1 : 1 + random.weighted(SENTENCE_COUNT_WEIGHTS)
  return broken?.kind === 'nsent' && broken.count === count ? count + 1 : count
}
