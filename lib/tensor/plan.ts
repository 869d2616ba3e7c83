// A plan: ops recorded once and run again with one native call. What changes from run to run is uploaded into tensors
// made beforehand; shapes and attributes are those of the recording. A decoding step is a hundred small ops whose
// JavaScript would otherwise cost as much as their arithmetic.
import type { Device, RecordedCommands } from '../runtime/index.js'
import { withoutTape } from './tape.js'
import { keep, scope, type Tensor } from './tensor.js'

export class Plan<Outputs extends { [name: string]: Tensor }> {
  readonly #recorded: RecordedCommands
  /** Results of the newest run; each run writes them anew. */
  readonly outputs: Outputs

  /** Runs `body` for the first time. It gets its inputs from outside and may neither upload nor wait. */
  constructor(
    private readonly device: Device,
    body: () => Outputs,
  ) {
    const { recorded, result } = device.record(() => withoutTape(() => scope(body)))
    this.#recorded = recorded
    this.outputs = result
    for (const tensor of Object.values(result)) keep(tensor)
  }

  /** Runs everything again. */
  run(): void {
    const ids = Object.values(this.outputs).map(({ id }) => id)
    this.device.replay(this.#recorded, ids)
  }

  dispose(): void {
    for (const tensor of Object.values(this.outputs)) tensor.dispose()
    this.device.forget(this.#recorded)
  }
}
