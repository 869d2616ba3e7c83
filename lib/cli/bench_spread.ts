// A measured time as a median with a spread. The quartiles are kept, not a deviation: on a shared machine times have a
// long upper tail, and one late reading must not widen what is said of the others.

export interface Spread {
  medianSeconds: number
  bestSeconds: number
  /** First and third quartile of the measurements. */
  lowSeconds: number
  highSeconds: number
  /** Number of measurements. */
  measurements: number
}

/** The spread of at least one measurement, in seconds. */
export function spreadOf(seconds: readonly number[]): Spread {
  const sorted = [...seconds].sort((a, b) => a - b)
  return {
    medianSeconds: quantile(sorted, 0.5),
    bestSeconds: sorted[0]!,
    lowSeconds: quantile(sorted, 0.25),
    highSeconds: quantile(sorted, 0.75),
    measurements: sorted.length,
  }
}

/** Half the distance between the quartiles as a share of the median. */
export function relativeSpread({ medianSeconds, lowSeconds, highSeconds }: Spread): number {
  return (highSeconds - lowSeconds) / 2 / medianSeconds
}

/** Linear between the two measurements next to the place, as numpy.quantile does by default. */
function quantile(sorted: readonly number[], share: number): number {
  const place = share * (sorted.length - 1)
  const below = Math.floor(place)
  const above = Math.min(below + 1, sorted.length - 1)
  return sorted[below]! + (place - below) * (sorted[above]! - sorted[below]!)
}
