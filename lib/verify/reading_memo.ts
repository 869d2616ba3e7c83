// What is known of pieces of text while one response is judged: its eight readings differ in a line or two and in
// asterisks, so that most pieces come eight times. For one verdict only, as each piece keeps the text it is from.

export class ReadingMemo {
  /** Whether a stop, with the word before it and the one after it, ends a sentence. */
  readonly breaks = new Map<string, boolean>()
  /** The language of the beginning of a text. */
  readonly languages = new Map<string, string | undefined>()
}
