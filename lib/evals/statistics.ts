// What a share of right answers is worth: standard errors with the prompt as the unit that was drawn, Wilson's
// interval, and the estimators of several samples. Several answers to one prompt are not independent: they never count
// as more prompts.

/** Quantile of the standard normal distribution for 95 % in the middle. */
const Z95 = 1.959963984540054

export interface Estimate {
  value: number
  /** Standard deviation of `value` over draws of the prompts; null where one prompt cannot tell. */
  standardError: number | null
  /** 95 %. */
  interval: [low: number, high: number]
  /** Prompts. */
  count: number
}

/** Wilson's 95 % interval of a share `p` of `n` independent observations (Wilson 1927); `n` need not be whole. */
export function wilsonInterval(p: number, n: number): [low: number, high: number] {
  const z2 = Z95 ** 2 / n
  const middle = (p + z2 / 2) / (1 + z2)
  const reach = (Z95 / (1 + z2)) * Math.sqrt((p * (1 - p)) / n + z2 / (4 * n))
  // At 0 and 1 the bound is exact, whatever rounding says.
  return [p === 0 ? 0 : Math.max(0, middle - reach), p === 1 ? 1 : Math.min(1, middle + reach)]
}

/**
 * The mean of values in [0, 1], one a prompt (of several samples their mean), with s / sqrt(n) as its standard error.
 * The interval is Wilson's: of n observations where all values are 0 or 1, else of as many independent ones as would
 * have this standard error (Korn and Graubard 1998).
 */
export function meanEstimate(values: readonly number[]): Estimate {
  const count = values.length
  const value = mean(values)
  const standardError = count < 2 ? null : Math.sqrt(sum(values.map((x) => (x - value) ** 2)) / (count - 1) / count)
  const whole = values.every((x) => x === 0 || x === 1)
  const interval = wilsonInterval(value, whole ? count : effectiveCount({ value, standardError, count }))
  return { value, standardError, interval, count }
}

/**
 * The share of right parts where prompts have several (instructions): sum of `right` / sum of `parts`. Standard error
 * of a ratio, linearised, with prompts as clusters (Cochran 1977, 6.4).
 */
export function ratioEstimate(right: readonly number[], parts: readonly number[]): Estimate {
  const count = parts.length
  const total = sum(parts)
  const value = sum(right) / total
  const squares = sum(parts.map((m, i) => (right[i]! - value * m) ** 2))
  const standardError = count < 2 ? null : Math.sqrt((count / (count - 1)) * squares) / total
  return {
    value,
    standardError,
    interval: wilsonInterval(value, effectiveCount({ value, standardError, count })),
    count,
  }
}

/** The unweighted mean of the estimates of groups that were drawn apart (subjects). */
export function macroEstimate(groups: readonly Estimate[]): Estimate {
  const [only] = groups
  if (groups.length === 1) return only!
  const value = mean(groups.map((group) => group.value))
  const count = sum(groups.map((group) => group.count))
  const known = groups.flatMap(({ standardError }) => (standardError === null ? [] : [standardError ** 2]))
  const standardError = known.length < groups.length ? null : Math.sqrt(sum(known)) / groups.length
  return {
    value,
    standardError,
    interval: wilsonInterval(value, effectiveCount({ value, standardError, count })),
    count,
  }
}

/** Independent observations that would have this standard error; `count` where it says nothing. */
function effectiveCount({ value, standardError, count }: Omit<Estimate, 'interval'>): number {
  const variance = value * (1 - value)
  return standardError === null || standardError === 0 || variance <= 0 ? count : variance / standardError ** 2
}

/** The chance that one of k draws out of n samples, of which c are right, is right, without bias:
 *  1 - C(n - c, k) / C(n, k) (Chen et al. 2021). */
export function passAtK(n: number, c: number, k: number): number {
  if (n - c < k) return 1
  let wrong = 1
  for (let i = n - c + 1; i <= n; i++) wrong *= 1 - k / i
  return 1 - wrong
}

/** 1, 2, 4, ... up to n. */
export function powersOfTwo(n: number): number[] {
  const powers: number[] = []
  for (let k = 1; k <= n; k *= 2) powers.push(k)
  return powers
}

function sum(values: readonly number[]): number {
  return values.reduce((total, x) => total + x, 0)
}

function mean(values: readonly number[]): number {
  return sum(values) / values.length
}
