// The arguments of one instruction of a row (`kwargs`), read with their types. Null counts as absent, since columnar
// files fill gaps with it.

import { ReadingMemo } from './reading_memo.js'
import { labelFault } from './verifier.js'

/** Judges whether a response follows one instruction. Never throws for what the response says. */
export type InstructionCheck = (response: string, args: InstructionArguments) => boolean

export class InstructionArguments {
  /** What the readings of the response have in common. */
  readonly memo = new ReadingMemo()

  constructor(
    private readonly instruction: string,
    private readonly values: Readonly<Record<string, unknown>>,
  ) {}

  text(name: string): string {
    const value = this.values[name]
    if (typeof value === 'string') return value
    throw this.#fault(name, 'text')
  }

  /** Text with something in it. */
  words(name: string): string {
    const value = this.text(name)
    if (value.trim() !== '') return value
    throw this.#fault(name, 'text with a word in it')
  }

  /** One character. */
  character(name: string): string {
    const value = this.text(name)
    if ([...value].length === 1) return value
    throw this.#fault(name, 'one character')
  }

  integer(name: string): number {
    const value = this.values[name]
    if (Number.isSafeInteger(value)) return value as number
    throw this.#fault(name, 'an integer')
  }

  texts(name: string): string[] {
    const value = this.values[name]
    if (Array.isArray(value) && value.every((one) => typeof one === 'string')) return value as string[]
    throw this.#fault(name, 'a list of texts')
  }

  /** Whether `count` stands in the relation named by the argument `relation` to the number named `bound`. */
  holds(count: number, relation: string, bound: string): boolean {
    const value = this.values[relation]
    if (value === 'at least') return count >= this.integer(bound)
    if (value === 'less than') return count < this.integer(bound)
    throw this.#fault(relation, '"at least" or "less than"')
  }

  /** One of a few words. */
  oneOf<const T extends string>(name: string, known: readonly T[]): T {
    const value = known.find((word) => word === this.values[name])
    if (value !== undefined) return value
    throw this.#fault(name, `one of ${known.join(', ')}`)
  }

  #fault(name: string, wanted: string) {
    return labelFault(this.instruction, name, wanted, this.values[name] ?? undefined)
  }
}
