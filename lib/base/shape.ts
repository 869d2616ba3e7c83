// Shapes are plain arrays of sizes, outermost first.

export type Shape = readonly number[]

export function countOf(shape: Shape): number {
  let count = 1
  for (const size of shape) count *= size
  return count
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i])
}

export function shapeText(shape: Shape): string {
  return `[${shape.join(',')}]`
}

/** NumPy broadcasting of two shapes, or undefined when they do not fit. */
export function broadcastShape(a: Shape, b: Shape): number[] | undefined {
  const rank = Math.max(a.length, b.length)
  const result: number[] = []
  for (let i = 0; i < rank; i++) {
    const m = a[a.length - rank + i] ?? 1
    const n = b[b.length - rank + i] ?? 1
    if (m !== n && m !== 1 && n !== 1) return undefined
    result.push(m === 1 ? n : m)
  }
  return result
}
