// The few rules of English that the pocket generators need: articles, plurals, capitals, number words, templates.

import { CaravanError } from '../base/errors.js'

export interface Noun {
  one: string
  many: string
}

/** Templates come from a few constant tables and are filled a million times: each is taken apart once. */
const partsOfTemplate = new Map<string, readonly string[]>()

/** Replaces every `{key}` of a template. Throws ERR_INTERNAL for a key without a value: a bug in a word table. */
export function fill(template: string, values: Readonly<Record<string, string | number>>): string {
  let parts = partsOfTemplate.get(template)
  if (parts === undefined) {
    parts = template.split(/\{(\w+)\}/)
    partsOfTemplate.set(template, parts)
  }
  let text = parts[0]!
  for (let i = 1; i < parts.length; i += 2) {
    const value = values[parts[i]!]
    if (value === undefined)
      throw new CaravanError('ERR_INTERNAL', `template "${template}": no value for {${parts[i]}}`)
    text += value + parts[i + 1]!
  }
  return text
}

/** The noun with its indefinite article, chosen by its first letter. */
export function withArticle(noun: string): string {
  return `${/^[aeiou]/i.test(noun) ? 'an' : 'a'} ${noun}`
}

/** `1 loaf`, `2 loaves`. */
export function counted(count: number, noun: Noun): string {
  return `${count} ${count === 1 ? noun.one : noun.many}`
}

export function capitalise(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1)
}

/** The sentence as it continues after other words: its first letter small unless its first word is a proper name. */
export function continued(sentence: string, properNames: ReadonlySet<string>): string {
  const firstWord = /^\w+/.exec(sentence)?.[0] ?? ''
  return properNames.has(firstWord) ? sentence : sentence.slice(0, 1).toLowerCase() + sentence.slice(1)
}

const NUMBER_WORDS = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten']

export function numberWord(count: number): string {
  return NUMBER_WORDS[count] ?? String(count)
}
