// Writes safetensors byte for byte as the reference writer does (same order, same padding), one tensor in memory at a
// time, each file atomically. Shards and their index are named as Hugging Face names them.
import { readdir, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { type AtomicWriteOptions, fileError, type WrittenFile, writeFileAtomic } from './atomic_file.js'
import { MAX_HEADER_BYTES, SAFETENSORS_DTYPE_BITS, type SafetensorsDtype, tensorBytes } from './safetensors.js'

/**
 * A tensor to write; `bytes` is called once, when its turn comes, and must give exactly the bytes of dtype and shape.
 */
export interface TensorSource {
  name: string
  dtype: SafetensorsDtype
  shape: readonly number[]
  bytes: () => Promise<Uint8Array> | Uint8Array
}

export interface SafetensorsWriteOptions extends AtomicWriteOptions {
  /** Default `{ format: 'pt' }`, which Hugging Face's loader insists on. */
  metadata?: Record<string, string>
}

export interface ShardedWriteOptions extends SafetensorsWriteOptions {
  /** Upper limit of a shard's data; a larger single tensor gets a shard of its own. Default 5 GB, as Hugging Face. */
  maxShardBytes?: number
  /** File name without ending. Default `model`. */
  stem?: string
}

const DTYPE_RANK = new Map(Object.keys(SAFETENSORS_DTYPE_BITS).map((name, rank) => [name, rank]))

/**
 * Writes `tensors` to `path` atomically; a failure leaves the old file. ERR_SHAPE when a tensor's bytes do not fit its
 * dtype and shape, ERR_CONFIG for a duplicate name, ERR_FILE when the system refuses.
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorSource>,
  options: SafetensorsWriteOptions = {},
): Promise<WrittenFile> {
  const ordered = [...tensors].map(sized).sort(byReferenceOrder)
  checkNames(path, ordered)
  const header = encodeHeader(path, ordered, options.metadata ?? { format: 'pt' })
  return await writeFileAtomic(
    path,
    async (append) => {
      await append(header)
      for (const tensor of ordered) await append(await checkedBytes(path, tensor))
    },
    options,
  )
}

/**
 * Writes `tensors` into `directory` as one `model.safetensors`, or as shards `model-00001-of-00003.safetensors` with
 * `model.safetensors.index.json` when they exceed `maxShardBytes`, and removes the shards of an earlier save. Each
 * file is atomic, the folder as a whole is not: write into a new folder and rename that where a crash must not mix
 * two saves.
 */
export async function writeSafetensorsShards(
  directory: string,
  tensors: Iterable<TensorSource>,
  options: ShardedWriteOptions = {},
): Promise<WrittenFile[]> {
  const { maxShardBytes = 5_000_000_000, stem = 'model' } = options
  if (!(maxShardBytes > 0)) {
    throw new CaravanError('ERR_CONFIG', `maxShardBytes must be positive; got ${maxShardBytes}`)
  }
  const all = [...tensors].map(sized)
  checkNames(directory, all)
  const shards = splitIntoShards(all, maxShardBytes)
  const nameOf = (shard: number) =>
    shards.length === 1 ? `${stem}.safetensors` : `${stem}-${serial(shard + 1)}-of-${serial(shards.length)}.safetensors`
  const written: WrittenFile[] = []
  for (const [i, shard] of shards.entries()) {
    written.push(await writeSafetensors(join(directory, nameOf(i)), shard, options))
  }
  if (shards.length > 1) {
    const path = join(directory, `${stem}.safetensors.index.json`)
    written.push(await writeFileAtomic(path, encodeIndex(shards, nameOf), options))
  }
  await removeStale(directory, stem, new Set(written.map((file) => file.path)))
  return written
}

interface SizedTensor extends TensorSource {
  byteLength: number
}

function sized(tensor: TensorSource): SizedTensor {
  const byteLength = tensor.shape.every((size) => Number.isSafeInteger(size) && size >= 0)
    ? tensorBytes(tensor.dtype, tensor.shape)
    : undefined
  if (byteLength !== undefined) return { ...tensor, byteLength }
  throw new CaravanError(
    'ERR_SHAPE',
    `tensor "${tensor.name}": ${tensor.dtype}[${tensor.shape.join(',')}] is not a whole number of bytes below 2^50`,
    { details: { tensor: tensor.name } },
  )
}

/** The widest elements first, so that every tensor is aligned; then by name in byte order. */
function byReferenceOrder(a: TensorSource, b: TensorSource): number {
  return DTYPE_RANK.get(b.dtype)! - DTYPE_RANK.get(a.dtype)! || compareBytes(a.name, b.name)
}

function compareBytes(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b))
}

function checkNames(path: string, tensors: TensorSource[]): void {
  const seen = new Set<string>()
  for (const { name } of tensors) {
    if (seen.has(name) || name === '__metadata__') {
      const why = seen.has(name) ? 'is given twice' : 'is reserved by the format'
      throw new CaravanError('ERR_CONFIG', `${path}: the tensor name "${name}" ${why}`, { details: { tensor: name } })
    }
    seen.add(name)
  }
}

function encodeHeader(path: string, tensors: SizedTensor[], metadata: Record<string, string>): Uint8Array {
  const parts: string[] = []
  if (Object.keys(metadata).length > 0) parts.push(`"__metadata__":${JSON.stringify(metadata)}`)
  let offset = 0
  for (const { name, dtype, shape, byteLength } of tensors) {
    const span = [offset, offset + byteLength]
    parts.push(`${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: span })}`)
    offset += byteLength
  }
  const json = Buffer.from(`{${parts.join(',')}}`)
  const padded = Math.ceil(json.byteLength / 8) * 8
  if (padded > MAX_HEADER_BYTES) {
    throw new CaravanError(
      'ERR_CONFIG',
      `${path}: the header would take ${padded} of at most ${MAX_HEADER_BYTES} bytes`,
      {
        hint: 'write the tensors in several shards',
      },
    )
  }
  const header = Buffer.alloc(8 + padded, ' ')
  header.writeBigUInt64LE(BigInt(padded), 0)
  json.copy(header, 8)
  return header
}

async function checkedBytes(path: string, tensor: SizedTensor): Promise<Uint8Array> {
  const bytes = await tensor.bytes()
  if (bytes.byteLength === tensor.byteLength) return bytes
  const type = `${tensor.dtype}[${tensor.shape.join(',')}]`
  const message = `${path}: tensor "${tensor.name}": ${type} takes ${tensor.byteLength} bytes; got ${bytes.byteLength}`
  throw new CaravanError('ERR_SHAPE', message, { details: { file: path, tensor: tensor.name } })
}

/** Greedy in the given order, as Hugging Face: a shard is closed when the next tensor would take it over the limit. */
function splitIntoShards(tensors: SizedTensor[], maxShardBytes: number): SizedTensor[][] {
  const shards: SizedTensor[][] = [[]]
  let bytes = 0
  for (const tensor of tensors) {
    if (bytes > 0 && bytes + tensor.byteLength > maxShardBytes) {
      shards.push([])
      bytes = 0
    }
    shards.at(-1)!.push(tensor)
    bytes += tensor.byteLength
  }
  return shards
}

function encodeIndex(shards: SizedTensor[][], nameOf: (shard: number) => string): string {
  let totalSize = 0
  let totalParameters = 0
  const places: [string, string][] = []
  for (const [i, shard] of shards.entries()) {
    for (const tensor of shard) {
      totalSize += tensor.byteLength
      totalParameters += tensor.shape.reduce((product, size) => product * size, 1)
      places.push([tensor.name, nameOf(i)])
    }
  }
  places.sort((a, b) => compareBytes(a[0], b[0]))
  const metadata = { total_parameters: totalParameters, total_size: totalSize }
  // Written by hand: an object would move integer-like tensor names to the front and drop "__proto__".
  const lines = places.map(([name, file]) => `    ${JSON.stringify(name)}: ${JSON.stringify(file)}`)
  const head = JSON.stringify({ metadata }, null, 2).slice(0, -2)
  return `${head},\n  "weight_map": {\n${lines.join(',\n')}\n  }\n}\n`
}

async function removeStale(directory: string, stem: string, keep: Set<string>): Promise<void> {
  const shard = /^-\d{5}-of-\d{5}\.safetensors$/
  const isOurs = (name: string) => {
    const rest = name.startsWith(stem) ? name.slice(stem.length) : ''
    return rest === '.safetensors' || rest === '.safetensors.index.json' || shard.test(rest)
  }
  for (const name of await readdir(directory)) {
    const path = join(directory, name)
    if (!isOurs(name) || keep.has(path)) continue
    await unlink(path).catch((error) => {
      throw fileError('remove', path, error)
    })
  }
}

function serial(value: number): string {
  return String(value).padStart(5, '0')
}
