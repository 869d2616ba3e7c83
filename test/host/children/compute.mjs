// One forward and backward pass of a small gated block, the same numbers for everybody. Shared by the scripts of this
// folder.
import { createHash } from 'node:crypto'
import { linear, openDevice, randomNormal, rmsNorm, swiglu } from '../../../dist/ops/index.js'
import { Gradients, scope, Tape } from '../../../dist/tensor/index.js'

const [N, D, F] = [128, 96, 256]

export const open = (threads = 2) => openDevice({ threads, memoryBudgetBytes: 2 ** 28 })

/** Parameters and input of the block. */
export function makeBlock(device) {
  const draw = (shape, stream) => randomNormal(device, shape, { deviation: 0.1, seed: 1, stream, dtype: 'f32' })
  const block = {
    x: draw([N, D], 0),
    norm: draw([D], 1),
    gate: draw([F, D], 2),
    up: draw([F, D], 3),
    down: draw([D, F], 4),
  }
  for (const tensor of Object.values(block)) tensor.tracked = true
  return block
}

/** Queues one pass; the gradients are left in the returned table. */
export function pass({ x, norm, gate, up, down }) {
  const gradients = new Gradients()
  scope(() => {
    const tape = new Tape()
    const y = tape.record(() => {
      const h = rmsNorm(x, norm, { eps: 1e-5 })
      return linear(swiglu(linear(h, gate), linear(h, up)), down, { residual: x })
    })
    tape.backward(y, y, gradients)
  })
  return gradients
}

/** SHA-256 over all gradients. */
export async function digest(block, gradients) {
  const hash = createHash('sha256')
  for (const tensor of Object.values(block)) {
    const values = await gradients.get(tensor).readRaw()
    hash.update(new Uint8Array(values.buffer))
  }
  return hash.digest('hex')
}

/** Queues work without end, never more than a few passes ahead. */
export async function workForEver(device) {
  const block = makeBlock(device)
  for (;;) {
    for (let i = 0; i < 4; i++) pass(block).dispose()
    await device.idle()
  }
}
