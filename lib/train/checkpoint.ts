// Saving so that a kill at any moment loses nothing: a temporary folder, each file whole and fsynced, a manifest with
// sizes and SHA-256 last, then one rename. Resuming takes the newest folder whose manifest verifies. No pickle, no
// code.
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import * as nodeFileSystem from 'node:fs/promises'
import { basename, join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { fileError, syncDirectory, type WrittenFile, writeFileAtomic } from '../data/atomic_file.js'
import { openSafetensors, type SafetensorsDtype } from '../data/safetensors.js'
import { type TensorSource, writeSafetensors } from '../data/safetensors_writer.js'
import type { Tensor } from '../tensor/index.js'

const FORMAT = 2
const MANIFEST = 'MANIFEST.json'
const STATE = 'state.json'
const dtypeNames: Record<string, SafetensorsDtype> = { f32: 'F32', bf16: 'BF16', f64: 'F64', i32: 'I32', u8: 'U8' }

/** Everything that decides how a stage goes on. */
export interface CheckpointState {
  stage: string
  /** Steps done. */
  step: number
  /** Where the method's stream of batches stands. */
  batches: unknown
  /** State of the optimizer beside its tensors. */
  optimizer: unknown
  skippedInARow: number
  /** The resolved settings of the stage. */
  settings: unknown
}

interface ManifestFile {
  name: string
  bytes: number
  sha256: string
}

interface Manifest {
  format: number
  step: number
  files: ManifestFile[]
}

/** The part of node:fs/promises that a save needs; tests put a failing one in its place. */
export type CheckpointFileSystem = Pick<
  typeof nodeFileSystem,
  'open' | 'rename' | 'unlink' | 'mkdir' | 'rm' | 'readdir'
>

export interface SaveOptions {
  state: CheckpointState
  groups: TensorGroups
  /** Checkpoints to keep, this one included; at least 2. */
  keep: number
  fileSystem?: CheckpointFileSystem
}

export interface SavedCheckpoint {
  directory: string
  bytes: number
  /** Why an older checkpoint could not be removed; this one is saved all the same. */
  pruneProblem: CaravanError | undefined
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
export async function saveCheckpoint(root: string, options: SaveOptions): Promise<SavedCheckpoint> {
  const { state, groups, keep, fileSystem = nodeFileSystem } = options
  const directory = join(root, `step-${state.step}`)
  const temporary = join(root, `.tmp-step-${state.step}-${process.pid}`)
  try {
    await fileSystem.mkdir(temporary, { recursive: true })
    const written: WrittenFile[] = []
    for (const [group, tensors] of Object.entries(groups)) {
      const sources = [...tensors].map(([name, tensor]) => tensorSource(name, tensor))
      written.push(await writeSafetensors(join(temporary, `${group}.safetensors`), sources, { fileSystem }))
    }
    written.push(await writeFileAtomic(join(temporary, STATE), JSON.stringify(state, null, 1), { fileSystem }))
    const files = written.map(({ path, byteLength, sha256 }) => ({
      name: path.slice(temporary.length + 1),
      bytes: byteLength,
      sha256,
    }))
    const manifest: Manifest = { format: FORMAT, step: state.step, files }
    await writeFileAtomic(join(temporary, MANIFEST), JSON.stringify(manifest, null, 1), { fileSystem })
    await syncDirectory(temporary, { fileSystem })
    await fileSystem.rm(directory, { recursive: true, force: true })
    await fileSystem.rename(temporary, directory)
    await syncDirectory(root, { fileSystem })
    const bytes = files.reduce((sum, file) => sum + file.bytes, 0)
    const pruneProblem = await prune(root, { newest: state.step, keep: Math.max(2, keep), fileSystem })
    return { directory, bytes, pruneProblem }
  } catch (cause) {
    await fileSystem.rm(temporary, { recursive: true, force: true }).catch(() => {})
    const reason = fileError('save', directory, cause)
    throw new CaravanError(
      'ERR_CHECKPOINT_WRITE',
      `the checkpoint of step ${state.step} was not saved: ${reason.message}`,
      {
        details: { ...reason.details, step: state.step },
        hint: reason.hint ?? 'the checkpoint before it is intact',
        cause,
      },
    )
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

/**
 * Checks every file of a checkpoint against its manifest and returns its state. ERR_CHECKPOINT_CORRUPT names the file.
 */
export async function verifyCheckpoint(directory: string): Promise<CheckpointState> {
  const manifest = await readManifest(directory)
  for (const { name, bytes, sha256 } of manifest.files) {
    const path = join(directory, name)
    const size = await nodeFileSystem.stat(path).then(
      (status) => status.size,
      () => undefined,
    )
    if (size === undefined) throw corrupt(directory, name, 'is missing')
    if (size !== bytes) throw corrupt(directory, name, `has ${size} bytes, the manifest says ${bytes}`)
    if ((await sha256Of(path)) !== sha256) throw corrupt(directory, name, 'does not have the SHA-256 of its manifest')
  }
  const state = (await readJson(directory, STATE)) as CheckpointState
  if (state.step !== manifest.step) {
    throw corrupt(directory, MANIFEST, `is of step ${manifest.step}, ${STATE} of step ${state.step}`)
  }
  return state
}

/** A manifest that lists every file of its folder, and nothing outside it. */
async function readManifest(directory: string): Promise<Manifest> {
  const json = await readJson(directory, MANIFEST)
  const { format, step, files } = (json ?? {}) as Partial<Manifest>
  if (format !== FORMAT) throw corrupt(directory, MANIFEST, `has format ${format}; this version reads format ${FORMAT}`)
  if (!Number.isSafeInteger(step) || !Array.isArray(files) || !files.every(isManifestFile)) {
    throw corrupt(directory, MANIFEST, 'does not list step and files as { name, bytes, sha256 }')
  }
  const listed = new Set(files.map(({ name }) => name)).add(MANIFEST)
  const names = await nodeFileSystem.readdir(directory)
  const unlisted = [STATE, ...names.filter((name) => !name.startsWith('.'))].find((name) => !listed.has(name))
  if (unlisted !== undefined) throw corrupt(directory, unlisted, 'is not listed in the manifest')
  return { format, step: step!, files }
}

function isManifestFile(entry: unknown): entry is ManifestFile {
  const { name, bytes, sha256 } = (entry ?? {}) as Partial<ManifestFile>
  return typeof name === 'string' && basename(name) === name && typeof bytes === 'number' && typeof sha256 === 'string'
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
        const found = entry ? `${entry.dtype}[${entry.shape.join(',')}]` : 'nothing'
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
  for (const name of await namesIn(root, nodeFileSystem)) {
    if (!name.startsWith('.tmp-step-')) continue
    const path = join(root, name)
    await nodeFileSystem.rm(path, { recursive: true, force: true }).catch((cause) => {
      throw fileError('remove', path, cause)
    })
  }
}

/** Names in `root`; none when it does not exist. */
async function namesIn(root: string, fileSystem: Pick<CheckpointFileSystem, 'readdir'>): Promise<string[]> {
  return fileSystem.readdir(root).catch((cause) => {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw fileError('list', root, cause)
  })
}

async function savedSteps(root: string, fileSystem: Pick<CheckpointFileSystem, 'readdir'> = nodeFileSystem) {
  const names = await namesIn(root, fileSystem)
  const steps = names.flatMap((name) => /^step-(\d+)$/.exec(name)?.[1] ?? []).map(Number)
  return steps.sort((a, b) => b - a)
}

/** Removes what is older than the `keep` newest checkpoints. Those after step `newest` go too: the run that saved it
 *  has  not come from them, since they did not verify when it began, and they must not take the place of good ones. */
async function prune(
  root: string,
  { newest, keep, fileSystem }: { newest: number; keep: number; fileSystem: CheckpointFileSystem },
): Promise<CaravanError | undefined> {
  let path = root
  try {
    const steps = await savedSteps(root, fileSystem)
    const good = steps.filter((step) => step <= newest)
    for (const step of [...steps.filter((other) => other > newest), ...good.slice(keep)]) {
      path = join(root, `step-${step}`)
      await fileSystem.rm(path, { recursive: true, force: true })
    }
    return undefined
  } catch (cause) {
    return fileError('remove', path, cause)
  }
}

async function readJson(directory: string, name: string): Promise<unknown> {
  try {
    return JSON.parse(await nodeFileSystem.readFile(join(directory, name), 'utf8'))
  } catch (cause) {
    throw corrupt(directory, name, `cannot be read: ${(cause as Error).message}`)
  }
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256')
  try {
    for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer)
  } catch (cause) {
    throw fileError('read', path, cause)
  }
  return hash.digest('hex')
}

function corrupt(directory: string, file: string, fault: string): CaravanError {
  return new CaravanError('ERR_CHECKPOINT_CORRUPT', `checkpoint ${directory}: ${file} ${fault}`, {
    details: { directory, file },
    hint: 'an older checkpoint beside it is used instead, when there is one',
  })
}
