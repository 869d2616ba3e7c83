// The text of a growing sequence, token by token. A character may be spread over several tokens and a tokenizer may
// treat the first token of a text in its own way, so a window of tokens is decoded and compared with what it said
// before; text is held back while its last character is incomplete or while it may be the beginning of a stop text.

/** Turns sequences of token ids into texts, as Tokenizer.decodeBatch does. */
export type DecodeTokens = (sequences: readonly Int32Array[]) => readonly string[] | Promise<readonly string[]>

/** Tokens after which the window is begun anew, and tokens that it then keeps for context. */
const LONGEST_WINDOW = 24
const CONTEXT_TOKENS = 4

/** What a decoder writes for bytes that are no character (yet). */
const INCOMPLETE = '\ufffd'

export class TextStream {
  /** All text so far, a stop text and what follows it left out. */
  text = ''
  /** The stop text that ended it. */
  stopText: string | undefined
  #window: number[] = []
  /** What the tokens of the window up to the last accepted character decode to. */
  #known = ''
  #latest = ''
  #given = 0
  readonly #heldBack: number

  constructor(private readonly stopTexts: readonly string[]) {
    this.#heldBack = stopTexts.reduce((most, text) => Math.max(most, text.length - 1), 0)
  }

  push(token: number): void {
    this.#window.push(token)
  }

  /** The tokens whose text `take` wants. */
  get window(): Int32Array {
    return Int32Array.from(this.#window)
  }

  /** Takes the text of the window. `last`: no further token will come. Returns the text that has become final. */
  take(decoded: string, last: boolean): string {
    this.#latest = decoded
    if (last || !decoded.endsWith(INCOMPLETE)) {
      const before = this.text.length
      this.text += decoded.slice(this.#known.length)
      this.#known = decoded
      this.#stop(before)
    }
    const end = last || this.stopText !== undefined ? this.text.length : this.text.length - this.#heldBack
    const given = this.text.slice(this.#given, Math.max(this.#given, end))
    this.#given += given.length
    return given
  }

  /** Shortens a long window; the next text that it decodes to goes to `rebase`. */
  shorten(): boolean {
    const clean = this.#latest === this.#known
    if (!clean || this.#window.length <= LONGEST_WINDOW) return false
    this.#window = this.#window.slice(-CONTEXT_TOKENS)
    return true
  }

  rebase(decoded: string): void {
    this.#known = decoded
    this.#latest = decoded
  }

  #stop(before: number): void {
    let at = -1
    for (const stop of this.stopTexts) {
      const found = this.text.indexOf(stop, Math.max(0, before - stop.length + 1))
      if (found < 0 || (at >= 0 && found >= at)) continue
      at = found
      this.stopText = stop
    }
    if (at >= 0) this.text = this.text.slice(0, at)
  }
}
