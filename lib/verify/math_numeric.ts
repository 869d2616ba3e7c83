// Values of expressions as complex floating-point numbers, each with a bound of its rounding error, so that two values
// are taken as equal only as far as their errors reach, and no fixed tolerance lets 0.333 pass for 1/3.

import { exactValue } from './math_exact.js'
import type { Expression, FunctionName } from './math_expression.js'

export interface Approximate {
  re: number
  im: number
  /** Bound of the distance to the true value. */
  error: number
}

/** What variables stand for. */
export type ComplexValues = ReadonlyMap<string, { re: number; im: number }>

const EPSILON = 2 ** -52
/** A value whose error is a larger part of it than this tells nothing. */
const MOST_RELATIVE_ERROR = 1e-7

/** The value, or undefined where it is none, overflows or is lost in rounding errors. */
export function approximateValue(node: Expression, values: ComplexValues): Approximate | undefined {
  const value = evaluate(node, values)
  return value !== undefined && Number.isFinite(value.re + value.im + value.error) ? value : undefined
}

/** Whether two values are equal as far as can be told: undefined where their errors are too large to tell. */
export function equalApproximately(a: Approximate, b: Approximate): boolean | undefined {
  const distance = Math.hypot(a.re - b.re, a.im - b.im)
  const error = 8 * (a.error + b.error)
  if (distance > error) return false
  const size = Math.max(modulus(a), modulus(b), 1e-3)
  return error <= MOST_RELATIVE_ERROR * size ? true : undefined
}

function evaluate(node: Expression, values: ComplexValues): Approximate | undefined {
  switch (node.kind) {
    case 'number':
      return rounded(ratio(node.numerator, node.denominator), 0)
    case 'symbol': {
      const value = values.get(node.name)
      return value && { ...value, error: 0 }
    }
    case 'constant':
      if (node.name === 'infinity') return undefined
      if (node.name === 'i') return { re: 0, im: 1, error: 0 }
      return rounded(node.name === 'pi' ? Math.PI : Math.E, 0)
    case 'sum':
      return folded(node.terms, values, sum)
    case 'product':
      return folded(node.factors, values, product)
    case 'quotient':
      return folded([node.dividend, node.divisor], values, quotient)
    case 'power':
      return folded([node.base, node.exponent], values, power)
    case 'call':
      return called(node.name, node.args, values)
    default:
      return undefined
  }
}

/** Integers beyond the floating-point range, too. */
function ratio(numerator: bigint, denominator: bigint): number {
  const value = Number(numerator) / Number(denominator)
  if (Number.isFinite(value)) return value
  const shift = BigInt(4 * Math.max(0, denominator.toString(16).length - 200))
  return Number(numerator >> shift) / Number(denominator >> shift)
}

type Combine = (a: Approximate, b: Approximate) => Approximate | undefined

function folded(parts: readonly Expression[], values: ComplexValues, combine: Combine): Approximate | undefined {
  let result: Approximate | undefined
  for (const [i, part] of parts.entries()) {
    const value = evaluate(part, values)
    if (value === undefined) return undefined
    result = i === 0 ? value : combine(result!, value)
    if (result === undefined) return undefined
  }
  return result
}

function rounded(re: number, im: number, error = 0): Approximate {
  return { re, im, error: error + EPSILON * (Math.abs(re) + Math.abs(im)) }
}

function modulus({ re, im }: { re: number; im: number }): number {
  return Math.hypot(re, im)
}

function sum(a: Approximate, b: Approximate): Approximate {
  return rounded(a.re + b.re, a.im + b.im, a.error + b.error)
}

function product(a: Approximate, b: Approximate): Approximate {
  const error = modulus(a) * b.error + modulus(b) * a.error + a.error * b.error
  const own = EPSILON * modulus(a) * modulus(b)
  return rounded(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re, error + own)
}

function quotient(a: Approximate, b: Approximate): Approximate | undefined {
  const size = modulus(b)
  if (size <= b.error) return undefined
  const scale = size * size
  const value = { re: (a.re * b.re + a.im * b.im) / scale, im: (a.im * b.re - a.re * b.im) / scale }
  const error = (a.error + modulus(value) * b.error) / (size - b.error)
  return rounded(value.re, value.im, error + 2 * EPSILON * modulus(value))
}

function power(a: Approximate, b: Approximate): Approximate | undefined {
  const isWhole = b.im === 0 && Number.isInteger(b.re) && b.error <= EPSILON * Math.abs(b.re)
  if (isWhole && Math.abs(b.re) <= 64) return wholePower(a, b.re)
  if (modulus(a) <= a.error) return a.re === 0 && a.im === 0 && b.im === 0 && b.re > 0 ? a : undefined
  // An odd root of a negative number is the real one, as in schools.
  const inverse = Math.round(1 / b.re)
  const isOddRoot = a.im === 0 && a.re < 0 && b.im === 0 && inverse % 2 !== 0 && Math.abs(b.re * inverse - 1) < 1e-12
  if (isOddRoot) {
    const positive = exponential(product(b, logarithm({ ...a, re: -a.re })))
    return { ...positive, re: -positive.re, im: -positive.im }
  }
  return exponential(product(b, logarithm(a)))
}

function wholePower(a: Approximate, exponent: number): Approximate | undefined {
  let result: Approximate = { re: 1, im: 0, error: 0 }
  for (let i = 0; i < Math.abs(exponent); i++) result = product(result, a)
  return exponent < 0 ? quotient({ re: 1, im: 0, error: 0 }, result) : result
}

function logarithm(a: Approximate): Approximate {
  const size = modulus(a)
  return rounded(Math.log(size), Math.atan2(a.im, a.re), a.error / (size - a.error) + EPSILON)
}

function exponential(a: Approximate): Approximate {
  const size = Math.exp(a.re)
  return rounded(size * Math.cos(a.im), size * Math.sin(a.im), size * (Math.expm1(a.error) + EPSILON))
}

function scaled(a: Approximate, re: number, im: number): Approximate {
  return product(a, { re, im, error: 0 })
}

/** sin z and cos z from the exponentials of iz and -iz; on the real line directly, which is more precise. */
function sine(a: Approximate): Approximate {
  if (a.im === 0) return rounded(Math.sin(a.re), 0, a.error + EPSILON)
  const difference = sum(exponential(scaled(a, 0, 1)), scaled(exponential(scaled(a, 0, -1)), -1, 0))
  return scaled(difference, 0, -0.5)
}

function cosine(a: Approximate): Approximate {
  if (a.im === 0) return rounded(Math.cos(a.re), 0, a.error + EPSILON)
  return scaled(sum(exponential(scaled(a, 0, 1)), exponential(scaled(a, 0, -1))), 0.5, 0)
}

function hyperbolic(a: Approximate, sign: 1 | -1): Approximate {
  return scaled(sum(exponential(a), scaled(exponential(scaled(a, -1, 0)), sign, 0)), 0.5, 0)
}

const ONE: Approximate = { re: 1, im: 0, error: 0 }

type OfOne = (x: Approximate) => Approximate | undefined
const FUNCTIONS: Partial<Record<FunctionName, OfOne>> = {
  sin: sine,
  cos: cosine,
  tan: (x) => quotient(sine(x), cosine(x)),
  cot: (x) => quotient(cosine(x), sine(x)),
  sec: (x) => quotient(ONE, cosine(x)),
  csc: (x) => quotient(ONE, sine(x)),
  sinh: (x) => hyperbolic(x, -1),
  cosh: (x) => hyperbolic(x, 1),
  tanh: (x) => quotient(hyperbolic(x, -1), hyperbolic(x, 1)),
  arcsin: (x) => ofReal(x, Math.asin, 1 / Math.sqrt(Math.max(1e-12, 1 - x.re * x.re))),
  arccos: (x) => ofReal(x, Math.acos, 1 / Math.sqrt(Math.max(1e-12, 1 - x.re * x.re))),
  arctan: (x) => ofReal(x, Math.atan, 1),
  exp: exponential,
  ln: (x) => (modulus(x) > x.error ? logarithm(x) : undefined),
  abs: (x) => rounded(modulus(x), 0, x.error),
  floor: (x) => stepped(x, Math.floor),
  ceil: (x) => stepped(x, Math.ceil),
}

function ofReal(x: Approximate, apply: (x: number) => number, slope: number): Approximate | undefined {
  if (x.im !== 0) return undefined
  const value = apply(x.re)
  return Number.isNaN(value) ? undefined : rounded(value, 0, x.error * slope + EPSILON)
}

function stepped(x: Approximate, apply: (x: number) => number): Approximate | undefined {
  const isClear = x.im === 0 && apply(x.re - x.error) === apply(x.re + x.error)
  return isClear ? { re: apply(x.re), im: 0, error: 0 } : undefined
}

function called(name: FunctionName, args: readonly Expression[], values: ComplexValues): Approximate | undefined {
  const [first, second] = args
  if (first === undefined) return undefined
  const apply = FUNCTIONS[name]
  if (apply !== undefined && second === undefined) return applied(apply, evaluate(first, values))
  if (name === 'log') return logarithmTo(evaluate(first, values), second && evaluate(second, values), second)
  const exact = exactValue({ kind: 'call', name, args: [...args] }, new Map())
  return exact && rounded(ratio(exact.numerator, exact.denominator), 0)
}

function applied(apply: OfOne, x: Approximate | undefined): Approximate | undefined {
  return x === undefined ? undefined : apply(x)
}

/** Without a base, to base 10. */
function logarithmTo(
  x: Approximate | undefined,
  base: Approximate | undefined,
  given: Expression | undefined,
): Approximate | undefined {
  if (x === undefined || (given !== undefined && base === undefined) || modulus(x) <= x.error) return undefined
  const to = base ?? { re: 10, im: 0, error: 0 }
  return modulus(to) <= to.error ? undefined : quotient(logarithm(x), logarithm(to))
}
