// The gradient check that every op passes, for those who add one. Central differences in f64: exact to about nine
// digits for smooth functions, so that a wrong factor or a forgotten term cannot hide in a tolerance.
import { CaravanError } from '../base/errors.js'
import { Random } from '../base/random.js'
import type { Device } from '../runtime/index.js'
import { Gradients, Tape, withoutTape } from './tape.js'
import { scope, Tensor } from './tensor.js'

type Named = { [name: string]: Tensor }

export interface GradientCheckOptions {
  /** Names of inputs that have no gradient: indices, tables. Inputs that are not f64 are among them anyway. */
  constant?: readonly string[]
  /** Largest difference allowed, as a fraction of the largest gradient of the same input. Default 1e-6. */
  relativeTolerance?: number
  /** Largest difference allowed in any case. Default 1e-9. */
  absoluteTolerance?: number
  /** Change of an element, relative to its size where that is above 1. Default 2^-17, near the cube root of the f64
   *  rounding error, where truncation and rounding of a central difference balance. */
  step?: number
  /** Seed of the random weights with which the elements of the results are added up. Default 1. */
  seed?: number
}

/** One element whose gradient is wrong. */
export interface GradientFault {
  input: string
  /** Position in row-major order. */
  index: number
  /** What the tape gave. */
  tape: number
  /** What the central difference gave. */
  numeric: number
  allowed: number
}

export interface GradientReport {
  /** Number of elements compared. */
  checked: number
  faults: GradientFault[]
}

/** Evaluations in flight: bounds the memory of the check. */
const CHUNK = 128

/** Compares the gradients that the tape finds for `body` with central differences, element by element. `body` maps
 *  named  inputs to one tensor, or several by name; all floating-point inputs that are to be checked must be f64, and
 *  `body`  must compute in f64. Errors: ERR_DTYPE when nothing can be checked, and whatever `body` throws. */
export async function checkGradient<I extends Named>(
  body: (inputs: I) => Tensor | Named,
  inputs: I,
  options: GradientCheckOptions = {},
): Promise<GradientReport> {
  const names = Object.keys(inputs).filter((name) => inputs[name]!.dtype === 'f64' && !options.constant?.includes(name))
  if (names.length === 0) throw new CaravanError('ERR_DTYPE', 'checkGradient: none of the inputs is f64 and variable')
  const evaluate = (replaced: Named) => resultsOf(withoutTape(() => body({ ...inputs, ...replaced })))
  const weights = await drawWeights(evaluate({}), options.seed ?? 1)
  const fromTape = await tapeGradients(body, inputs, { names, weights })
  const report: GradientReport = { checked: 0, faults: [] }
  for (const name of names) {
    const numeric = await differences(evaluate, inputs[name]!, { name, weights, step: options.step ?? 2 ** -17 })
    compare(report, { input: name, tape: fromTape.get(name)!, numeric }, options)
  }
  return report
}

function resultsOf(results: Tensor | Named): Tensor[] {
  const tensors =
    results instanceof Tensor ? [results] : Object.values(results).filter((item) => item instanceof Tensor)
  const other = tensors.find((tensor) => tensor.dtype !== 'f64')
  if (other) throw new CaravanError('ERR_DTYPE', `checkGradient: the results must be f64, got ${other}`)
  return tensors
}

/** A weight for each element of each result: their weighted sum is the function that is differentiated. */
async function drawWeights(results: Tensor[], seed: number): Promise<Float64Array[]> {
  const random = new Random(seed)
  const weights = results.map((result) => Float64Array.from({ length: result.count }, () => random.normal()))
  for (const result of results) result.dispose()
  return weights
}

async function tapeGradients<I extends Named>(
  body: (inputs: I) => Tensor | Named,
  inputs: I,
  { names, weights }: { names: string[]; weights: Float64Array[] },
): Promise<Map<string, Float64Array>> {
  const before = names.map((name) => inputs[name]!.tracked)
  for (const name of names) inputs[name]!.tracked = true
  using gradients = new Gradients()
  try {
    scope(() => {
      using tape = new Tape()
      const results = resultsOf(tape.record(() => body(inputs)))
      const seeds = results.map((result, i) => Tensor.from(result.device, weights[i]!, result.shape))
      for (const [i, result] of results.entries()) if (i > 0) gradients.accumulate(result, seeds[i]!)
      tape.backward(results[0]!, seeds[0]!, gradients)
    })
  } finally {
    for (const [i, name] of names.entries()) inputs[name]!.tracked = before[i]!
  }
  const found = new Map<string, Float64Array>()
  for (const name of names) {
    const gradient = gradients.get(inputs[name]!)
    const zeros = new Float64Array(inputs[name]!.count)
    found.set(name, gradient ? Float64Array.from(await gradient.read()) : zeros)
  }
  return found
}

async function differences(
  evaluate: (replaced: Named) => Tensor[],
  input: Tensor,
  { name, weights, step }: { name: string; weights: Float64Array[]; step: number },
): Promise<Float64Array> {
  const values = Float64Array.from(await input.read())
  const numeric = new Float64Array(values.length)
  const difference = async (i: number) => {
    const [up, down] = [values.slice(), values.slice()]
    const change = step * Math.max(1, Math.abs(values[i]!))
    up[i]! += change
    down[i]! -= change
    const sum = (moved: Float64Array) =>
      weightedSum(input.device, evaluate, { name, moved, weights, shape: input.shape })
    const [above, below] = await Promise.all([sum(up), sum(down)])
    numeric[i] = (above - below) / (up[i]! - down[i]!)
  }
  for (let begin = 0; begin < values.length; begin += CHUNK) {
    const count = Math.min(CHUNK, values.length - begin)
    await Promise.all(Array.from({ length: count }, (_, i) => difference(begin + i)))
  }
  return numeric
}

async function weightedSum(
  device: Device,
  evaluate: (replaced: Named) => Tensor[],
  call: { name: string; moved: Float64Array; weights: Float64Array[]; shape: readonly number[] },
): Promise<number> {
  const moved = Tensor.from(device, call.moved, call.shape)
  const results = evaluate({ [call.name]: moved })
  const arrays = await Promise.all(results.map((result) => result.read()))
  for (const tensor of [moved, ...results]) tensor.dispose()
  let sum = 0
  for (const [r, array] of arrays.entries())
    for (let i = 0; i < array.length; i++) sum += array[i]! * call.weights[r]![i]!
  return sum
}

function compare(
  report: GradientReport,
  { input, tape, numeric }: { input: string; tape: Float64Array; numeric: Float64Array },
  { relativeTolerance = 1e-6, absoluteTolerance = 1e-9 }: GradientCheckOptions,
): void {
  const largest = numeric.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
  const allowed = Math.max(absoluteTolerance, relativeTolerance * largest)
  for (let index = 0; index < numeric.length; index++) {
    report.checked++
    // Not `>`: a NaN must be a fault.
    if (Math.abs(tape[index]! - numeric[index]!) <= allowed) continue
    report.faults.push({ input, index, tape: tape[index]!, numeric: numeric[index]!, allowed })
  }
}
