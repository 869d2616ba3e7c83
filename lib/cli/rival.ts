// Other libraries that the benchmark puts beside the engine. Each is found, never required: one that is not there is
// named with the reason, and the rest goes on without it.
import type { Sample } from '../tensor/index.js'

export interface Rival {
  /** Short, as the heading of a column. */
  name: string
  version: string
  /** Seconds of one call, measured over about `budget` seconds; undefined where it has no such op. */
  seconds(op: string, sample: Sample, budget: number): Promise<number | undefined>
  close(): void
}

/** Why a rival does not take part. */
export interface AbsentRival {
  absent: string
}

export interface RivalOptions {
  threads: number
  dtype: 'fp32' | 'bf16'
  /** Where they compute, too; default cpu. */
  device?: 'cpu' | 'cuda'
}

/** Every rival that is installed here, and a line for each that is not. */
export async function startRivals(options: RivalOptions): Promise<{ rivals: Rival[]; notes: string[] }> {
  const started: (Rival | AbsentRival)[] = []
  const { startTorch } = await import('./torch_kernels.js')
  started.push(...(await startTorch(options)))
  if (options.device !== 'cuda') started.push(...(await startProcessorRivals(options)))
  const rivals = started.filter((one): one is Rival => 'seconds' in one)
  const notes = started.flatMap((one) => ('absent' in one ? [one.absent] : []))
  return { rivals, notes }
}

/** Those that compute on the CPU alone. */
async function startProcessorRivals(options: RivalOptions): Promise<(Rival | AbsentRival)[]> {
  const { startOnnxRuntime } = await import('./rival_onnx.js')
  const { startTensorFlow } = await import('./rival_tensorflow.js')
  return [await startOnnxRuntime(options), await startTensorFlow(options)]
}

/** Imports a package that need not be installed; undefined where it is not. Types are the caller's: the package's own
 *  are not there where it is absent. */
export async function optionalPackage<T>(name: string): Promise<T | undefined> {
  try {
    return (await import(name)) as T
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ERR_MODULE_NOT_FOUND' || code === 'MODULE_NOT_FOUND') return undefined
    throw error
  }
}
