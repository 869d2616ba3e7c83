// Work on device 'cuda' of which a profiler would see the names: an op, a plan twice, a phase of a training step.
import { add, openDevice } from '../../../dist/ops/index.js'
import { Plan, Tensor } from '../../../dist/tensor/index.js'

const device = openDevice({ kind: 'cuda' })
const x = Tensor.from(device, Float32Array.of(1, 2), [2])
const plan = new Plan(device, () => ({ y: add(x, x) }))
plan.run()
const sum = device.named('step 7 forward', () => add(x, plan.outputs.y))
console.log(JSON.stringify([...(await sum.read())]))
for (const owned of [sum, plan, x]) owned.dispose()
device.close()
