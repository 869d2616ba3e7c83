// The module for NVIDIA GPUs, a file beside the addon: where it is, whether it can open a device here, and why not.
import { existsSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { CaravanError } from '../base/errors.js'
import { addonFile, type BackendFacts, loadAddon } from './addon.js'

/** What was found of the CUDA module. */
export interface CudaBackend {
  path: string
  /** Absent when there is no module to ask. */
  facts?: BackendFacts
  /** Why no device can be opened; empty when one can. */
  unavailable: string
}

let found: CudaBackend | undefined

/** The CUDA module: CARAVAN_CUDA_MODULE if set, else caravan_cuda.so beside the addon. Never throws for its absence. */
export function cudaBackend(): CudaBackend {
  found ??= findBackend()
  return found
}

function findBackend(): CudaBackend {
  const named = process.env.CARAVAN_CUDA_MODULE
  const path = named ? resolve(named) : join(dirname(addonFile()), 'caravan_cuda.so')
  if (!existsSync(path)) {
    const why = named ? 'CARAVAN_CUDA_MODULE names no file' : 'this build has no CUDA module (nvcc was not found)'
    return { path, unavailable: `${why}: ${path}` }
  }
  try {
    const facts = loadAddon().backend(path)
    return { path, facts, unavailable: facts.unavailable }
  } catch (error) {
    return { path, unavailable: `the CUDA module could not be loaded: ${(error as Error).message}` }
  }
}

/** The module, or ERR_DEVICE with the reason why CUDA is off. */
export function usableCudaBackend(): CudaBackend & { facts: BackendFacts } {
  const backend = cudaBackend()
  if (backend.facts && backend.unavailable === '') return { ...backend, facts: backend.facts }
  throw new CaravanError('ERR_DEVICE', `device 'cuda' is not available: ${backend.unavailable}`, {
    hint: 'use --device cpu; `caravan doctor` says what was found',
  })
}
