// What the reference model, the policy before its first step, thinks of each answer: computed once and kept in a file
// whose key is everything that it depends on. A run that is resumed reads the file, or computes the same numbers from
// the initial weights again; never from trained ones.
import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { makeFolder } from '../base/make_folder.js'
import { writeFileAtomic } from '../data/atomic_file.js'
import { hashFile } from '../data/encode_cache.js'
import type { EncodedPairs } from '../data/pairs.js'
import { answerLogprobs } from '../methods/answer_logprobs.js'
import type { CausalLm } from '../models/index.js'
import type { StageContext } from './prepared_stage.js'

const MAGIC = 'CRVNREF1'
const HASH_BYTES = 32
/** Bytes before the numbers: the magic, the hash of the key, the hash of the numbers. */
const HEADER_BYTES = MAGIC.length + 2 * HASH_BYTES

export interface ReferenceOptions {
  /** The folder that the policy was loaded from, before any step. */
  folder: string
  /** Tokens that go through the model at once. */
  tokens: number
}

/** Summed log-probability of each answer (2i chosen, 2i+1 rejected) under `policy` as it is now. */
export async function referenceLogprobs(
  policy: CausalLm,
  pairs: EncodedPairs,
  { folder, tokens }: ReferenceOptions,
  context: StageContext,
): Promise<Float64Array> {
  const { stage, signal, report } = context
  const key = await referenceKey(policy, pairs, folder)
  const directory = join(context.directory, '.cache')
  const path = join(directory, `reference-${key.toString('hex').slice(0, 32)}.bin`)
  const stored = await readReference(path, key, 2 * pairs.count).catch((error: unknown) => {
    const message = `${path}: ${error instanceof Error ? error.message : error}; it is computed again`
    report({ type: 'warning', stage, message })
    return undefined
  })
  if (stored) return stored
  const onProgress = (done: number) =>
    report({ type: 'progress', stage, what: 'reference log-probabilities', done, total: pairs.count })
  const sums = await answerLogprobs(policy, pairs, { tokens, signal, onProgress })
  await store(directory, path, { key, sums }).catch((error: unknown) => {
    const reason = error instanceof CaravanError ? error.message : String(error)
    report({ type: 'warning', stage, message: `the reference log-probabilities could not be kept: ${reason}` })
  })
  return sums
}

/** Hash of weights, precision and tokens. Text, template and truncation are in the tokens. */
async function referenceKey(policy: CausalLm, { sides }: EncodedPairs, folder: string): Promise<Buffer> {
  const hash = createHash('sha256').update(`${MAGIC} ${policy.dtype} ${sides.count}\n`)
  for (const name of (await readdir(folder)).sort()) {
    if (/\.safetensors$|^config\.json$/.test(name)) hash.update(`${name} ${await hashFile(join(folder, name))}\n`)
  }
  for (const part of [sides.ids, sides.mask, sides.offsets]) hash.update(bytesOf(part))
  return hash.digest()
}

const bytesOf = (values: ArrayBufferView) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
const digestOf = (values: ArrayBufferView) => createHash('sha256').update(bytesOf(values)).digest()

/** The numbers of a file, or undefined when there is none. Throws for one that is damaged or belongs to other data. */
async function readReference(path: string, key: Buffer, count: number): Promise<Float64Array | undefined> {
  const content = await readFile(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
  if (!content) return undefined
  if (content.length !== HEADER_BYTES + 8 * count || content.toString('latin1', 0, MAGIC.length) !== MAGIC) {
    throw new Error(`must have ${HEADER_BYTES + 8 * count} bytes that begin with ${MAGIC}; it has ${content.length}`)
  }
  const sums = new Float64Array(count)
  bytesOf(sums).set(content.subarray(HEADER_BYTES))
  const [ofKey, ofNumbers] = [MAGIC.length, MAGIC.length + HASH_BYTES].map((at) =>
    content.subarray(at, at + HASH_BYTES),
  )
  if (!key.equals(ofKey!)) throw new Error('belongs to other weights or data')
  if (!digestOf(sums).equals(ofNumbers!)) throw new Error('its content does not match its checksum')
  return sums
}

async function store(
  directory: string,
  path: string,
  { key, sums }: { key: Buffer; sums: Float64Array },
): Promise<void> {
  await makeFolder(directory)
  await writeFileAtomic(path, Buffer.concat([Buffer.from(MAGIC, 'latin1'), key, digestOf(sums), bytesOf(sums)]))
}
