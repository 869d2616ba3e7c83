// Calls every function of the addon with arguments of wrong types, sizes and states. Prints how many calls threw and
// how many did not; a crash shows in the exit code. Argument: seed.

import { Random } from '../../../dist/base/random.js'
import { loadAddon } from '../../../dist/runtime/index.js'

const addon = loadAddon()
const random = new Random(Number(process.argv[2]))
const opNames = [...new Set(addon.kernels().map(([, op]) => op))].sort()
const open = () => addon.openCpu(2, 1 << 24, '', opNames, () => {})[0]

function detached() {
  const array = new Float32Array(8)
  structuredClone(array.buffer, { transfer: [array.buffer] })
  return array
}

const throwing = () => {
  throw new Error('a getter threw')
}

const makers = [
  () => undefined,
  () => null,
  () => true,
  () => -1,
  () => 0,
  () => 1,
  () => 0.5,
  () => 2 ** 31,
  () => 2 ** 53,
  () => -(2 ** 53),
  () => 1e308,
  () => Number.NaN,
  () => Infinity,
  () => 10n ** 20n,
  () => '',
  () => 'portable',
  () => 'x'.repeat(1 << 16),
  () => Symbol('s'),
  () => [],
  () => [1, 2, 3],
  () => ({}),
  () => ({ length: 2 ** 32 }),
  () => Object.defineProperty([], '0', { get: throwing }),
  () => new Proxy([], { get: throwing }),
  () => new Proxy(new Float32Array(4), {}),
  () => () => {},
  () => new Float32Array(4),
  () => new Float64Array(7),
  () => new Int32Array(16),
  () => new Uint8Array(0),
  () => new BigInt64Array(2),
  () => new DataView(new ArrayBuffer(8)),
  () => new ArrayBuffer(16),
  () => new Float32Array(new SharedArrayBuffer(16)),
  () => new Float32Array(new ArrayBuffer(16, { maxByteLength: 64 })),
  detached,
]

let device = open()
const counts = { threw: 0, returned: 0 }
const names = Object.keys(addon)
for (let round = 0; round < 4000; round++) {
  const name = names[random.integer(0, names.length)]
  const args = Array.from({ length: random.integer(0, 7) }, () => random.choice(makers)())
  // Half the calls name a device that is open, so that the arguments after it are looked at.
  if (args.length > 0 && random.chance(0.5)) args[0] = device
  try {
    addon[name](...args)
    counts.returned++
    if (name === 'close') device = open()
  } catch (error) {
    if (!(error instanceof Error)) throw new Error(`${name} threw what is no error`)
    counts.threw++
  }
}
// The engine must still work.
addon.wait(device)
addon.close(device)
console.log(JSON.stringify(counts))
process.exit(0)
