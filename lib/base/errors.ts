// One error class for the whole engine. The list of codes is closed so that callers can switch on it.

export type ErrorCode =
  | 'ERR_SHAPE' //              a tensor has the wrong shape
  | 'ERR_DTYPE' //              a tensor has the wrong element type
  | 'ERR_DEVICE' //             a device does not exist or cannot do this
  | 'ERR_OOM' //                the memory budget cannot serve an allocation
  | 'ERR_KERNEL' //             a kernel failed while the queue was running it
  | 'ERR_DISPOSED' //           a tensor was used after it had been freed
  | 'ERR_NATIVE_LOAD' //        the native addon is missing, does not load, or disagrees with the op table
  | 'ERR_CONFIG' //             an option or a recipe setting is unknown or has an impossible value
  | 'ERR_USAGE' //              a command line is wrong
  | 'ERR_DATA' //               a row of a data file is not what was expected (details: file, line)
  | 'ERR_FORMAT' //             a file is damaged or not of the format that it claims (details: file, offset)
  | 'ERR_MODEL' //              a model folder is incomplete, inconsistent or of an unknown architecture
  | 'ERR_TOKENIZER' //          a tokenizer file is invalid or does not fit the model
  | 'ERR_TEMPLATE' //           a chat template is invalid or does not render
  | 'ERR_TEMPLATE_BUDGET' //    a chat template exceeded its time or size budget
  | 'ERR_PATH_ESCAPE' //        a file refers to a path outside its own folder
  | 'ERR_FILE' //               the operating system refused to read or write a file
  | 'ERR_CHECKPOINT_WRITE' //   a checkpoint could not be saved; the previous one is intact
  | 'ERR_CHECKPOINT_CORRUPT' // a checkpoint does not match its manifest
  | 'ERR_DIVERGED' //           too many steps in a row were not finite
  | 'ERR_ABORTED' //            the caller's AbortSignal fired
  | 'ERR_INTERNAL' //           a broken invariant: a bug in the engine

export interface ErrorOptions {
  /** Machine-readable facts: file, line, offset, tensor, step, wanted, limit ... */
  details?: Record<string, unknown>
  /** What the user can do about it. Printed after the message. */
  hint?: string
  cause?: unknown
}

/** On the errors of every copy of this module: the joined files of the package have one, and its workers another. */
const IS_CARAVAN_ERROR = Symbol.for('caravan.error')

/** Every failure leaves the engine as one of these: `message` says what and where, `hint` what to do. */
export class CaravanError extends Error {
  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === 'object' && value !== null && IS_CARAVAN_ERROR in value
  }

  override readonly name = 'CaravanError'
  readonly details: Record<string, unknown>
  readonly hint: string | undefined

  constructor(
    readonly code: ErrorCode,
    message: string,
    options: ErrorOptions = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.details = options.details ?? {}
    this.hint = options.hint
  }

  get [IS_CARAVAN_ERROR](): true {
    return true
  }
}

/** The entry of `known` nearest to `word` by edit distance, or undefined when none is close. */
export function nearestName(word: string, known: Iterable<string>): string | undefined {
  let best: string | undefined
  let bestDistance = Math.max(2, Math.floor(word.length / 3)) + 1
  for (const candidate of known) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase())
    if (distance < bestDistance) {
      best = candidate
      bestDistance = distance
    }
  }
  return best
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const substitution = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(next[j - 1]! + 1, row[j]! + 1, substitution))
    }
    row = next
  }
  return row[b.length]!
}

/** Throws ERR_ABORTED, with the signal's reason as cause, when `signal` has fired. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new CaravanError('ERR_ABORTED', 'the operation was aborted', { cause: signal.reason })
}
