// The surface forms of the pocket run (capitals, bullets, quotes, titles, set phrases, filler) and how they are put on
// a text. Base documents and instruction answers share them: what the base never shows, SFT barely learns.

import { continued } from './pocket_english.js'

/** Phrases that an answer may have to start with; a comma follows them. */
export const START_PHRASES: readonly string[] = [
  'To be brief',
  'As you may know',
  'In short',
  'Let me see',
  'As far as I know',
  'To tell you more',
]

/** Phrases that an answer may have to end with. */
export const END_PHRASES: readonly string[] = [
  'That is all.',
  'Thank you for asking.',
  'I hope this helps.',
  'Goodbye for now.',
  'Have a nice day.',
  'Now you know.',
]

/** Titles; `{E}` stands for the entity. */
export const TITLES: readonly string[] = ['{E}', 'About {E}', 'Notes on {E}', 'All About {E}']

export const POSTSCRIPTS: readonly string[] = [
  'Write again soon.',
  'More news will follow.',
  'Please tell your friends.',
  'Come and visit soon.',
  'There is more to tell.',
]

/**
 * Sentences that go with anything. Some hold a comma, "is", "has" or "the", so that each rule has something to break.
 */
export const FILLERS: readonly string[] = [
  'That much everyone knows.',
  'Many visitors say so.',
  'People often speak of it with a smile.',
  'Ask anyone nearby.',
  'It is a fact worth keeping.',
  'This is common knowledge.',
  'Everyone has a good word for it.',
  'Each visitor has something kind to say.',
  'Old songs tell the same.',
  'You can check it in the town hall.',
  'So they say, at least.',
  'Believe it or not, it holds true.',
]

/** The words that an answer may have to use, each with three sentences that use it once. No other text uses them. */
export const KEYWORD_SENTENCES: Readonly<Record<string, readonly [string, string, string]>> = {
  market: ['You can buy fruit at the market.', 'A small market opens each week.', 'Friends meet near the market.'],
  bridge: ['An old stone bridge stands nearby.', 'Children fish from the bridge.', 'Every bridge needs strong stones.'],
  garden: ['A quiet garden lies behind the hill.', 'The garden smells of mint.', 'Visitors rest in the garden.'],
  winter: ['Snow falls all winter.', 'The winter can be long here.', 'Nobody travels far in winter.'],
  music: ['There is music in the streets.', 'Good music fills the hall.', 'Everyone enjoys loud music.'],
  story: ['Old people tell a good story about it.', 'This story began long ago.', 'Every child knows the story.'],
  lantern: ['A lantern burns all night.', 'The lantern shines over the door.', 'Someone lights a lantern at dusk.'],
  festival: ['A festival takes place in spring.', 'The festival lasts three days.', 'Everyone dances at the festival.'],
  school: ['The school stands on a hill.', 'Every child walks to school.', 'A new school opened last year.'],
  summer: ['Swallows return each summer.', 'The summer here can be warm.', 'People swim in summer.'],
}

export const KEYWORDS: readonly string[] = Object.keys(KEYWORD_SENTENCES)

export interface Style {
  start?: string
  title?: string
  end?: string
  postscript?: string
  bullets?: boolean
  quoted?: boolean
  letters?: 'capital' | 'small'
}

/**
 * Joins sentences (at least one) and puts the style on them, in the order start, title, end, postscript, quotes, case,
 * so that quotes enclose everything and the case rule reaches every letter.
 */
export function dress(sentences: readonly string[], style: Style, properNames: ReadonlySet<string>): string {
  const [first, ...others] = sentences
  const opening = style.start === undefined ? first! : `${style.start}, ${continued(first!, properNames)}`
  let text = style.bullets
    ? [opening, ...others].map((sentence) => `- ${sentence}`).join('\n')
    : [opening, ...others].join(' ')
  if (style.title !== undefined) text = `<<${style.title}>>\n${text}`
  if (style.end !== undefined) text = `${text} ${style.end}`
  if (style.postscript !== undefined) text = `${text}\nP.S. ${style.postscript}`
  if (style.quoted) text = `"${text}"`
  if (style.letters === 'capital') return text.toUpperCase()
  return style.letters === 'small' ? text.toLowerCase() : text
}
