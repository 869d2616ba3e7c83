// Finds all tensors of a model folder: one `model.safetensors`, or shards named by `model.safetensors.index.json`. The
// index comes from outside, so every name in it is held inside the folder before a file is opened.
import { readFile, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { fileError } from './atomic_file.js'
import { exists, pathInside } from './folder.js'
import { JsonScanner, quote } from './json_scanner.js'
import { openSafetensors, pickleRefused, type SafetensorsFile, type TensorEntry } from './safetensors.js'

export interface ShardTensor extends TensorEntry {
  /** The file that holds it. */
  path: string
}

export interface CheckpointShards {
  directory: string
  files: SafetensorsFile[]
  tensors: Map<string, ShardTensor>
  metadata: Map<string, string>
  /** Tensors that lie in a shard but that the index does not name; they are not in `tensors`. */
  unlisted: string[]
  /** What the index says where that is not the sum of the tensors; a wrong sum harms nothing. */
  wrongTotalBytes: number | undefined
}

export interface OpenShardsOptions {
  /** File name without ending. Default `model`; a LoRA adapter is `adapter_model`. */
  stem?: string
}

const MAX_INDEX_BYTES = 100_000_000

/**
 * Opens every safetensors file of a model folder and checks that the tensors are all there, once each. ERR_MODEL for an
 * incomplete folder, ERR_FORMAT for a damaged file or index, ERR_PATH_ESCAPE for a name or link that leaves the folder.
 */
export async function openCheckpointShards(
  directory: string,
  options: OpenShardsOptions = {},
): Promise<CheckpointShards> {
  const { stem = 'model' } = options
  const single = `${stem}.safetensors`
  if (await exists(join(directory, single))) {
    const file = await openSafetensors(await pathInside(directory, single, join(directory, single)))
    return gather(directory, [file])
  }
  const indexPath = join(directory, `${stem}.safetensors.index.json`)
  if (await exists(indexPath)) return await openIndexed(directory, indexPath)
  for (const name of ['pytorch_model.bin', 'pytorch_model.bin.index.json', 'adapter_model.bin']) {
    if (await exists(join(directory, name))) throw pickleRefused(join(directory, name))
  }
  throw new CaravanError('ERR_MODEL', `${directory}: no weights: neither ${single} nor ${single}.index.json is there`, {
    details: { file: directory },
    hint: 'give the folder of a model in Hugging Face format with safetensors weights',
  })
}

interface ShardIndex {
  /** Tensor name -> shard file name, with the offset in the index where it is said. */
  places: Map<string, { shard: string; offset: number }>
  totalBytes: number | undefined
  scanner: JsonScanner
}

async function openIndexed(directory: string, indexPath: string): Promise<CheckpointShards> {
  const index = await readIndex(directory, indexPath)
  const files = new Map<string, SafetensorsFile>()
  for (const [tensor, { shard, offset }] of index.places) {
    if (files.has(shard)) continue
    const path = await pathInside(directory, shard, indexPath)
    if (!(await exists(path))) {
      throw new CaravanError(
        'ERR_MODEL',
        `${indexPath}: byte ${offset}: the shard ${quote(shard)} is not in the folder`,
        {
          details: { file: indexPath, offset, shard, tensor },
          hint: 'the model is incomplete: copy or download the missing file',
        },
      )
    }
    files.set(shard, await openSafetensors(path))
  }
  for (const [tensor, { shard, offset }] of index.places) {
    if (files.get(shard)!.tensors.has(tensor)) continue
    const message = `tensor ${quote(tensor)} should be in ${quote(shard)}, which does not have it`
    throw index.scanner.fault(message, offset, { tensor, shard })
  }
  return gather(directory, [...files.values()], index)
}

async function readIndex(directory: string, indexPath: string): Promise<ShardIndex> {
  const path = await pathInside(directory, basename(indexPath), indexPath)
  const bytes = await readSmallFile(path)
  const scanner = new JsonScanner(indexPath, bytes)
  const index: ShardIndex = { places: new Map(), totalBytes: undefined, scanner }
  let found = false
  scanner.object((key) => {
    if (key === 'weight_map') {
      found = true
      scanner.object((tensor, offset) => index.places.set(tensor, { shard: scanner.string(), offset }))
    } else if (key === 'metadata') index.totalBytes = readTotalSize(scanner)
    else scanner.skipValue()
  })
  scanner.end()
  if (!found) throw scanner.fault('`weight_map` is missing', 0)
  if (index.places.size === 0) throw scanner.fault('`weight_map` names no tensor', 0)
  return index
}

/** `total_size` where it is a plain integer; older tools wrote floats, which are no reason to refuse a model. */
function readTotalSize(scanner: JsonScanner): number | undefined {
  let total: number | undefined
  scanner.object((key) => {
    const from = scanner.offset
    scanner.skipValue()
    if (key !== 'total_size') return
    const text = Buffer.from(scanner.bytes.subarray(from, scanner.offset)).toString('latin1')
    total = Number.isSafeInteger(Number(text)) ? Number(text) : undefined
  })
  return total
}

async function readSmallFile(path: string): Promise<Uint8Array> {
  try {
    const status = await stat(path)
    if (!status.isFile() || status.size > MAX_INDEX_BYTES) {
      throw new CaravanError('ERR_FORMAT', `${path}: byte 0: not a regular file of at most ${MAX_INDEX_BYTES} bytes`, {
        details: { file: path, offset: 0 },
      })
    }
    return await readFile(path)
  } catch (error) {
    throw fileError('read', path, error)
  }
}

function gather(directory: string, files: SafetensorsFile[], index?: ShardIndex): CheckpointShards {
  const tensors = new Map<string, ShardTensor>()
  const metadata = new Map<string, string>()
  const unlisted: string[] = []
  let totalBytes = 0
  for (const file of files) {
    for (const [key, value] of file.metadata) metadata.set(key, value)
    for (const [name, entry] of file.tensors) {
      const earlier = tensors.get(name)
      if (earlier !== undefined) throw doubleTensor(file, name, earlier.path)
      tensors.set(name, { ...entry, path: file.path })
      totalBytes += entry.byteLength
    }
  }
  if (index !== undefined) {
    for (const name of tensors.keys()) if (!index.places.has(name)) unlisted.push(name)
    for (const name of unlisted) tensors.delete(name)
  }
  const wrongTotalBytes = index?.totalBytes === totalBytes ? undefined : index?.totalBytes
  return { directory, files, tensors, metadata, unlisted, wrongTotalBytes }
}

function doubleTensor(file: SafetensorsFile, tensor: string, other: string): CaravanError {
  const offset = file.tensors.get(tensor)!.byteOffset
  const message = `${file.path}: byte ${offset}: tensor ${quote(tensor)} is also in ${basename(other)}`
  return new CaravanError('ERR_FORMAT', message, {
    details: { file: file.path, offset, tensor, other },
    hint: 'two saves were mixed in this folder: remove the shards that do not belong',
  })
}
