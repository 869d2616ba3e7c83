// Memory that a process which judges shares with the thread that watches it: the verdicts that are not yet written, and
// whether one is being made. Whoever changes `state` first decides a race: either the verdict counts, or the sentence.
import { writeSync } from 'node:fs'
import { ANSWER_FD, SIGNS } from './verifier_process.js'

const STATE = 0
const COUNT = 1
const BYTES = 2
const HEADER_BYTES = 64
const CAPACITY = 2 ** 18
const START = Buffer.from(`${SIGNS.verdicts}[`)
const END = Buffer.from(']\n')

const idle = 0
const judging = 1
const condemned = 2

export class VerifierJournal {
  readonly #header: Int32Array
  readonly #text: Buffer

  constructor(readonly memory = new SharedArrayBuffer(HEADER_BYTES + CAPACITY)) {
    this.#header = new Int32Array(memory, 0, HEADER_BYTES / 4)
    this.#text = Buffer.from(memory, HEADER_BYTES)
  }

  /** How many verdicts there have been while one is being made, else undefined. */
  get current(): number | undefined {
    return Atomics.load(this.#header, STATE) === judging ? Atomics.load(this.#header, COUNT) : undefined
  }

  /** The next verdict is being made from now on. */
  begin(): void {
    Atomics.store(this.#header, STATE, judging)
  }

  /** Here it is. Does not return where the sentence came first. */
  end(json: string): void {
    const header = this.#header
    if (Atomics.compareExchange(header, STATE, judging, idle) !== judging) Atomics.wait(header, STATE, condemned)
    Atomics.add(header, COUNT, 1)
    const most = 3 * json.length + START.length + END.length
    if (header[BYTES]! + most > CAPACITY) this.flush()
    if (most > CAPACITY) {
      writeAll(Buffer.from(`${SIGNS.verdicts}[${json}]\n`))
      return
    }
    const at = header[BYTES]!
    if (at === 0) START.copy(this.#text)
    else this.#text.write(',', at)
    const from = at === 0 ? START.length : at + 1
    header[BYTES] = from + this.#text.write(json, from)
  }

  /** Ends the verdict that is being made, if it is still number `count`: it will not count. */
  condemn(count: number): boolean {
    if (Atomics.load(this.#header, COUNT) !== count) return false
    return Atomics.compareExchange(this.#header, STATE, judging, condemned) === judging
  }

  /** Writes the verdicts to the parent. */
  flush(): void {
    const bytes = this.#header[BYTES]!
    if (bytes === 0) return
    END.copy(this.#text, bytes)
    writeAll(this.#text.subarray(0, bytes + END.length))
    this.#header[BYTES] = 0
  }
}

/** Writes a line to the parent, now. */
export function answer(sign: string, json = ''): void {
  writeAll(Buffer.from(`${sign}${json}\n`))
}

function writeAll(bytes: Buffer): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(ANSWER_FD, bytes, done)
}
