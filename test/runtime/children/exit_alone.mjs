// Opens a device, computes, and ends without closing anything: an idle device must not keep the process alive.
import { openDevice, sum } from '../../../dist/ops/index.js'
import { Tensor } from '../../../dist/tensor/index.js'

const device = openDevice({ threads: 2 })
const y = sum(Tensor.from(device, Float32Array.of(1, 2, 3), [3]), 0)
console.log(await y.item())
