// What is known of pieces of text while one response is judged: its eight readings differ in a line or two and in
// asterisks, so that most pieces come eight times. For one verdict only, as each piece keeps the text it is from.

import type { PunktText } from './punkt_sentences.js'

export class ReadingMemo {
  /** Texts of which the sentences are known: other readings are parts of them. */
  readonly punktTexts: PunktText[] = []
  /** The language of the beginning of a text. */
  readonly languages = new Map<string, string | undefined>()
}
