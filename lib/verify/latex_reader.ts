// Looking at and taking tokens, for the parser of answers: signs, units, and groups that are names.

import type { Token } from './latex_tokens.js'

/** Thrown where an answer cannot be read; never leaves the parser. */
export class Unreadable extends Error {}

const SEPARATING_WORDS = new Set(['and', 'or', ',and', ',or', ', and', ', or'])

/** A place in a list of tokens, which it may change. */
export class TokenReader {
  protected at = 0

  constructor(protected readonly tokens: Token[]) {}

  protected isSign(text: string): boolean {
    const token = this.tokens[this.at]
    return token?.kind === 'sign' && token.text === text
  }

  protected isCommand(name: string): boolean {
    const token = this.tokens[this.at]
    return token?.kind === 'command' && token.name === name
  }

  protected takesCommand(name: string): boolean {
    const takes = this.isCommand(name)
    if (takes) this.at++
    return takes
  }

  protected takesSign(): '+' | '-' | 'pm' | 'mp' | undefined {
    const token = this.tokens[this.at]
    const name = token?.kind === 'sign' ? token.text : token?.kind === 'command' ? token.name : ''
    if (name !== '+' && name !== '-' && name !== 'pm' && name !== 'mp') return undefined
    this.at++
    return name
  }

  protected isSeparatingWord(): boolean {
    const token = this.tokens[this.at]
    if (token?.kind !== 'text' && token?.kind !== 'word') return false
    return SEPARATING_WORDS.has(token.text.trim().toLowerCase())
  }

  /** Words behind a value, with a power of their own ("cm^2"), and percent signs. */
  protected isUnit(): boolean {
    const token = this.tokens[this.at]
    if (token?.kind === 'sign') return token.text === '%'
    if (token?.kind === 'command') return token.name === '%'
    if (this.at === 0 || token?.kind !== 'text' || token.text.trim().length < 2)
      return token?.kind === 'text' && token.text.trim() === ''
    return !this.isSeparatingWord() && this.tokens.slice(this.at + 1).every(isUnitToken)
  }

  /** The text of a group that is a name, not a value. */
  protected rawArgument(): string {
    const token = this.tokens[this.at++]
    if (token === undefined) throw new Unreadable()
    if (token.kind !== 'sign' || token.text !== '{') return tokenText(token)
    let text = ''
    for (let depth = 1; ; ) {
      const next = this.tokens[this.at++]
      if (next === undefined) throw new Unreadable()
      if (next.kind === 'sign' && next.text === '{') depth++
      if (next.kind === 'sign' && next.text === '}' && --depth === 0) return text
      text += tokenText(next)
    }
  }

  protected replaceHere(token: Token): void {
    this.tokens[this.at] = token
  }
}

function isUnitToken(token: Token): boolean {
  if (token.kind === 'text') return true
  return (
    (token.kind === 'sign' && '^{}.'.includes(token.text)) || (token.kind === 'number' && /^[1-4]$/.test(token.text))
  )
}

function tokenText(token: Token): string {
  return token.kind === 'command' ? `\\${token.name}` : token.text
}
