// Whether two answers are the same: numbers by exact value, expressions with variables by values at seeded points,
// structures part by part. Sets and lists are compared without order; "x = 5" is 5, and 50\% is 50 or 1/2.

import { Random } from '../base/random.js'
import { parseLatex } from './latex_parser.js'
import { equalFractions, exactValue, type Fraction } from './math_exact.js'
import { type Expression, hasKind, negated, type Relation, symbolsOf, treeText } from './math_expression.js'
import { approximateValue, equalApproximately } from './math_numeric.js'

/** Longer answers are compared as text alone. */
export const MAX_ANSWER_LENGTH = 2000
const MAX_ITEMS = 40
const EXACT_POINTS = 3
const COMPLEX_POINTS = 8
const LEAST_POINTS = 3

const UNITS =
  'units? degrees? dollars? cents? inch(?:es)? in feet foot ft yards? miles? mph cm mm km m meters? metres? kg g ' +
  'grams? lbs? pounds? ounces? oz hours? hrs? minutes? mins? seconds? secs? s days? weeks? months? years? points? ways? ' +
  'people students? meals? edges? integers? digits? multiples? liters? litres? gallons? radians? rad percent(?:age)? pct'
const TRAILING_UNIT = new RegExp(
  `(?<=[\\d)}\\]\\s])\\s{0,4}(?:(?:square|sq\\.?|cubic)\\s{1,4})?(?:${UNITS.split(' ').join('|')})` +
    '(?:\\s?\\^\\s?\\{?[23]\\}?)?(?:\\s?/\\s?(?:s|h|hr|hour|min|minute|second|day))?\\s{0,4}\\.?$',
  'i',
)

/** Whether two answers, in LaTeX or plain, have the same meaning. False where either is not understood. */
export function equalAnswers(a: string, b: string): boolean {
  if (a.length > MAX_ANSWER_LENGTH || b.length > MAX_ANSWER_LENGTH) return false
  const [x, y] = [withoutUnit(a), withoutUnit(b)]
  if (x.text === '' || y.text === '') return false
  const hasCommas = /\d,\d{3}/.test(x.text) || /\d,\d{3}/.test(y.text)
  const readings = hasCommas ? [true, false] : [false]
  return readings.some((groupsThousands) => {
    const left = parseLatex(x.text, { groupsThousands })
    const right = parseLatex(y.text, { groupsThousands })
    if (left === undefined || right === undefined) return false
    if (sameMeaning(left, right)) return true
    if (x.isPercent === y.isPercent) return false
    return x.isPercent ? sameMeaning(hundredth(left), right) : sameMeaning(left, hundredth(right))
  })
}

function hundredth(value: Expression): Expression {
  return { kind: 'quotient', dividend: value, divisor: { kind: 'number', numerator: 100n, denominator: 1n } }
}

function withoutUnit(answer: string): { text: string; isPercent: boolean } {
  let text = answer.trim().replace(/\.$/, '')
  const isPercent = /%\s{0,4}\$?$|\\text\{\s?percent\}$|\d\s?(?:percent(?:age)?|pct)$/.test(text)
  // "5 m" has a unit, "5m" is five times m; of words that are no letter the blank does not matter.
  const unit = TRAILING_UNIT.exec(text)
  const isLetter = unit !== null && /^[a-z]$/i.test(unit[0].trim())
  if (unit !== null && !(isLetter && unit[0].trim() === unit[0] && !/\s$/.test(text.slice(0, unit.index)))) {
    const rest = text.slice(0, unit.index).trim()
    if (/\d/.test(rest)) text = rest
  }
  return { text, isPercent }
}

function sameMeaning(a: Expression, b: Expression): boolean {
  const [x, y] = [simplified(a), simplified(b)]
  if (treeText(x) === treeText(y)) return true
  if (x.kind === 'relation' || y.kind === 'relation') return sameRelation(x, y)
  const [xs, ys] = [itemsOf(x), itemsOf(y)]
  if (xs !== undefined || ys !== undefined) return sameItems(xs ?? [x], ys ?? [y])
  if (x.kind === 'union' && y.kind === 'union') return sameItems(x.parts, y.parts)
  if (x.kind === 'matrix' && y.kind === 'matrix') {
    return x.rows.length === y.rows.length && x.rows.every((row, i) => sameInOrder(row, y.rows[i]!))
  }
  if (x.kind === 'tuple' && y.kind === 'tuple') {
    return x.open === y.open && x.close === y.close && sameInOrder(x.items, y.items)
  }
  if (x.kind === 'words' || y.kind === 'words') return wordsOf(x) !== undefined && wordsOf(x) === wordsOf(y)
  if (x.kind === 'operation' && y.kind === 'operation') {
    return x.name === y.name && sameInOrder([x.left, x.right], [y.left, y.right])
  }
  return sameValue(x, y)
}

/** Without what only names the answer ("x = ", "x in "), with both readings of a plus-minus sign. */
function simplified(node: Expression): Expression {
  if (node.kind === 'list' && node.items.length === 1) return simplified(node.items[0]!)
  if (node.kind !== 'relation' && hasKind(node, 'signed') && !isStructure(node)) {
    return { kind: 'list', items: [withSign(node, 1), withSign(node, -1)] }
  }
  return node
}

function isStructure({ kind }: Expression): boolean {
  return ['list', 'set', 'tuple', 'union', 'operation', 'matrix', 'words'].includes(kind)
}

/** The expression with each plus-minus sign decided. */
function withSign(node: Expression, sign: 1 | -1): Expression {
  switch (node.kind) {
    case 'signed':
      return node.sign === sign ? withSign(node.value, sign) : negated(withSign(node.value, sign))
    case 'sum':
      return { ...node, terms: node.terms.map((term) => withSign(term, sign)) }
    case 'product':
      return { ...node, factors: node.factors.map((factor) => withSign(factor, sign)) }
    case 'quotient':
      return { ...node, dividend: withSign(node.dividend, sign), divisor: withSign(node.divisor, sign) }
    case 'power':
      return { ...node, base: withSign(node.base, sign), exponent: withSign(node.exponent, sign) }
    case 'call':
      return { ...node, args: node.args.map((arg) => withSign(arg, sign)) }
    default:
      return node
  }
}

/** The items of a list or set, plus-minus ones twice. */
function itemsOf(node: Expression): Expression[] | undefined {
  if (node.kind !== 'list' && node.kind !== 'set') return undefined
  return node.items.flatMap((item) => {
    const simple = simplified(item)
    return simple.kind === 'list' ? simple.items : [simple]
  })
}

function sameInOrder(a: readonly Expression[], b: readonly Expression[]): boolean {
  return a.length === b.length && a.length <= MAX_ITEMS && a.every((item, i) => sameMeaning(item, b[i]!))
}

/** Without regard to order. */
function sameItems(a: readonly Expression[], b: readonly Expression[]): boolean {
  if (a.length !== b.length || a.length > MAX_ITEMS) return false
  const left = [...b]
  return a.every((item) => {
    const found = left.findIndex((other) => sameMeaning(item, other))
    if (found >= 0) left.splice(found, 1)
    return found >= 0
  })
}

function wordsOf(node: Expression): string | undefined {
  if (node.kind === 'words') return node.text
  if (node.kind === 'symbol' && /^[a-zA-Z]$/.test(node.name)) return node.name.toLowerCase()
  if (node.kind === 'constant' && node.name.length === 1) return node.name
  const letters = node.kind === 'product' ? node.factors.map(wordsOf) : []
  return letters.length > 0 && letters.every((one) => one?.length === 1) ? letters.join('') : undefined
}

function sameRelation(a: Expression, b: Expression): boolean {
  if (a.kind !== 'relation') return sameRelation(b, a)
  if (b.kind !== 'relation') {
    const value = namedValue(a)
    if (value !== undefined) return sameMeaning(value, b)
    const interval = intervalOf(a)
    return interval !== undefined && b.kind === 'tuple' && sameMeaning(interval, b)
  }
  const [u, v] = [namedValue(a), namedValue(b)]
  if (u !== undefined && v !== undefined && sameMeaning(u, v)) return treeText(a.sides[0]!) === treeText(b.sides[0]!)
  const [i, j] = [intervalOf(a), intervalOf(b)]
  if (i !== undefined && j !== undefined && treeText(variableOf(a)!) === treeText(variableOf(b)!))
    return sameMeaning(i, j)
  return sameEquation(ascending(a), ascending(b))
}

type RelationNode = Extract<Expression, { kind: 'relation' }>

/** The right side of "x = 5", "f(x) = x + 1", "x in (0, 1)": what the name on the left stands for. */
function namedValue({ relations, sides }: RelationNode): Expression | undefined {
  const relation = relations[0]
  const isChain = relations.every((one) => one === '=' || one === '~')
  if (!isName(sides[0]!) || !(isChain || (relation === 'in' && relations.length === 1))) return undefined
  // Of "x = 1/3 ~ 0.333" the exact value counts.
  const about = relations.indexOf('~')
  return about > 0 ? sides[about] : sides.at(-1)
}

function isName(node: Expression): boolean {
  if (node.kind === 'symbol' || node.kind === 'words' || node.kind === 'constant') return true
  if (node.kind === 'tuple') return node.items.every(isName)
  // AB/CD, A:B, |AB|.
  if (node.kind === 'quotient') return isName(node.dividend) && isName(node.divisor)
  if (node.kind === 'call') return node.name === 'abs' && node.args.every(isName)
  // f(x), AB, \angle A: letters and words alone.
  return node.kind === 'product' && node.factors.length <= 4 && node.factors.every(isName)
}

/** "a < x <= b" and "x > a" as intervals. */
function intervalOf(node: RelationNode): Expression | undefined {
  const { relations, sides } = ascending(node)
  const infinity: Expression = { kind: 'constant', name: 'infinity' }
  if (!relations.every((relation) => relation === '<' || relation === '<=') || variableOf(node) === undefined)
    return undefined
  const isClosed = (relation: Relation | undefined) => relation === '<='
  if (sides.length === 3) return interval(sides[0]!, sides[2]!, [isClosed(relations[0]), isClosed(relations[1])])
  if (sides.length !== 2) return undefined
  if (sides[0]!.kind === 'symbol') return interval(negated(infinity), sides[1]!, [false, isClosed(relations[0])])
  return interval(sides[0]!, infinity, [isClosed(relations[0]), false])
}

/** The lone variable that an inequality confines. */
function variableOf(node: RelationNode): Expression | undefined {
  const { sides } = ascending(node)
  const middle = sides.length === 3 ? sides[1]! : sides.find(({ kind }) => kind === 'symbol')
  const others = sides.filter((side) => side !== middle)
  return middle?.kind === 'symbol' && others.every((side) => symbolsOf(side).size === 0) ? middle : undefined
}

function interval(from: Expression, to: Expression, [closedLeft, closedRight]: [boolean, boolean]): Expression {
  return { kind: 'tuple', open: closedLeft ? '[' : '(', close: closedRight ? ']' : ')', items: [from, to] }
}

/** With < and <= only. */
function ascending(node: RelationNode): RelationNode {
  const isDescending = node.relations.every((relation) => relation === '>' || relation === '>=')
  if (!isDescending) return node
  const relations = node.relations.map((relation): Relation => (relation === '>' ? '<' : '<=')).reverse()
  return { kind: 'relation', relations, sides: [...node.sides].reverse() }
}

/** Two equations, or inequalities, with two sides each: their differences have a constant ratio. */
function sameEquation(a: RelationNode, b: RelationNode): boolean {
  if (a.relations.length !== 1 || b.relations.length !== 1 || a.relations[0] !== b.relations[0]) return false
  const relation = a.relations[0]!
  if (relation === 'in') return sameInOrder(a.sides, b.sides)
  const names = [...new Set([...symbolsOf(a), ...symbolsOf(b)])].sort()
  let ratio: Fraction | undefined
  let compared = 0
  for (const values of exactPoints(names)) {
    const x = exactValue(differenceOf(a), values)
    const y = exactValue(differenceOf(b), values)
    if (x === undefined || y === undefined) continue
    if ((x.numerator === 0n) !== (y.numerator === 0n)) return false
    if (x.numerator === 0n) continue
    const here = { numerator: x.numerator * y.denominator, denominator: x.denominator * y.numerator }
    if (ratio !== undefined && here.numerator * ratio.denominator !== ratio.numerator * here.denominator) return false
    ratio = here
    compared++
  }
  if (ratio === undefined || compared < 2) return false
  return relation === '=' || relation === '!=' || ratio.numerator > 0n === ratio.denominator > 0n
}

function differenceOf({ sides }: RelationNode): Expression {
  return { kind: 'sum', terms: [sides[0]!, negated(sides[1]!)] }
}

/** Two numbers, or expressions with variables. */
function sameValue(a: Expression, b: Expression): boolean {
  const infinite = [a, b].map(infinitySign)
  if (infinite.some((sign) => sign !== 0)) return infinite[0] === infinite[1]
  const names = [...new Set([...symbolsOf(a), ...symbolsOf(b)])].sort()
  const exact = sameExactly(a, b, names)
  return exact ?? sameNumerically(a, b, names)
}

/** +1 or -1 for an infinity, 0 for anything else. */
function infinitySign(node: Expression): number {
  if (node.kind === 'constant') return node.name === 'infinity' ? 1 : 0
  if (node.kind !== 'product' || node.factors.length !== 2) return 0
  const [sign, value] = node.factors as [Expression, Expression]
  return sign.kind === 'number' && sign.numerator < 0n ? -infinitySign(value) : 0
}

/** Undefined where exact values are not to be had. */
function sameExactly(a: Expression, b: Expression, names: readonly string[]): boolean | undefined {
  let compared = 0
  for (const values of exactPoints(names)) {
    const x = exactValue(a, values)
    const y = exactValue(b, values)
    if (x === undefined || y === undefined) continue
    if (!equalFractions(x, y)) return false
    compared++
    if (names.length === 0) return true
  }
  return compared >= EXACT_POINTS ? true : undefined
}

/** Points whose coordinates are fractions without any relation to each other, of both signs: sqrt(x^2) is not x. */
function exactPoints(names: readonly string[]): Map<string, Fraction>[] {
  const random = new Random(1, 1)
  const count = names.length === 0 ? 1 : EXACT_POINTS + 2
  return Array.from({ length: count }, (_, k) => {
    const point = names.map((name): [string, Fraction] => {
      const size = random.integer(2, 2000)
      return [name, { numerator: BigInt(k % 2 === 0 ? size : -size), denominator: BigInt(random.integer(2, 100)) }]
    })
    return new Map(point)
  })
}

function sameNumerically(a: Expression, b: Expression, names: readonly string[]): boolean {
  let compared = 0
  for (const values of complexPoints(names)) {
    const x = approximateValue(a, values)
    const y = approximateValue(b, values)
    if (x === undefined || y === undefined) continue
    const equal = equalApproximately(x, y)
    if (equal === false) return false
    if (equal === true) compared++
    if (names.length === 0) return equal === true
  }
  return compared >= LEAST_POINTS
}

/** Positive, negative and complex points. */
function complexPoints(names: readonly string[]): Map<string, { re: number; im: number }>[] {
  const random = new Random(1, 2)
  const count = names.length === 0 ? 1 : COMPLEX_POINTS
  return Array.from({ length: count }, (_, k) => {
    const point = names.map((name): [string, { re: number; im: number }] => {
      const [u, v] = [random.uniform(), random.uniform()]
      if (k % 4 < 2) return [name, { re: 0.1 + 2 * u, im: 0 }]
      return [name, k % 4 === 2 ? { re: -0.1 - 2 * u, im: 0 } : { re: 2 * u - 1, im: 2 * v - 1 }]
    })
    return new Map(point)
  })
}
