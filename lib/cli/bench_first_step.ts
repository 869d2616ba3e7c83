// A program as `caravan bench startup` times it: the package, a device, a new model of the pocket's size, one step.
import { openDevice } from '../ops/index.js'
import { benchShapes } from './bench_shapes.js'
import { timedSteps } from './bench_step.js'

{
  using device = openDevice()
  await timedSteps(device, benchShapes.tiny, { method: 'sft', dtype: 'fp32', totalSteps: 1 })
}
process.stdout.write('done\n')
