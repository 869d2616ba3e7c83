// Base documents of the pocket run: plain text with no chat format. Each document is drawn from its own stretch of the
// stream, so the endless corpus can be entered at any index and a resumed run reads on where it stopped.

import { Random } from '../base/random.js'
import { counted, fill } from './pocket_english.js'
import { drawProblem, layOutSteps, type PocketProblem, SOLUTION_LAYOUTS } from './pocket_problems.js'
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
import type { PocketWorld } from './pocket_world.js'

export type DocumentKind = 'description' | 'story' | 'drill'

export interface BaseDocument {
  kind: DocumentKind
  text: string
}

/** What a description may look like beside plain sentences. */
export type SurfaceForm = 'caps' | 'lower' | 'quote' | 'bullets' | 'title' | 'end' | 'start' | 'ps' | 'filler'

export const SURFACE_FORMS: readonly SurfaceForm[] = [
  'caps',
  'lower',
  'quote',
  'bullets',
  'title',
  'end',
  'start',
  'ps',
  'filler',
]

const DOCUMENT_KINDS: readonly DocumentKind[] = ['description', 'story', 'drill']
const DOCUMENT_WEIGHTS = [0.28, 0.47, 0.25]
const SURFACE_FORM_SHARE = 0.75
const FILLER_BY_KEYWORD_SHARE = 0.7
/** More numbers than any document draws. */
const DRAWS_PER_DOCUMENT = 4096

export interface DocumentOptions {
  seed: number
  stream: number
  /** Stories that must not appear, because an evaluation asks about them. */
  isReserved: (problem: PocketProblem) => boolean
}

/** Document `index` of the corpus: 28 % descriptions, 47 % worked stories, 25 % drills. */
export function baseDocument(world: PocketWorld, index: number, options: DocumentOptions): BaseDocument {
  const random = new Random(options.seed, options.stream, index * DRAWS_PER_DOCUMENT)
  const kind = DOCUMENT_KINDS[random.weighted(DOCUMENT_WEIGHTS)]!
  if (kind === 'drill') return { kind, text: drawDrill(random) }
  if (kind === 'description') return { kind, text: drawDescription(random, world) }
  for (;;) {
    const problem = drawProblem(random, world)
    if (!options.isReserved(problem)) return { kind, text: tellStory(random, problem) }
  }
}

/** Two to four facts of one entity, held ones too; 75 % of the descriptions carry one of the nine surface forms. */
export function drawDescription(random: Random, world: PocketWorld): string {
  const entity = random.choice(world.entities)
  const facts = random.shuffle(world.factsByEntity.get(entity)!).slice(0, random.integer(2, 5))
  const sentences = facts.map((fact) => random.choice(fact.statements))
  const form = random.chance(SURFACE_FORM_SHARE) ? random.choice(SURFACE_FORMS) : undefined
  if (form === 'filler') sentences.push(drawFiller(random))
  return dress(sentences, drawStyle(random, form, entity), world.properNames)
}

function drawFiller(random: Random): string {
  if (!random.chance(FILLER_BY_KEYWORD_SHARE)) return random.choice(FILLERS)
  return random.choice(KEYWORD_SENTENCES[random.choice(KEYWORDS)]!)
}

function drawStyle(random: Random, form: SurfaceForm | undefined, entity: string): Style {
  switch (form) {
    case 'caps':
      return { letters: 'capital' }
    case 'lower':
      return { letters: 'small' }
    case 'quote':
      return { quoted: true }
    case 'bullets':
      return { bullets: true }
    case 'title':
      return { title: fill(random.choice(TITLES), { E: entity }) }
    case 'end':
      return { end: random.choice(END_PHRASES) }
    case 'start':
      return { start: random.choice(START_PHRASES) }
    case 'ps':
      return { postscript: random.choice(POSTSCRIPTS) }
    default:
      return {}
  }
}

const CLOSINGS = ['So that makes {n}.', 'So {name} has {items}.', 'In the end there are {items}.', 'The result: {n}.']

/** The story of a word problem told to its end: the scenario, the steps in one of the layouts, a closing sentence. */
function tellStory(random: Random, { scenario, steps, answer, name, trade }: PocketProblem): string {
  const layout = random.choice(SOLUTION_LAYOUTS)
  const [before, after] = layout === 'lines' ? ['\n', '\n'] : [' ', ' ']
  const closing = fill(random.choice(CLOSINGS), { n: answer, name, items: counted(answer, trade.item) })
  return `${scenario}${before}${layOutSteps(steps, layout, trade.item)}${after}${closing.replace('are 1 ', 'is 1 ')}`
}

const DRILL_SEPARATORS = ['\n', ', ', '; ']

/** Four to nine facts of arithmetic: sums to 190, the differences that undo them, products to 12*12. */
export function drawDrill(random: Random): string {
  const count = random.integer(4, 10)
  return Array.from({ length: count }, () => drawEquation(random)).join(random.choice(DRILL_SEPARATORS))
}

function drawEquation(random: Random): string {
  const operator = random.choice(['+', '-', '*'])
  if (operator === '*') {
    const left = random.integer(2, 13)
    const right = random.integer(2, 13)
    return `${left}*${right}=${left * right}`
  }
  const sum = random.integer(4, 191)
  const right = random.integer(2, Math.min(sum - 2, 99) + 1)
  const left = sum - right
  return operator === '+' ? `${left}+${right}=${sum}` : `${sum}-${right}=${left}`
}
