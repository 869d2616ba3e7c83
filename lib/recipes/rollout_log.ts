// The rollouts of a stage, one file each, one line a group: written and made durable as groups finish, so that a kill
// loses none. A line ends in the CRC-32 of what is before it; one that a kill cut short does not count, and its group
// is generated again.
import { createHash } from 'node:crypto'
import { open, readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { makeFolder } from '../base/make_folder.js'
import { fileError, syncDirectory } from '../data/atomic_file.js'
import type { Answer, LoggedGroup, RolloutPrompt, RolloutStore, StoredRollout } from '../methods/rollout.js'

export interface RolloutLogOptions {
  /** Rollouts whose files are kept; 0 = all. Resuming needs those since the oldest checkpoint. */
  keep: number
}

/** What a line says about a prompt beside its answers. */
export interface LoggedPrompt extends RolloutPrompt {
  text?: string
}

interface GroupLine {
  rollout: number
  group: number
  /** Hash of the prompt's tokens: a group of another prompt is none. */
  prompt_sha256: string
  prompt?: string
  answers: AnswerLine[]
}

interface AnswerLine {
  tokens: number[]
  logprobs: number[]
  finish_reason: 'stop' | 'length'
  score: number
  reward: number
  reason: string
  text: string
}

interface NumbersLine {
  rollout: number
  /** f32 numbers, base64, by name. */
  numbers: Record<string, string>
}

interface Waiting {
  line: string
  resolve: () => void
  reject: (error: unknown) => void
}

export class RolloutLog<P extends LoggedPrompt = LoggedPrompt> implements RolloutStore<P> {
  /** Lines that are not on the disk yet, by file. */
  readonly #waiting = new Map<string, Waiting[]>()
  readonly #known = new Set<string>()

  constructor(
    private readonly directory: string,
    private readonly options: RolloutLogOptions = { keep: 0 },
  ) {}

  async read(rollout: number, prompts: readonly P[]): Promise<StoredRollout> {
    await this.#prune(rollout)
    const stored: StoredRollout = { groups: new Map(), numbers: undefined }
    const hashes = prompts.map(hashOf)
    for (const line of await this.#lines(this.#pathOf(rollout))) {
      if ('numbers' in line) stored.numbers = mapValues(line.numbers, decoded)
      else if (line.prompt_sha256 === hashes[line.group]) stored.groups.set(line.group, line.answers.map(answerOf))
    }
    return stored
  }

  async append(rollout: number, { index, prompt, answers, texts, reasons }: LoggedGroup<P>): Promise<void> {
    const line: GroupLine = {
      rollout,
      group: index,
      prompt_sha256: hashOf(prompt),
      ...(prompt.text === undefined ? {} : { prompt: prompt.text }),
      answers: answers.map(({ tokens, logprobs, finishReason, score, reward }, i) => ({
        text: texts[i]!,
        score,
        reward,
        reason: reasons[i]!,
        finish_reason: finishReason,
        tokens: Array.from(tokens),
        logprobs: Array.from(logprobs),
      })),
    }
    await this.#write(rollout, line)
  }

  async appendNumbers(rollout: number, numbers: Record<string, Float32Array>): Promise<void> {
    await this.#write(rollout, { rollout, numbers: mapValues(numbers, encoded) } satisfies NumbersLine)
  }

  #pathOf(rollout: number): string {
    return join(this.directory, `rollout-${String(rollout + 1).padStart(6, '0')}.jsonl`)
  }

  /** Lines that come while the disk is busy are written together. */
  #write(rollout: number, content: object): Promise<void> {
    const path = this.#pathOf(rollout)
    return new Promise((resolve, reject) => {
      const waiting = this.#waiting.get(path)
      const one = { line: checked(content), resolve, reject }
      if (waiting) waiting.push(one)
      else {
        this.#waiting.set(path, [one])
        void this.#drain(path)
      }
    })
  }

  async #drain(path: string): Promise<void> {
    for (;;) {
      // A turn for lines that finish in the same one.
      await new Promise((resolve) => setImmediate(resolve))
      const batch = this.#waiting.get(path)!.splice(0)
      if (batch.length === 0) break
      try {
        await this.#appendDurably(path, batch.map(({ line }) => line).join(''))
        for (const { resolve } of batch) resolve()
      } catch (cause) {
        const error = fileError('append', path, cause)
        for (const { reject } of batch) reject(error)
      }
    }
    this.#waiting.delete(path)
  }

  async #appendDurably(path: string, text: string): Promise<void> {
    const isNew = !this.#known.has(path)
    if (isNew) await makeFolder(this.directory)
    const handle = await open(path, 'a')
    try {
      // A kill may have left half a line, which the line break ends.
      const begun = isNew && (await handle.stat()).size > 0
      await handle.appendFile(begun ? `\n${text}` : text)
      await handle.datasync()
    } finally {
      await handle.close()
    }
    if (isNew) await syncDirectory(this.directory)
    this.#known.add(path)
  }

  async #lines(path: string): Promise<(GroupLine | NumbersLine)[]> {
    const text = await readFile(path, 'utf8').catch((cause) => {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return ''
      throw fileError('read', path, cause)
    })
    return text.split('\n').flatMap((line) => verified(line) ?? [])
  }

  async #prune(rollout: number): Promise<void> {
    const { keep } = this.options
    if (keep === 0) return
    const names = await readdir(this.directory).catch(() => [])
    for (const name of names) {
      const number = /^rollout-(\d+)\.jsonl$/.exec(name)?.[1]
      if (number === undefined || Number(number) - 1 > rollout - keep) continue
      const path = join(this.directory, name)
      await rm(path, { force: true }).catch((cause) => {
        throw fileError('remove', path, cause)
      })
    }
  }
}

const CHECKSUM = ',"crc32":"'

/** The object as a line of JSON whose last member is the CRC-32 of the text before that member. */
function checked(content: object): string {
  const text = JSON.stringify(content).slice(0, -1)
  return `${text}${CHECKSUM}${crc32(text).toString(16).padStart(8, '0')}"}\n`
}

function verified(line: string): (GroupLine | NumbersLine) | undefined {
  const at = line.lastIndexOf(CHECKSUM)
  if (at < 0 || line.length !== at + CHECKSUM.length + 10) return undefined
  const sum = Number.parseInt(line.slice(at + CHECKSUM.length, -2), 16)
  return crc32(line.slice(0, at)) === sum ? JSON.parse(line) : undefined
}

function answerOf({ tokens, logprobs, finish_reason, score, reward }: AnswerLine): Answer {
  return {
    tokens: Int32Array.from(tokens),
    logprobs: Float32Array.from(logprobs),
    finishReason: finish_reason,
    score,
    reward,
  }
}

function hashOf({ ids }: RolloutPrompt): string {
  return createHash('sha256')
    .update(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength))
    .digest('hex')
}

const encoded = (values: Float32Array) =>
  Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString('base64')

function decoded(text: string): Float32Array {
  const bytes = Uint8Array.from(Buffer.from(text, 'base64'))
  return new Float32Array(bytes.buffer)
}

function mapValues<A, B>(values: Record<string, A>, change: (value: A) => B): Record<string, B> {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, change(value)]))
}
