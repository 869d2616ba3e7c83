// What the options of several commands share.
import { Option } from 'commander'
import { oneOf, wholeNumber } from './option_values.js'

/** Takes the exit code that a command ends with. */
export type Ended = (exitCode: number) => void

export const dtypes = ['fp32', 'bf16'] as const
export type DtypeFlag = (typeof dtypes)[number]

/** The engine's name of a dtype flag. */
export function engineDtype(flag: DtypeFlag | undefined): 'f32' | 'bf16' | undefined {
  return flag === 'fp32' ? 'f32' : flag
}

export function dtypeOption(): Option {
  return new Option('--dtype <type>', 'precision of the weights: fp32 or bf16').argParser(oneOf('--dtype', dtypes))
}

/** Where a command computes. */
export type DeviceFlag = 'cpu' | 'cuda'

export function deviceOption(): Option {
  const text = 'cpu, or cuda for the NVIDIA GPU (which one: CARAVAN_CUDA_DEVICE)'
  return new Option('--device <kind>', text).argParser(oneOf('--device', ['cpu', 'cuda'] as const))
}

export function threadsOption(): Option {
  const text = 'threads that compute (default: all cores; results do not depend on it)'
  return new Option('--threads <n>', text).argParser(wholeNumber('--threads', 1))
}

export function jsonOption(what: string): Option {
  return new Option('--json', what)
}
