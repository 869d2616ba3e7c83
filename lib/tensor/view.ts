// Views: other shapes of the same memory. No kernel runs and nothing is copied.
import { CaravanError } from '../base/errors.js'
import { countOf, type Shape, shapeText } from '../base/shape.js'
import { runningBody } from './checkpoint.js'
import { recordingTape } from './tape.js'
import { Tensor } from './tensor.js'

/** The same elements in shape `shape`; one size may be -1 and is then worked out. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  const known = shape.reduce((product, size) => (size === -1 ? product : product * size), 1)
  const resolved = shape.map((size) => (size === -1 ? x.count / known : size))
  if (countOf(resolved) !== x.count || resolved.some((size) => !Number.isInteger(size))) {
    throw new CaravanError(
      'ERR_SHAPE',
      `reshape: ${shapeText(x.shape)} has ${x.count} elements, ${shapeText(shape)} not`,
    )
  }
  const y = viewOf(x, resolved)
  const tape = recordingTape()
  if (tape && x.tracked) {
    const before = x.shape
    tape.add({ name: 'reshape', inputs: [x], outputs: [y], saved: [], backward: ([dy]) => [reshape(dy!, before)] })
  }
  return y
}

/** Rows `begin` .. `end` of the outermost dimension, in place. Not differentiable: for buffers. */
export function rowsOf(x: Tensor, begin: number, end: number): Tensor {
  const [rows, ...rest] = x.shape
  if (rows === undefined || begin < 0 || end < begin || end > rows) {
    throw new CaravanError('ERR_SHAPE', `rows ${begin} to ${end} are not inside ${shapeText(x.shape)}`)
  }
  return viewOf(x, [end - begin, ...rest], begin * countOf(rest))
}

function viewOf(x: Tensor, shape: Shape, offset?: number): Tensor {
  const y = Tensor.viewOf(x, shape, offset)
  runningBody()?.note({ op: 'view', costly: false, inputs: [x], outputs: [y], saved: [], changed: [] })
  return y
}
