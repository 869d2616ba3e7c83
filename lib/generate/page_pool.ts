// Which pages of the key/value cache are free, and how many sequences use each of the others. No tensors here.
import { CaravanError } from '../base/errors.js'

export class PagePool {
  readonly #free: number[]
  readonly #users: Int32Array

  constructor(readonly count: number) {
    this.#free = Array.from({ length: count }, (_, i) => count - 1 - i)
    this.#users = new Int32Array(count)
  }

  get freeCount(): number {
    return this.#free.length
  }

  /** A page with one user. */
  take(): number {
    const page = this.#free.pop()
    if (page === undefined) throw new CaravanError('ERR_INTERNAL', `all ${this.count} pages of the cache are in use`)
    this.#users[page] = 1
    return page
  }

  /** One more user of `page`. */
  share(page: number): number {
    this.#users[page]!++
    return page
  }

  /** One user less; the last one frees it. */
  release(page: number): void {
    if (--this.#users[page]! === 0) this.#free.push(page)
  }
}
