// By which power measurements grow.

/** Exponent p of y ~ x^p over the last half of the points, by least squares in logarithms; NaN for fewer than two. */
export function growthOrder(points: readonly { x: number; y: number }[]): number {
  const logs = points
    .slice(Math.min(points.length - 2, points.length >> 1))
    .map(({ x, y }) => [Math.log(x), Math.log(y)] as const)
  if (points.length < 2) return Number.NaN
  const mean = (index: 0 | 1) => logs.reduce((sum, pair) => sum + pair[index], 0) / logs.length
  const [mx, my] = [mean(0), mean(1)]
  const product = logs.reduce((sum, [x, y]) => sum + (x - mx) * (y - my), 0)
  return product / logs.reduce((sum, [x]) => sum + (x - mx) ** 2, 0)
}
