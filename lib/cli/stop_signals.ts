// Ctrl-C and SIGTERM. The first one asks for an orderly stop (a checkpoint is saved, a half-written file removed); the
// second one ends the process at once: whoever presses twice does not want to wait.
import { constants } from 'node:os'

export type StopSignal = 'SIGINT' | 'SIGTERM'

export class StopSignals {
  readonly #controller = new AbortController()
  #exitCode: number | undefined

  constructor(private readonly announce: (signal: StopSignal) => void) {
    process.on('SIGINT', this.#onSignal)
    process.on('SIGTERM', this.#onSignal)
  }

  /** Fires at the first signal. */
  get stop(): AbortSignal {
    return this.#controller.signal
  }

  /** 128 + number of the signal that came, or undefined. */
  get exitCode(): number | undefined {
    return this.#exitCode
  }

  /** Gives the signals their usual meaning again. */
  release(): void {
    process.off('SIGINT', this.#onSignal)
    process.off('SIGTERM', this.#onSignal)
  }

  readonly #onSignal = (signal: StopSignal): void => {
    const exitCode = 128 + constants.signals[signal]
    if (this.#exitCode !== undefined) process.exit(exitCode)
    this.#exitCode = exitCode
    this.announce(signal)
    this.#controller.abort(new Error(signal))
  }
}
