// The nodes that the parser of answers builds.

import { Unreadable } from './latex_reader.js'
import { type Expression, negated } from './math_expression.js'

export function wordsNode(text: string): Expression {
  const words = text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, ' ')
  return { kind: 'words', text: words.trim() }
}

export function letterNode(letter: string): Expression {
  if (letter === 'e') return { kind: 'constant', name: 'e' }
  return letter === 'i' ? { kind: 'constant', name: 'i' } : { kind: 'symbol', name: letter }
}

export function signed(sign: '+' | '-' | 'pm' | 'mp', value: Expression): Expression {
  if (sign === '+') return value
  return sign === '-' ? negated(value) : { kind: 'signed', sign: sign === 'pm' ? 1 : -1, value }
}

export function product(left: Expression, right: Expression): Expression {
  return { kind: 'product', factors: left.kind === 'product' ? [...left.factors, right] : [left, right] }
}

export function hasFractions({ dividend, divisor }: { dividend: Expression; divisor: Expression }): boolean {
  return [dividend, divisor].some((part) => part.kind === 'number' && part.denominator !== 1n)
}

export function decimalNumber(whole: string, decimals: string): Expression {
  return { kind: 'number', numerator: BigInt(`0${whole}${decimals}`), denominator: 10n ** BigInt(decimals.length) }
}

/** 0.1(6): (016 - 01) / 90. */
export function repeatingDecimal(whole: string, decimals: string, repeated: string): Expression {
  if (!/^\d{1,50}$/.test(repeated)) throw new Unreadable()
  const all = BigInt(`0${whole}${decimals}${repeated}`)
  const scale = 10n ** BigInt(decimals.length)
  return {
    kind: 'number',
    numerator: all - BigInt(`0${whole}${decimals}`),
    denominator: scale * (10n ** BigInt(repeated.length) - 1n),
  }
}
