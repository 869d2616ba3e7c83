// Loads the native addon: the only importer of the .node file. Nothing else in the library names a native function.
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CaravanError } from '../base/errors.js'

/** The functions of native/node/addon.cc. */
export interface Addon {
  isaLevels(): [name: string, supported: boolean][]
  kernels(): [isa: string, op: string, device: string, signature: string][]
  openCpu(
    threads: number,
    budgetBytes: number,
    isa: string,
    ops: string[],
    onFinished: (ticket: number, error: NativeFailure | null) => void,
  ): [device: number, isa: string, threads: number]
  backend(path: string): BackendFacts
  /** What a device module looks for on this machine; loads the libraries that it finds. */
  findings(path: string): [name: string, text: string][]
  openBackend(
    path: string,
    ordinal: number,
    budgetBytes: number,
    ops: string[],
    onFinished: (ticket: number, error: NativeFailure | null) => void,
  ): number
  submit(device: number, words: Int32Array, count: number): void
  keepPlan(device: number, plan: number, words: Int32Array): void
  replay(device: number, plan: number): void
  forgetPlan(device: number, plan: number): void
  namesRanges(device: number): boolean
  range(device: number, name?: string): void
  upload(device: number, tensor: number, array: ArrayBufferView): void
  loadFile(device: number, tensor: number, path: string, byteOffset: number, dtype: number): void
  read(device: number, ticket: number, tensors: Int32Array, arrays: ArrayBufferView[]): void
  stats(device: number, out: Float64Array): void
  profile(device: number, on: boolean): void
  opTimes(device: number): [op: number, calls: number, seconds: number][]
  resetPeak(device: number): void
  failAllocation(device: number, n: number): void
  wait(device: number): void
  close(device: number): void
}

/** What a device module says of itself and of this machine. */
export interface BackendFacts {
  kind: string
  /** Why no device can be opened; empty when one can. */
  unavailable: string
  devices: [name: string, totalBytes: number, capability: number][]
  kernels: [isa: string, op: string, device: string, signature: string][]
}

/** An error as the queue reports it. */
export interface NativeFailure extends Error {
  code: string
  op?: string
  sequence?: number
}

let loaded: Addon | undefined
let loadedFrom = ''

/** The file that the addon was loaded from. */
export function addonFile(): string {
  loadAddon()
  return loadedFrom
}

/** The addon: CARAVAN_ADDON if set, else build/Release of this package. ERR_NATIVE_LOAD says what was tried. */
export function loadAddon(): Addon {
  if (loaded) return loaded
  const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))))
  const candidates = process.env.CARAVAN_ADDON
    ? [resolve(process.env.CARAVAN_ADDON)]
    : [join(root, 'build/Release/caravan.node'), join(root, 'build/cmake/Release/caravan.node')]
  const tried: string[] = []
  for (const path of candidates) {
    if (!existsSync(path)) {
      tried.push(`${path}: no such file`)
      continue
    }
    try {
      loaded = createRequire(import.meta.url)(path) as Addon
      loadedFrom = path
      return loaded
    } catch (cause) {
      tried.push(`${path}: ${(cause as Error).message}`)
    }
  }
  throw new CaravanError('ERR_NATIVE_LOAD', `the native engine could not be loaded; tried ${tried.join('; ')}`, {
    hint: 'run `npm run build` in the package folder (a C++20 compiler and CMake are needed)',
    details: { tried, node: process.version, platform: `${process.platform}-${process.arch}` },
  })
}
