// With CARAVAN_SYNC=1 a failure inside a kernel is thrown by the call itself. Prints where it came.
import { embedding, openDevice } from '../../../dist/ops/index.js'
import { Tensor } from '../../../dist/tensor/index.js'

const device = openDevice({ threads: 1 })
const ids = Tensor.from(device, Int32Array.of(0, 7), [2])
const w = Tensor.from(device, new Float32Array(6), [3, 2])
let thrown
try {
  embedding(ids, w)
} catch (error) {
  thrown = { code: error.code, message: error.message }
}
let later
await device.idle().catch((error) => {
  later = error.code
})
console.log(JSON.stringify({ thrown, later }))
device.close()
