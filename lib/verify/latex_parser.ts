// Reads an answer in LaTeX, or plain mathematics, to a tree. What it does not know makes the whole answer unreadable
// (undefined), never half read. Depth and length are bounded, so that no text costs more than a millisecond or two.

import { decimalNumber, hasFractions, letterNode, product, repeatingDecimal, signed, wordsNode } from './latex_nodes.js'
import { TokenReader, Unreadable } from './latex_reader.js'
import { latexTokens, type Reading, type Token } from './latex_tokens.js'
import { type Expression, type FunctionName, integer, negated, type Relation } from './math_expression.js'

const MAX_TOKENS = 1000
const MAX_DEPTH = 50
const MAX_EXACT_DIGITS = 400

const FUNCTIONS = new Set<string>(
  'sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp gcd lcm max min'.split(' '),
)
const ALIASES: Readonly<Record<string, FunctionName>> = { asin: 'arcsin', acos: 'arccos', atan: 'arctan' }
const INVERSES: Readonly<Record<string, FunctionName>> = { sin: 'arcsin', cos: 'arccos', tan: 'arctan' }
const RELATIONS: Readonly<Record<string, Relation>> = {
  '=': '=',
  '<': '<',
  '>': '>',
  lt: '<',
  gt: '>',
  le: '<=',
  leq: '<=',
  leqslant: '<=',
  ge: '>=',
  geq: '>=',
  geqslant: '>=',
  ne: '!=',
  neq: '!=',
  in: 'in',
  approx: '~',
  sim: '~',
  equiv: '~',
}
const GREEK = new Set(
  (
    'alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon ' +
    'phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar'
  ).split(' '),
)
const OPAQUE = new Set('overline bar vec hat widehat overrightarrow underline tilde mathbf mathrm'.split(' '))
/** Commands that stand for a value that cannot be computed: equal to itself alone. */
const ATOMS = new Set('angle triangle circ emptyset varnothing star prime dots ldots cdots'.split(' '))

/** The tree of an answer, or undefined where it is not understood. */
export function parseLatex(answer: string, reading: Reading = { groupsThousands: true }): Expression | undefined {
  const tokens = latexTokens(answer, reading, MAX_TOKENS)
  if (tokens === undefined || tokens.length === 0) return undefined
  try {
    return new LatexParser(tokens).answer()
  } catch (error) {
    if (error instanceof Unreadable) return undefined
    throw error
  }
}

class LatexParser extends TokenReader {
  #depth = 0
  /** Open `|`: inside, the next one closes. */
  #openBars = 0
  #isInSet = false

  answer(): Expression {
    const words = this.#wordsAlone()
    if (words !== undefined) return words
    const items = this.#items()
    while (this.isSign('.') || this.isUnit()) this.at++
    if (this.at < this.tokens.length) throw new Unreadable()
    return items.length === 1 ? items[0]! : { kind: 'list', items }
  }

  /** An answer of nothing but words is text: "Evelyn" is not E times v times e. */
  #wordsAlone(): Expression | undefined {
    const isWord = ({ kind, text }: Token & { text?: string }) =>
      kind === 'text' || kind === 'word' || kind === 'letter' || (kind === 'sign' && '.\'"-()'.includes(text!))
    if (!this.tokens.every(isWord)) return undefined
    const text = this.tokens.map((token) => ('text' in token ? token.text : '')).join(' ')
    const letters = text.replace(/[^\p{L}]/gu, '')
    const isProduct = letters.length <= 3 && letters === letters.toLowerCase() && !this.tokens.some(isTextToken)
    return letters.length <= 1 || isProduct ? undefined : wordsNode(text)
  }

  /** Items between commas, semicolons or "and". */
  #items(): Expression[] {
    const items = [this.#relation()]
    while (this.#takesSeparator()) items.push(this.#relation())
    return items
  }

  #takesSeparator(): boolean {
    let taken = false
    for (;;) {
      const token = this.tokens[this.at]
      const isComma = token?.kind === 'sign' && (token.text === ',' || token.text === ';')
      if (!isComma && !this.isSeparatingWord()) return taken
      if (this.at + 1 === this.tokens.length) return taken
      this.at++
      taken = true
    }
  }

  #relation(): Expression {
    const sides = [this.#union()]
    const relations: Relation[] = []
    for (let relation = this.#relationHere(); relation !== undefined; relation = this.#relationHere()) {
      this.at++
      const isOrEqual = (relation === '<' || relation === '>') && this.isSign('=')
      if (isOrEqual) this.at++
      relations.push(isOrEqual ? (relation === '<' ? '<=' : '>=') : relation)
      sides.push(this.#union())
    }
    return relations.length === 0 ? sides[0]! : { kind: 'relation', relations, sides }
  }

  #relationHere(): Relation | undefined {
    const token = this.tokens[this.at]
    const name = token?.kind === 'sign' ? token.text : token?.kind === 'command' ? token.name : ''
    return Object.hasOwn(RELATIONS, name) ? RELATIONS[name] : undefined
  }

  #union(): Expression {
    let left = this.#sum()
    for (;;) {
      const name = ['cup', 'cap', 'setminus', 'to', 'perp', 'parallel'].find((one) => this.isCommand(one))
      if (name === undefined) return left
      this.at++
      const right = this.#sum()
      if (name !== 'cup') left = { kind: 'operation', name, left, right }
      else left = { kind: 'union', parts: left.kind === 'union' ? [...left.parts, right] : [left, right] }
    }
  }

  #sum(): Expression {
    if (++this.#depth > MAX_DEPTH) throw new Unreadable()
    const terms: Expression[] = []
    let sign = this.takesSign()
    terms.push(this.#signedTerm(sign ?? '+'))
    for (sign = this.takesSign(); sign !== undefined; sign = this.takesSign()) terms.push(this.#signedTerm(sign))
    this.#depth--
    return terms.length === 1 ? terms[0]! : { kind: 'sum', terms }
  }

  #signedTerm(sign: '+' | '-' | 'pm' | 'mp'): Expression {
    const inner = this.takesSign()
    if (inner !== undefined) {
      if (++this.#depth > MAX_DEPTH) throw new Unreadable()
      const value = this.#signedTerm(inner)
      this.#depth--
      return signed(sign, value)
    }
    return signed(sign, this.#term())
  }

  #term(): Expression {
    let value = this.#factor()
    for (;;) {
      if (this.#takesMultiplication()) value = product(value, this.#signedFactor())
      else if (this.#takesDivision()) value = { kind: 'quotient', dividend: value, divisor: this.#signedFactor() }
      else if (this.#startsFactor()) value = this.#juxtaposed(value)
      else return value
    }
  }

  #signedFactor(): Expression {
    const sign = this.takesSign()
    return sign === undefined ? this.#factor() : signed(sign, this.#factor())
  }

  #takesMultiplication(): boolean {
    const takes = this.isSign('*') || this.isCommand('cdot') || this.isCommand('times')
    if (takes) this.at++
    return takes
  }

  #takesDivision(): boolean {
    // 7:32 is a ratio; in \{x : x > 0\} the colon says "such that".
    const takes = this.isSign('/') || this.isCommand('div') || (!this.#isInSet && this.isSign(':'))
    if (takes) this.at++
    return takes
  }

  /** A factor without a sign before it. An integer before a fraction of integers makes a mixed number: 1 1/2 is 3/2. */
  #juxtaposed(value: Expression): Expression {
    const isFraction = this.isCommand('frac')
    const before = this.tokens[this.at - 1]
    const here = this.tokens[this.at]
    const isWhole = value.kind === 'number' && value.denominator === 1n && before?.kind === 'number'
    if (isWhole && isFraction) {
      const factor = this.#factor()
      const isProper =
        factor.kind === 'quotient' && factor.dividend.kind === 'number' && factor.divisor.kind === 'number'
      return isProper && !hasFractions(factor) ? { kind: 'sum', terms: [value, factor] } : product(value, factor)
    }
    if (here?.kind === 'number' && before?.kind === 'number') return this.#plainMixed(value)
    return product(value, this.#factor())
  }

  /** Two numbers side by side are read only as a mixed number: 1 1/2. */
  #plainMixed(value: Expression): Expression {
    const dividend = this.#factor()
    if (!this.#takesDivision()) throw new Unreadable()
    const divisor = this.#factor()
    if (value.kind !== 'number' || divisor.kind !== 'number') throw new Unreadable()
    return { kind: 'sum', terms: [value, { kind: 'quotient', dividend, divisor }] }
  }

  #startsFactor(): boolean {
    const token = this.tokens[this.at]
    if (token === undefined || this.isUnit() || this.#relationHere() !== undefined) return false
    if (token.kind === 'number' || token.kind === 'letter' || token.kind === 'word') return !this.isSeparatingWord()
    if (token.kind === 'text') return !this.isSeparatingWord()
    if (token.kind === 'sign')
      return token.text === '(' || token.text === '{' || (token.text === '|' && this.#openBars === 0)
    if (isFunctionName(token.name) || GREEK.has(token.name) || OPAQUE.has(token.name)) return true
    return ['frac', 'sqrt', 'pi', 'infty', 'binom', 'lfloor', 'lceil', 'angle', 'boxed'].includes(token.name)
  }

  #factor(): Expression {
    if (++this.#depth > MAX_DEPTH) throw new Unreadable()
    let value = this.#postfix(this.#base())
    if (this.isSign('^')) {
      this.at++
      value = this.#postfix({ kind: 'power', base: value, exponent: this.#exponent() })
    }
    this.#skipUnits()
    this.#depth--
    return value
  }

  #skipUnits(): void {
    while (this.at < this.tokens.length && this.isUnit()) {
      this.at++
      if (!this.isSign('^')) continue
      this.at++
      this.#argument()
    }
  }

  /** `a^b^c` is a^(b^c). */
  #exponent(): Expression {
    if (this.isSign('-') || this.isSign('+')) {
      const sign = this.takesSign()!
      return signed(sign, this.#argument())
    }
    const value = this.isSign('(') ? this.#base() : this.#argument()
    if (!this.isSign('^')) return value
    if (++this.#depth > MAX_DEPTH) throw new Unreadable()
    this.at++
    const exponent = this.#exponent()
    this.#depth--
    return { kind: 'power', base: value, exponent }
  }

  #postfix(value: Expression): Expression {
    let result = value
    while (this.isSign('!')) {
      this.at++
      if (++this.#depth > MAX_DEPTH) throw new Unreadable()
      result = { kind: 'call', name: 'factorial', args: [result] }
    }
    return result
  }

  #base(): Expression {
    const token = this.tokens[this.at++]
    if (token === undefined) throw new Unreadable()
    if (token.kind === 'number') return this.#number(token.text)
    if (token.kind === 'letter') return this.#symbol(token.text)
    if (token.kind === 'word') return this.#letters(token.text)
    if (token.kind === 'text') return this.#textValue(token.text)
    return token.kind === 'command' ? this.#command(token.name) : this.#bracketed(token.text)
  }

  /** Digits, a repeating part (`0.1\overline{6}`), a base (`101_2`). */
  #number(text: string): Expression {
    if (this.isSign('_')) {
      this.at++
      return { kind: 'symbol', name: `${text}_${this.rawArgument()}` }
    }
    const [whole = '', decimals = ''] = text.split('.')
    if (whole.length + decimals.length > MAX_EXACT_DIGITS) throw new Unreadable()
    if (text.includes('.') && this.isCommand('overline')) {
      this.at++
      return repeatingDecimal(whole, decimals, this.rawArgument())
    }
    return decimalNumber(whole, decimals)
  }

  #symbol(name: string): Expression {
    let full = name
    if (this.isSign('_')) {
      this.at++
      full += `_${this.rawArgument()}`
    }
    for (; this.isSign("'"); this.at++) full += "'"
    if (full === 'e') return { kind: 'constant', name: 'e' }
    return full === 'i' ? { kind: 'constant', name: 'i' } : { kind: 'symbol', name: full }
  }

  /** "xy" is x times y. A power belongs to the last letter. */
  #letters(text: string): Expression {
    const letters = [...text]
    const last = letters.pop()!
    let value = this.#symbol(last)
    if (this.isSign('^')) {
      this.at++
      value = { kind: 'power', base: value, exponent: this.#exponent() }
    }
    return { kind: 'product', factors: [...letters.map((letter) => letterNode(letter)), value] }
  }

  #textValue(text: string): Expression {
    const inner = text.trim()
    const letter = /^\(?([A-Za-z])\)?\.?$/.exec(inner)?.[1]
    if (letter !== undefined) return this.#symbol(letter)
    if (isFunctionName(inner)) return this.#function(ALIASES[inner] ?? (inner as FunctionName))
    if (/^-?\d+(?:\.\d+)?$/.test(inner)) {
      const value = this.#number(inner.replace('-', ''))
      return inner.startsWith('-') ? negated(value) : value
    }
    return wordsNode(inner)
  }

  #bracketed(open: string): Expression {
    if (open === '|') return this.#absolute()
    if (open === '{') return this.#closed(this.#sumOrList(), '}')
    if (open !== '(' && open !== '[') throw new Unreadable()
    const bars = this.#openBars
    this.#openBars = 0
    const items = this.#items()
    this.#openBars = bars
    const close = this.isSign(')') ? ')' : this.isSign(']') ? ']' : undefined
    if (close === undefined) throw new Unreadable()
    this.at++
    const isPair = (open === '(') === (close === ')')
    if (items.length === 1 && isPair) return items[0]!
    return { kind: 'tuple', open, close, items }
  }

  #sumOrList(): Expression {
    const items = this.#items()
    return items.length === 1 ? items[0]! : { kind: 'list', items }
  }

  #absolute(): Expression {
    this.#openBars++
    const value = this.#closed(this.#sum(), '|')
    this.#openBars--
    return { kind: 'call', name: 'abs', args: [value] }
  }

  #closed(value: Expression, close: string): Expression {
    if (!this.isSign(close)) throw new Unreadable()
    this.at++
    return value
  }

  #command(name: string): Expression {
    if (name === 'frac') return { kind: 'quotient', dividend: this.#argument(), divisor: this.#argument() }
    if (name === 'sqrt') return this.#root()
    if (name === 'binom' || name === 'dbinom' || name === 'tbinom') {
      return { kind: 'call', name: 'binomial', args: [this.#argument(), this.#argument()] }
    }
    if (name === 'pi') return { kind: 'constant', name: 'pi' }
    if (name === 'infty') return { kind: 'constant', name: 'infinity' }
    if (name === '{') return this.#set()
    if (name === 'lfloor' || name === 'lceil') return this.#rounded(name === 'lfloor' ? 'floor' : 'ceil')
    if (name === 'begin') return this.#matrix()
    if (name === 'boxed') return this.#argument()
    if (isFunctionName(name)) return this.#function(ALIASES[name] ?? (name as FunctionName))
    if (GREEK.has(name)) return this.#symbol(`\\${name}`)
    if (OPAQUE.has(name)) return { kind: 'symbol', name: `\\${name}{${this.rawArgument()}}` }
    if (name === 'emptyset' || name === 'varnothing') return { kind: 'set', items: [] }
    if (ATOMS.has(name)) return { kind: 'symbol', name: `\\${name}` }
    throw new Unreadable()
  }

  #root(): Expression {
    let index: Expression = integer(2n)
    if (this.isSign('[')) {
      this.at++
      index = this.#closed(this.#sum(), ']')
    }
    const base = this.isSign('(') ? this.#base() : this.#argument()
    return { kind: 'power', base, exponent: { kind: 'quotient', dividend: integer(1n), divisor: index } }
  }

  #set(): Expression {
    if (this.takesCommand('}')) return { kind: 'set', items: [] }
    const wasInSet = this.#isInSet
    this.#isInSet = true
    const items = this.#items()
    this.#isInSet = wasInSet
    if (!this.takesCommand('}')) throw new Unreadable()
    return { kind: 'set', items }
  }

  #rounded(name: 'floor' | 'ceil'): Expression {
    const value = this.#sum()
    if (!this.takesCommand(name === 'floor' ? 'rfloor' : 'rceil')) throw new Unreadable()
    return { kind: 'call', name, args: [value] }
  }

  /** `\sin^2 x`, `\log_2 8`, `\sin^{-1} x`, `\cos 2x`. */
  #function(name: FunctionName): Expression {
    let [base, power]: [Expression | undefined, Expression | undefined] = [undefined, undefined]
    for (;;) {
      if (base === undefined && name === 'log' && this.isSign('_')) {
        this.at++
        base = this.#argument()
      } else if (power === undefined && this.isSign('^')) {
        this.at++
        power = this.#exponent()
      } else break
    }
    const args = this.#functionArguments()
    const isInverse = power?.kind === 'number' && power.numerator === -1n && power.denominator === 1n
    const inverse = INVERSES[name]
    if (isInverse && inverse !== undefined) return { kind: 'call', name: inverse, args }
    const call: Expression = { kind: 'call', name, args: base === undefined ? args : [...args, base] }
    return power === undefined ? call : { kind: 'power', base: call, exponent: power }
  }

  #functionArguments(): Expression[] {
    if (this.isSign('(')) {
      const inner = this.#base()
      return inner.kind === 'tuple' ? inner.items : [inner]
    }
    let value = this.#factor()
    while (this.#startsFactor() && !this.isSign('(') && !this.#isFunction()) value = product(value, this.#factor())
    return [value]
  }

  #isFunction(): boolean {
    const token = this.tokens[this.at]
    return token?.kind === 'command' && isFunctionName(token.name)
  }

  /** What a command takes: a group, or one token of which a number gives its first digit alone (`\frac12`). */
  #argument(): Expression {
    if (++this.#depth > MAX_DEPTH) throw new Unreadable()
    const token = this.tokens[this.at]
    let value: Expression
    if (token?.kind === 'number' && token.text.length > 1) value = this.#firstDigit(token.text)
    else if (token?.kind === 'word') value = this.#firstLetter(token.text)
    else value = this.#base()
    this.#depth--
    return value
  }

  #firstDigit(text: string): Expression {
    const rest = text.slice(1)
    if (text.includes('.')) {
      this.at++
      return this.#number(text)
    }
    this.replaceHere({ kind: 'number', text: rest })
    return integer(BigInt(text[0]!))
  }

  #firstLetter(text: string): Expression {
    const rest = text.slice(1)
    this.replaceHere(rest.length > 1 ? { kind: 'word', text: rest } : { kind: 'letter', text: rest })
    return letterNode(text[0]!)
  }

  /** `\begin{pmatrix} a & b \\ c & d \end{pmatrix}`, and `cases` and `array` alike. */
  #matrix(): Expression {
    const name = this.rawArgument()
    if (!/^(?:[pbBvV]?matrix|smallmatrix|array)$/.test(name)) throw new Unreadable()
    if (name === 'array') this.rawArgument()
    const rows: Expression[][] = [[]]
    for (;;) {
      if (this.takesCommand('end')) break
      if (this.takesCommand('\\')) {
        if (!this.isCommand('end')) rows.push([])
        continue
      }
      if (this.isSign('&')) this.at++
      rows.at(-1)!.push(this.#relation())
    }
    if (this.rawArgument() !== name) throw new Unreadable()
    return { kind: 'matrix', rows }
  }
}

function isFunctionName(name: string): boolean {
  return FUNCTIONS.has(name) || Object.hasOwn(ALIASES, name)
}

function isTextToken({ kind }: Token): boolean {
  return kind === 'text'
}
