// Tensors, scopes, the tape, and the way ops are declared.
export { type Checkpointing, checkpoint, checkpointings } from './checkpoint.js'
export { checkGradient, type GradientCheckOptions, type GradientFault, type GradientReport } from './gradient_check.js'
export {
  type Call,
  declaredOps,
  defineOp,
  type Op,
  type OpDefinition,
  runReference,
  type Sample,
  type SampleDraw,
} from './op.js'
export { Plan } from './plan.js'
export { Gradients, recordingTape, Tape, withoutTape } from './tape.js'
export { keep, leaks, readTogether, scope, Tensor, type TypedArray } from './tensor.js'
export { reshape, rowsOf } from './view.js'
