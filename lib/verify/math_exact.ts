// Exact values of expressions: fractions of big integers. What would be irrational or large (9^9^9) has none, and the
// work for one expression is bounded.

import type { Expression, FunctionName } from './math_expression.js'

export interface Fraction {
  numerator: bigint
  /** Above 0. */
  denominator: bigint
}

/** What variables stand for. */
export type FractionValues = ReadonlyMap<string, Fraction>

const MAX_BITS = 8192
const MAX_WORK_BITS = 2 ** 20
const MAX_ROOT = 64n

class NoExactValue extends Error {}

/** The exact value, or undefined: irrational, undefined, too large, or no number at all. */
export function exactValue(node: Expression, values: FractionValues): Fraction | undefined {
  const evaluation = new Evaluation(values)
  try {
    return evaluation.value(node)
  } catch (error) {
    if (error instanceof NoExactValue) return undefined
    throw error
  }
}

export function equalFractions(a: Fraction, b: Fraction): boolean {
  return a.numerator * b.denominator === b.numerator * a.denominator
}

class Evaluation {
  #work = 0

  constructor(private readonly values: FractionValues) {}

  value(node: Expression): Fraction {
    switch (node.kind) {
      case 'number':
        return node
      case 'symbol':
        return this.values.get(node.name) ?? none()
      case 'sum':
        return node.terms.map((term) => this.value(term)).reduce((a, b) => this.#sum(a, b))
      case 'product':
        return node.factors.map((factor) => this.value(factor)).reduce((a, b) => this.#product(a, b))
      case 'quotient':
        return this.#product(this.value(node.dividend), reciprocal(this.value(node.divisor)))
      case 'power':
        return this.#power(this.value(node.base), this.value(node.exponent))
      case 'call':
        return this.#call(
          node.name,
          node.args.map((arg) => this.value(arg)),
        )
      default:
        return none()
    }
  }

  #sum(a: Fraction, b: Fraction): Fraction {
    if (a.denominator === b.denominator) return this.#kept(a.numerator + b.numerator, a.denominator)
    const numerator = a.numerator * b.denominator + b.numerator * a.denominator
    return this.#kept(numerator, a.denominator * b.denominator)
  }

  #product(a: Fraction, b: Fraction): Fraction {
    return this.#kept(a.numerator * b.numerator, a.denominator * b.denominator)
  }

  /** Refuses values, and work, beyond the bounds. */
  #kept(numerator: bigint, denominator: bigint): Fraction {
    const bits = bitLength(numerator) + bitLength(denominator)
    this.#work += bits
    if (bits > MAX_BITS || this.#work > MAX_WORK_BITS) none()
    return { numerator, denominator }
  }

  #power(base: Fraction, exponent: Fraction): Fraction {
    const { numerator: p, denominator: q } = reduced(exponent)
    const root = q === 1n ? base : this.#root(base, q)
    if (p === 0n) return root.numerator === 0n ? none() : { numerator: 1n, denominator: 1n }
    const positive = p < 0n ? reciprocal(root) : root
    const times = p < 0n ? -p : p
    const isUnit = positive.denominator === 1n && positive.numerator ** 2n <= 1n
    if (isUnit) return times % 2n === 0n ? { numerator: positive.numerator ** 2n, denominator: 1n } : positive
    const bits = bitLength(positive.numerator) + bitLength(positive.denominator)
    if (times > BigInt(MAX_BITS) || bits * Number(times) > MAX_BITS) none()
    return this.#kept(positive.numerator ** times, positive.denominator ** times)
  }

  /** The root where it is rational. */
  #root(base: Fraction, degree: bigint): Fraction {
    if (degree > MAX_ROOT) none()
    const { numerator, denominator } = reduced(base)
    // Of a negative number the root that is meant may be the real or the principal one.
    if (numerator < 0n) none()
    return { numerator: this.#integerRoot(numerator, degree), denominator: this.#integerRoot(denominator, degree) }
  }

  #integerRoot(value: bigint, degree: bigint): bigint {
    if (value < 2n) return value
    let root = 1n << BigInt(Math.ceil(bitLength(value) / Number(degree)))
    for (;;) {
      this.#work += bitLength(value)
      if (this.#work > MAX_WORK_BITS) none()
      const next = ((degree - 1n) * root + value / root ** (degree - 1n)) / degree
      if (next >= root) break
      root = next
    }
    return root ** degree === value ? root : none()
  }

  #call(name: FunctionName, args: readonly Fraction[]): Fraction {
    const [x, y] = args
    if (x === undefined) return none()
    if (name === 'abs') return x.numerator < 0n ? { ...x, numerator: -x.numerator } : x
    if (name === 'floor') return { numerator: floored(x), denominator: 1n }
    if (name === 'ceil') return { numerator: -floored({ ...x, numerator: -x.numerator }), denominator: 1n }
    if (name === 'factorial') return this.#kept(this.#factorial(integerOf(x)), 1n)
    if (name === 'binomial' && y !== undefined) return this.#kept(this.#binomial(integerOf(x), integerOf(y)), 1n)
    if (name === 'max' || name === 'min') return args.reduce((a, b) => (isLess(a, b) === (name === 'max') ? b : a))
    if (name !== 'gcd' && name !== 'lcm') return none()
    const whole = args.map(integerOf)
    const combined = whole.reduce((a, b) => (name === 'gcd' ? gcd(a, b) : this.#multiple(a, b)))
    return { numerator: combined, denominator: 1n }
  }

  #multiple(a: bigint, b: bigint): bigint {
    const divisor = gcd(a, b)
    return divisor === 0n ? 0n : this.#kept((a / divisor) * b, 1n).numerator
  }

  #factorial(n: bigint): bigint {
    if (n < 0n || n > 1000n) none()
    let result = 1n
    for (let k = 2n; k <= n; k++) result = this.#kept(result * k, 1n).numerator
    return result
  }

  #binomial(n: bigint, k: bigint): bigint {
    if (n < 0n || k < 0n || n > 10_000n) none()
    if (k > n) return 0n
    const short = k < n - k ? k : n - k
    let result = 1n
    for (let i = 1n; i <= short; i++) result = this.#kept(result * (n - short + i), 1n).numerator / i
    return result
  }
}

function none(): never {
  throw new NoExactValue()
}

function reciprocal({ numerator, denominator }: Fraction): Fraction {
  if (numerator === 0n) none()
  return numerator < 0n
    ? { numerator: -denominator, denominator: -numerator }
    : { numerator: denominator, denominator: numerator }
}

function integerOf(value: Fraction): bigint {
  return value.numerator % value.denominator === 0n ? value.numerator / value.denominator : none()
}

function floored({ numerator, denominator }: Fraction): bigint {
  const quotient = numerator / denominator
  return numerator < 0n && numerator % denominator !== 0n ? quotient - 1n : quotient
}

function isLess(a: Fraction, b: Fraction): boolean {
  return a.numerator * b.denominator < b.numerator * a.denominator
}

function reduced({ numerator, denominator }: Fraction): Fraction {
  const divisor = gcd(numerator, denominator)
  return { numerator: numerator / divisor, denominator: denominator / divisor }
}

function gcd(a: bigint, b: bigint): bigint {
  let [x, y] = [a < 0n ? -a : a, b < 0n ? -b : b]
  while (y !== 0n) [x, y] = [y, x % y]
  return x
}

/** About the number of bits: exact to four. */
function bitLength(value: bigint): number {
  return 4 * value.toString(16).length
}
