// Where a command writes. Colour and the live progress line depend on the stream and the environment, and are decided
// here once: NO_COLOR and a dumb terminal switch colour off, FORCE_COLOR on; a live line needs a terminal and no CI.
import { stripVTControlCharacters } from 'node:util'
import picocolors from 'picocolors'

export type Colors = ReturnType<typeof picocolors.createColors>

/** The part of a writable stream that output needs. */
export interface OutputStream {
  write(text: string): unknown
  isTTY?: boolean
  columns?: number
}

export class Terminal {
  readonly color: Colors
  readonly colored: boolean
  /** True when a line may be rewritten in place. */
  readonly interactive: boolean

  constructor(
    readonly stream: OutputStream,
    environment: NodeJS.ProcessEnv = process.env,
  ) {
    const dumb = environment.TERM === 'dumb'
    const isTerminal = stream.isTTY === true && !dumb
    const forced = environment.FORCE_COLOR !== undefined && !['', '0', 'false'].includes(environment.FORCE_COLOR)
    this.colored = !environment.NO_COLOR && (forced || isTerminal)
    this.color = picocolors.createColors(this.colored)
    this.interactive = isTerminal && !environment.CI
  }

  get columns(): number {
    return this.stream.columns ?? 100
  }

  line(text = ''): void {
    this.stream.write(`${text}\n`)
  }
}

/** Number of characters that `text` takes on the screen. */
export function visibleWidth(text: string): number {
  return [...stripVTControlCharacters(text)].length
}

/** `text` with control characters made visible: model output and file contents must not steer the terminal. */
export function printable(text: string): string {
  let result = ''
  for (const character of text) {
    const code = character.codePointAt(0)!
    if (character === '\n' || character === '\t') result += character
    else if (code < 0x20 || (code >= 0x7f && code < 0xa0)) result += `\\x${code.toString(16).padStart(2, '0')}`
    else if (isDirectionMark(code)) result += `\\u${code.toString(16)}`
    else result += character
  }
  return result
}

/** Characters that change the order in which others are shown. */
function isDirectionMark(code: number): boolean {
  return (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069)
}
