// Columns of text, measured by what is seen (colour codes have no width).
import { visibleWidth } from './terminal.js'

export interface TableOptions {
  /** One letter a column: l or r; columns without one are left aligned. */
  align?: string
  /** Shown before each line. */
  indent?: string
}

/** The rows as lines with aligned columns, two spaces apart; no spaces at the ends of lines. */
export function tableLines(rows: readonly (readonly string[])[], options: TableOptions = {}): string[] {
  const { align = '', indent = '' } = options
  const widths: number[] = []
  for (const row of rows) {
    for (const [i, cell] of row.entries()) widths[i] = Math.max(widths[i] ?? 0, visibleWidth(cell))
  }
  return rows.map((row) => {
    const cells = row.map((cell, i) => {
      const space = ' '.repeat(widths[i]! - visibleWidth(cell))
      return align[i] === 'r' ? space + cell : cell + space
    })
    return (indent + cells.join('  ')).trimEnd()
  })
}

/** `text` broken at spaces into lines of at most `width` characters; words that are longer are cut. */
export function wrapText(text: string, width: number): string[] {
  return text.split('\n').flatMap((paragraph) => wrapParagraph(paragraph, Math.max(8, width)))
}

function wrapParagraph(paragraph: string, width: number): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of paragraph.split(' ')) {
    let rest = word
    if (line !== '' && visibleWidth(line) + 1 + visibleWidth(rest) > width) {
      lines.push(line)
      line = ''
    }
    while (visibleWidth(rest) > width) {
      const characters = [...rest]
      lines.push(characters.slice(0, width).join(''))
      rest = characters.slice(width).join('')
    }
    line = line === '' ? rest : `${line} ${rest}`
  }
  lines.push(line)
  return lines
}
