// Samples beyond those of the table: one size at a time is set to 0, 1 and the neighbours of the vector widths. Sizes
// that hang together (the inner size of a product, the heads of a group) are moved together.
import type { Op, Sample } from '../tensor/index.js'
import { testSamples } from '../tensor/sample_call.js'

export const ODD_SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 33]

/** Ops that take a mean over D, which an empty row has not. */
const MEAN_OVER_D = /^(add_)?rms_norm|^layer_norm/

type Resize = (sample: Sample, letter: string, size: number) => Sample | undefined

/** Smallest size of letters that have one: a softmax, a table or a maximum needs an entry. */
const smallest: { [letter: string]: number } = { V: 1, K: 1, H: 1, C: 1, M: 1 }

function resizeMatmul(sample: Sample, letter: string, size: number): Sample | undefined {
  const { transpose_a: ta, transpose_b: tb } = sample
  switch (letter) {
    case 'G':
      return { ...sample, G: size }
    case 'A1':
      return ta ? { ...sample, A1: size, [tb ? 'B2' : 'B1']: size } : { ...sample, A1: size, I: size }
    case 'A2':
      return ta ? { ...sample, A2: size, I: size } : { ...sample, A2: size, [tb ? 'B2' : 'B1']: size }
    case 'B2':
      return tb ? undefined : { ...sample, B2: size, P: size }
    case 'B1':
      return tb ? { ...sample, B1: size, P: size } : undefined
    default:
      return undefined
  }
}

function resizeAttention(sample: Sample, letter: string, size: number): Sample | undefined {
  switch (letter) {
    case 'N':
      return { ...sample, N: size, M: size, S: 1, queries: [size], keys: [size] }
    case 'M':
      return { ...sample, N: 1, M: size, S: 1, queries: [1], keys: [size] }
    case 'S':
      return { ...sample, S: size, N: 2 * size, M: 2 * size, queries: Array(size).fill(2), keys: Array(size).fill(2) }
    case 'K':
      return size > 9 ? undefined : { ...sample, K: size, H: 2 * size }
    case 'C':
      return { ...sample, C: size }
    default:
      return undefined
  }
}

function resizePages(sample: Sample, letter: string, size: number): Sample | undefined {
  if (letter === 'P') return size < (sample.M as number) ? undefined : { ...sample, P: size }
  if (letter === 'M') return undefined
  const resized = resizeAttention(sample, letter, size)
  if (!resized || letter === 'K' || letter === 'C') return resized
  const pages = Math.max(
    1,
    (resized.keys as number[]).reduce((sum, keys) => sum + Math.ceil(keys / 64), 0),
  )
  return { ...resized, M: pages, P: pages + 1 }
}

const resizes: { [op: string]: Resize } = {
  matmul: resizeMatmul,
  attention: resizeAttention,
  attention_paged: resizePages,
  attention_backward: resizeAttention,
  rope: (sample, letter, size) => ({ ...sample, [letter]: letter === 'C' ? 2 * size : size }),
  rope_table: (sample, letter, size) =>
    letter === 'J' ? { ...sample, J: size, C: 2 * size } : letter === 'C' ? undefined : { ...sample, [letter]: size },
}

function lettersOf(op: Op): string[] {
  const letters = new Set<string>()
  for (const argument of op.parsed.inputs) {
    for (const dim of argument.dims ?? []) if (!Number.isInteger(Number(dim))) letters.add(dim)
  }
  return [...letters]
}

function withLetter(op: Op, sample: Sample, letter: string, size: number): Sample | undefined {
  if (size < (smallest[letter] ?? 0)) return undefined
  if (letter === 'D' && size === 0 && MEAN_OVER_D.test(op.definition.name)) return undefined
  const resize = resizes[op.definition.name]
  if (resize) return resize(sample, letter, size)
  return letter === '*' ? { ...sample, lead: [size] } : { ...sample, [letter]: size }
}

/** Every dimension of free shapes that is `from` becomes `to`; dimensions that an attribute points at stay. */
function withSize(sample: Sample, from: number, to: number): Sample {
  const shapes: { [argument: string]: number[] } = {}
  for (const [name, shape] of Object.entries(sample.shapes!)) shapes[name] = shape.map((n) => (n === from ? to : n))
  return { ...sample, shapes }
}

/** Sizes of free shapes that may change: a cut or an empty maximum must keep its axis. */
function freeSizes(op: Op, sample: Sample): number[] {
  const sizes = new Set(Object.values(sample.shapes!).flat())
  if (['slice', 'concat', 'max'].includes(op.definition.name)) {
    for (const shape of Object.values(sample.shapes!)) sizes.delete(shape[sample.axis as number]!)
  }
  return [...sizes].filter((size) => size > 1)
}

/** One size at a time set to each of ODD_SIZES. */
export function oddSamples(op: Op): Sample[] {
  const first = testSamples(op)[0]
  if (!first) return []
  if (first.shapes) {
    const sizes = freeSizes(op, first)
    return ODD_SIZES.flatMap((to) => sizes.map((from) => withSize(first, from, to)))
  }
  return lettersOf(op).flatMap((letter) =>
    ODD_SIZES.map((size) => withLetter(op, first, letter, size)).filter((sample) => sample !== undefined),
  )
}
