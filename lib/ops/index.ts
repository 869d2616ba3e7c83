// THE TABLE: importing this file declares every op. `openDevice` compares it with the kernels of the addon.
import { CaravanError } from '../base/errors.js'
import { cudaBackend, Device, type DeviceOptions, loadAddon } from '../runtime/index.js'
import { declaredOps } from '../tensor/index.js'

export * from './attention.js'
export * from './dropout.js'
export * from './elementwise.js'
export * from './embedding.js'
export * from './gated_mlp.js'
export * from './linear_logprob.js'
export * from './matmul.js'
export * from './movement.js'
export * from './norm.js'
export * from './optimizer_step.js'
export * from './policy.js'
export * from './preference.js'
export * from './reduce.js'
export * from './rope.js'
export * from './sampling.js'

const handshaken = new Set<string>()

/**
 * Opens a device after checking once that kernels and op table agree. Errors: ERR_NATIVE_LOAD, ERR_DEVICE, ERR_CONFIG.
 */
export function openDevice(options: DeviceOptions = {}): Device {
  const kind = options.kind ?? 'cpu'
  if (!handshaken.has(kind)) {
    const faults = compareTables(kind)
    if (faults.length > 0) {
      throw new CaravanError(
        'ERR_NATIVE_LOAD',
        `the native engine and the op table disagree:\n  ${faults.join('\n  ')}`,
        {
          hint: 'the addon is from another version: run `npm run build`',
        },
      )
    }
    handshaken.add(kind)
  }
  return new Device(options)
}

/** Differences between the declared signatures and those that the kernels repeat. */
export function compareTables(kind: 'cpu' | 'cuda' = 'cpu'): string[] {
  const ops = declaredOps()
  const faults = new Set<string>()
  const built = new Set<string>()
  const kernels = kind === 'cpu' ? loadAddon().kernels() : (cudaBackend().facts?.kernels ?? [])
  for (const [isa, name, device, signature] of kernels) {
    built.add(name)
    const op = ops.get(name)
    if (!op) faults.add(`kernel ${name} (${device}, ${isa}) has no op; its signature is "${signature}"`)
    else if (op.parsed.text !== signature) {
      faults.add(`${name}: the op says "${op.parsed.text}", the ${device} kernel (${isa}) says "${signature}"`)
    }
  }
  for (const [name, op] of ops) {
    if (kind === 'cpu' && !built.has(name) && !op.definition.reference)
      faults.add(`op ${name} has neither a kernel nor a reference`)
  }
  return [...faults]
}
