// What is going on right now. On a terminal one line that is rewritten; elsewhere (a pipe, a log, CI) lines of their
// own: the first, the last, each tenth of the way, and one about every 2 seconds at first, less often in a long run.
import { createLogUpdate } from 'log-update'
import { type Terminal, visibleWidth } from './terminal.js'

export interface Progress {
  /** What this is the progress of; a new id starts anew. */
  id: string
  done: number
  total?: number
  /** Most important first; the last ones are left out where the line would be too long. */
  parts: readonly string[]
}

const REDRAW_MS = 80
const FIRST_LINES_MS = 2000
const SLOWEST_LINES_MS = 60_000
const BAR_CELLS = 16

export class ProgressLine {
  readonly #live: ReturnType<typeof createLogUpdate> | undefined
  #id = ''
  #startedMs = 0
  #shownMs = 0
  #tenth = -1

  constructor(
    private readonly terminal: Terminal,
    private readonly nowMs: () => number = () => performance.now(),
  ) {
    // The cursor stays visible: a second Ctrl-C ends the process at once, and nothing would bring it back.
    if (terminal.interactive) this.#live = createLogUpdate(process.stdout, { showCursor: true })
  }

  show(progress: Progress): void {
    const now = this.nowMs()
    const isNew = progress.id !== this.#id
    if (isNew) {
      this.#id = progress.id
      this.#startedMs = now
      this.#tenth = -1
    }
    const isLast = progress.done === progress.total
    if (this.#live) {
      if (isNew || isLast || now - this.#shownMs >= REDRAW_MS) {
        this.#live(this.#liveText(progress))
        this.#shownMs = now
      }
      return
    }
    const tenth = progress.total ? Math.floor((10 * progress.done) / progress.total) : this.#tenth
    const interval = Math.min(SLOWEST_LINES_MS, Math.max(FIRST_LINES_MS, (now - this.#startedMs) / 30))
    if (isNew || isLast || tenth > this.#tenth || now - this.#shownMs >= interval) {
      this.terminal.line(progress.parts.join('  '))
      this.#shownMs = now
      this.#tenth = tenth
    }
  }

  /** Removes the live line; the next show() draws it again. */
  clear(): void {
    this.#live?.clear()
  }

  #liveText({ done, total, parts }: Progress): string {
    const { cyan, dim, bold } = this.terminal.color
    const bar = total ? `${cyan(barText(done / total))} ` : ''
    const width = this.terminal.columns - 1
    let text = bar + bold(parts[0] ?? '')
    for (const part of parts.slice(1)) {
      const longer = `${text}${dim(' · ')}${part}`
      if (visibleWidth(longer) > width) break
      text = longer
    }
    return text
  }
}

function barText(share: number): string {
  const filled = Math.max(0, Math.min(BAR_CELLS, Math.round(share * BAR_CELLS)))
  return '━'.repeat(filled) + '─'.repeat(BAR_CELLS - filled)
}
