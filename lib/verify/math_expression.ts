// Mathematical answers as trees. Exact numbers are fractions of big integers; structures that are no single number
// (tuples, sets, matrices, relations, words) are nodes of their own.

export type FunctionName =
  | 'sin'
  | 'cos'
  | 'tan'
  | 'cot'
  | 'sec'
  | 'csc'
  | 'arcsin'
  | 'arccos'
  | 'arctan'
  | 'sinh'
  | 'cosh'
  | 'tanh'
  | 'ln'
  | 'log'
  | 'exp'
  | 'abs'
  | 'floor'
  | 'ceil'
  | 'factorial'
  | 'binomial'
  | 'gcd'
  | 'lcm'
  | 'max'
  | 'min'

export type Relation = '=' | '<' | '>' | '<=' | '>=' | '!=' | 'in' | '~'

/** One number, perhaps with variables. */
export type Scalar =
  | { kind: 'number'; numerator: bigint; denominator: bigint }
  | { kind: 'symbol'; name: string }
  | { kind: 'constant'; name: 'pi' | 'e' | 'i' | 'infinity' }
  | { kind: 'sum'; terms: Expression[] }
  /** `sign` +1 for \pm, -1 for \mp: the two readings of an expression take them together. */
  | { kind: 'signed'; sign: 1 | -1; value: Expression }
  | { kind: 'product'; factors: Expression[] }
  | { kind: 'quotient'; dividend: Expression; divisor: Expression }
  | { kind: 'power'; base: Expression; exponent: Expression }
  | { kind: 'call'; name: FunctionName; args: Expression[] }

export type Structure =
  /** Items between commas without brackets: their order does not count. */
  | { kind: 'list'; items: Expression[] }
  | { kind: 'set'; items: Expression[] }
  | { kind: 'tuple'; open: '(' | '['; close: ')' | ']'; items: Expression[] }
  | { kind: 'union'; parts: Expression[] }
  | { kind: 'operation'; name: string; left: Expression; right: Expression }
  | { kind: 'matrix'; rows: Expression[][] }
  /** a < b < c has two relations and three sides. */
  | { kind: 'relation'; relations: Relation[]; sides: Expression[] }
  | { kind: 'words'; text: string }

export type Expression = Scalar | Structure

export function integer(value: bigint): Scalar {
  return { kind: 'number', numerator: value, denominator: 1n }
}

export function negated(value: Expression): Scalar {
  if (value.kind === 'number') return { ...value, numerator: -value.numerator }
  return { kind: 'product', factors: [integer(-1n), value] }
}

/** The parts of a node, left to right. */
export function partsOf(node: Expression): readonly Expression[] {
  switch (node.kind) {
    case 'sum':
      return node.terms
    case 'signed':
      return [node.value]
    case 'product':
      return node.factors
    case 'quotient':
      return [node.dividend, node.divisor]
    case 'power':
      return [node.base, node.exponent]
    case 'call':
      return node.args
    case 'list':
    case 'set':
    case 'tuple':
      return node.items
    case 'union':
      return node.parts
    case 'operation':
      return [node.left, node.right]
    case 'matrix':
      return node.rows.flat()
    case 'relation':
      return node.sides
    default:
      return []
  }
}

/** Names of the variables of an expression. */
export function symbolsOf(node: Expression, found: Set<string> = new Set()): Set<string> {
  if (node.kind === 'symbol') found.add(node.name)
  for (const part of partsOf(node)) symbolsOf(part, found)
  return found
}

/** Whether the node, or one in it, is of this kind. */
export function hasKind(node: Expression, kind: Expression['kind']): boolean {
  return node.kind === kind || partsOf(node).some((part) => hasKind(part, kind))
}

/** A text that is the same for trees that are the same. */
export function treeText(node: Expression): string {
  if (node.kind === 'number') return `${node.numerator}/${node.denominator}`
  if (node.kind === 'symbol' || node.kind === 'constant') return `${node.kind}:${node.name}`
  if (node.kind === 'words') return JSON.stringify(node.text)
  return `${node.kind}${headText(node)}(${partsOf(node).map(treeText).join(',')})`
}

function headText(node: Expression): string {
  if (node.kind === 'call' || node.kind === 'operation') return `:${node.name}`
  if (node.kind === 'signed') return `:${node.sign}`
  if (node.kind === 'tuple') return node.open + node.close
  if (node.kind === 'matrix') return `:${node.rows.map((row) => row.length).join(' ')}`
  return node.kind === 'relation' ? `:${node.relations.join(' ')}` : ''
}
