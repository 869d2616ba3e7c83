// Saving so that a kill at any moment loses nothing: a temporary folder, each file whole and fsynced, a manifest with
// sizes and SHA-256 last, then one rename. Resuming takes the newest folder whose manifest verifies. No pickle, no code.
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { fileError, syncDirectory, type WrittenFile, writeFileAtomic } from '../data/atomic_file.js'
import { openSafetensors, type SafetensorsDtype } from '../data/safetensors.js'
import { type TensorSource, writeSafetensors } from '../data/safetensors_writer.js'
import type { Tensor } from '../tensor/index.js'

const FORMAT = 1
const MANIFEST = 'MANIFEST.json'
const dtypeNames: Record<string, SafetensorsDtype> = { f32: 'F32', bf16: 'BF16', f64: 'F64', i32: 'I32', u8: 'U8' }

/** Everything that decides how a stage goes on. */
export interface CheckpointState {
  stage: string
  /** Steps done. */
  step: number
  /** Where the method's stream of batches stands. */
  batches: unknown
  optimizerUpdates: number
  skippedInARow: number
  /** The resolved settings of the stage. */
  settings: unknown
}

interface Manifest {
  format: number
  step: number
  files: { name: string; bytes: number; sha256: string }[]
}

export interface Checkpoint {
  directory: string
  state: CheckpointState
}

/** Named groups of tensors; each becomes one safetensors file. */
export type TensorGroups = Record<string, ReadonlyMap<string, Tensor>>

/** A tensor as something that can be written; the elements are read when their turn comes. */
export function tensorSource(name: string, tensor: Tensor): TensorSource {
  return {
    name,
    dtype: dtypeNames[tensor.dtype]!,
    shape: tensor.shape,
    async bytes() {
      const raw = await tensor.readRaw()
      return new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength)
    },
  }
}

/** Saves under `root`/step-N, keeps the newest `keep` (at least 2) and returns where. ERR_CHECKPOINT_WRITE leaves what
 *  was there before untouched and usable. */
export async function saveCheckpoint(
  root: string,
  { state, groups, keep }: { state: CheckpointState; groups: TensorGroups; keep: number },
): Promise<{ directory: string; bytes: number }> {
  const directory = join(root, `step-${state.step}`)
  const temporary = join(root, `.tmp-step-${state.step}-${process.pid}`)
  try {
    await mkdir(temporary, { recursive: true })
    const written: WrittenFile[] = []
    for (const [group, tensors] of Object.entries(groups)) {
      const sources = [...tensors].map(([name, tensor]) => tensorSource(name, tensor))
      written.push(await writeSafetensors(join(temporary, `${group}.safetensors`), sources))
    }
    written.push(await writeFileAtomic(join(temporary, 'state.json'), JSON.stringify(state, null, 1)))
    const files = written.map(({ path, byteLength, sha256 }) => ({
      name: path.slice(temporary.length + 1),
      bytes: byteLength,
      sha256,
    }))
    const manifest: Manifest = { format: FORMAT, step: state.step, files }
    await writeFileAtomic(join(temporary, MANIFEST), JSON.stringify(manifest, null, 1))
    await syncDirectory(temporary)
    await rm(directory, { recursive: true, force: true })
    await rename(temporary, directory)
    await syncDirectory(root)
    await prune(root, Math.max(2, keep))
    return { directory, bytes: files.reduce((sum, file) => sum + file.bytes, 0) }
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true }).catch(() => {})
    const reason = fileError('save', directory, cause)
    throw new CaravanError('ERR_CHECKPOINT_WRITE', `the checkpoint of step ${state.step} was not saved: ${reason.message}`, {
      details: { ...reason.details, step: state.step },
      hint: reason.hint ?? 'the checkpoint before it is intact',
      cause,
    })
  }
}

/** The newest checkpoint under `root` that verifies, with the reason for each newer one that was passed over. */
export async function findCheckpoint(
  root: string,
): Promise<{ checkpoint: Checkpoint | undefined; skipped: CaravanError[] }> {
  const skipped: CaravanError[] = []
  for (const step of await savedSteps(root)) {
    const directory = join(root, `step-${step}`)
    try {
      return { checkpoint: { directory, state: await verifyCheckpoint(directory) }, skipped }
    } catch (error) {
      if (!(error instanceof CaravanError)) throw error
      skipped.push(error)
    }
  }
  return { checkpoint: undefined, skipped }
}

/** Checks every file of a checkpoint against its manifest and returns its state. ERR_CHECKPOINT_CORRUPT names the file. */
export async function verifyCheckpoint(directory: string): Promise<CheckpointState> {
  const manifest = (await readJson(directory, MANIFEST)) as Manifest
  if (manifest.format !== FORMAT) {
    throw corrupt(directory, MANIFEST, `has format ${manifest.format}; this version reads format ${FORMAT}`)
  }
  if (!Array.isArray(manifest.files)) throw corrupt(directory, MANIFEST, 'lists no files')
  for (const { name, bytes, sha256 } of manifest.files) {
    const path = join(directory, name)
    const size = await stat(path).then(
      (status) => status.size,
      () => undefined,
    )
    if (size === undefined) throw corrupt(directory, name, 'is missing')
    if (size !== bytes) throw corrupt(directory, name, `has ${size} bytes, the manifest says ${bytes}`)
    if ((await sha256Of(path)) !== sha256) throw corrupt(directory, name, 'does not have the SHA-256 of its manifest')
  }
  return (await readJson(directory, 'state.json')) as CheckpointState
}

/** Loads the tensors of a verified checkpoint into existing ones of the same names, shapes and dtypes. */
export async function restoreTensors(directory: string, groups: TensorGroups): Promise<void> {
  for (const [group, tensors] of Object.entries(groups)) {
    const path = join(directory, `${group}.safetensors`)
    const file = await openSafetensors(path)
    for (const [name, tensor] of tensors) {
      const entry = file.tensors.get(name)
      const same = entry?.dtype === dtypeNames[tensor.dtype] && entry?.shape.join() === tensor.shape.join()
      if (!entry || !same) {
        const found = entry ? `${entry.dtype}[${entry.shape.join(",")}]` : 'nothing'
        throw corrupt(directory, `${group}.safetensors`, `holds ${found} for ${name}, ${tensor} is needed`)
      }
      tensor.device.loadFile(tensor.id, { path, byteOffset: entry.byteOffset, dtype: tensor.dtype })
    }
    const [first] = tensors.values()
    await first?.device.idle()
  }
}

/** Removes leftovers of saves that were killed. */
export async function removeTemporaries(root: string): Promise<void> {
  for (const name of await readdir(root).catch(() => [])) {
    if (name.startsWith('.tmp-step-')) await rm(join(root, name), { recursive: true, force: true })
  }
}

async function savedSteps(root: string): Promise<number[]> {
  const names = await readdir(root).catch(() => [])
  const steps = names.flatMap((name) => /^step-(\d+)$/.exec(name)?.[1] ?? []).map(Number)
  return steps.sort((a, b) => b - a)
}

async function prune(root: string, keep: number): Promise<void> {
  for (const step of (await savedSteps(root)).slice(keep)) {
    await rm(join(root, `step-${step}`), { recursive: true, force: true })
  }
}

async function readJson(directory: string, name: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(join(directory, name), 'utf8'))
  } catch (cause) {
    throw corrupt(directory, name, `cannot be read: ${(cause as Error).message}`)
  }
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer)
  return hash.digest('hex')
}

function corrupt(directory: string, file: string, fault: string): CaravanError {
  return new CaravanError('ERR_CHECKPOINT_CORRUPT', `checkpoint ${directory}: ${file} ${fault}`, {
    details: { directory, file },
    hint: 'an older checkpoint beside it is used instead, when there is one',
  })
}
