// The signature of an op: one line that both languages repeat. It gives argument names and types to the compiler, shape
// and dtype checks with messages, the output allocation and the start-up handshake with the kernels.
//
//   x[*,D] w[D] residual[*,D]? -> y[*,D] rstd[*]:f32 | eps
//
// `name[dims]`  dims: a letter of the shape legend (equal letters are equal sizes), a number, `*` any leading
//               dims (equal everywhere in the signature), or `...` alone: any shape, the op says which.
// `:f32`        fixed dtype (`:dtype`: given by the attribute of that name); else the op's common dtype.
// `?`           may be absent. `!` is updated in place. After `|`: numeric attributes, in order.
// A letter that only outputs have is an attribute of that name.
import { type DType, dtypeNames } from './dtype.js'

export interface Argument {
  name: string
  /** Dims as written, or undefined for `[...]`. */
  dims: string[] | undefined
  /** Fixed dtype, 'dtype' when an attribute gives it, or undefined for the common dtype. */
  dtype: DType | 'dtype' | undefined
  optional: boolean
  inPlace: boolean
}

export interface Signature {
  text: string
  inputs: Argument[]
  outputs: Argument[]
  attributes: string[]
}

/** Parses a signature literal; throws on one that is malformed (a fault of the op table, not of a user). */
export function parseSignature(text: string): Signature {
  const [left, attributes = ''] = text.split('|')
  const arrow = left!.indexOf('->')
  if (arrow < 0) throw new Error(`signature without '->': ${text}`)
  return {
    text,
    inputs: words(left!.slice(0, arrow)).map((word) => parseArgument(word, text)),
    outputs: words(left!.slice(arrow + 2)).map((word) => parseArgument(word, text)),
    attributes: words(attributes),
  }
}

function words(text: string): string[] {
  return text.split(' ').filter((word) => word !== '')
}

function parseArgument(word: string, text: string): Argument {
  const match = /^([A-Za-z_]\w*)\[([^\]]*)\](?::(\w+))?([?!]*)$/.exec(word)
  if (!match) throw new Error(`malformed argument '${word}' in signature: ${text}`)
  const [, name, dims, dtype, marks] = match
  if (dtype !== undefined && dtype !== 'dtype' && !dtypeNames.includes(dtype as DType)) {
    throw new Error(`unknown dtype '${dtype}' in signature: ${text}`)
  }
  return {
    name: name!,
    dims: dims === '...' ? undefined : dims!.split(',').filter((dim) => dim !== ''),
    dtype: dtype as DType | 'dtype' | undefined,
    optional: marks!.includes('?'),
    inPlace: marks!.includes('!'),
  }
}

// ---- the same, for the compiler: names only, never sizes
// -------------------------------------------------------------

type Words<S extends string> = S extends `${infer A} ${infer B}` ? Words<A> | Words<B> : S extends '' ? never : S
type Left<S extends string> = S extends `${infer A} |${string}` ? A : S
type Inputs<S extends string> = Left<S> extends `${infer A}->${string}` ? Words<A> : never
type Outputs<S extends string> = Left<S> extends `${string}->${infer B}` ? Words<B> : never
type NameOf<W> = W extends `${infer N}[${string}` ? N : never
type Optional<W> = W extends `${string}?` ? W : never

/** Names after `|`. */
export type AttributeNames<S extends string> = S extends `${string}|${infer A}` ? Words<A> : never
export type InputNames<S extends string> = NameOf<Inputs<S>>
export type OutputNames<S extends string> = NameOf<Outputs<S>>
/** The arguments of an op with tensors of type T: inputs (optional ones may be absent), then numbers. */
export type Arguments<S extends string, T> = { [K in NameOf<Exclude<Inputs<S>, Optional<Inputs<S>>>>]: T } & {
  [K in NameOf<Optional<Inputs<S>>>]?: T | undefined
} & { [K in AttributeNames<S>]: number }
/** The results of an op; optional ones may be undefined. */
export type Results<S extends string, T> = { [K in NameOf<Exclude<Outputs<S>, Optional<Outputs<S>>>>]: T } & {
  [K in NameOf<Optional<Outputs<S>>>]?: T | undefined
}
