// A device and its command stream. Calls write words into a buffer and return at once; a native thread drains them in
// order. `idle()` and `read()` are the only waits. Tensors are integers here; lib/tensor gives them faces.
import { availableParallelism, cpus, totalmem } from 'node:os'
import { type DType, dtypeBytes, dtypeCode } from '../base/dtype.js'
import { CaravanError, type ErrorCode, nearestName } from '../base/errors.js'
import { countOf, type Shape } from '../base/shape.js'
import { type Addon, loadAddon, type NativeFailure } from './addon.js'
import { usableCudaBackend } from './backend.js'

export interface DeviceOptions {
  kind?: 'cpu' | 'cuda'
  /** Threads that compute; default: the cores this process may use. Results do not depend on it. */
  threads?: number
  /** Most bytes of tensor memory; default 90 % of the machine's memory, on a GPU of what is free there. */
  memoryBudgetBytes?: number
  /** Which GPU, as the driver counts them; default CARAVAN_CUDA_DEVICE, else 0. */
  ordinal?: number
  /** portable, avx2, avx512 or avx512bf16; default CARAVAN_ISA, else the best this processor has. */
  isa?: string
}

export interface DeviceStats {
  liveTensors: number
  liveBytes: number
  /** Highest liveBytes since the device was opened or resetPeak() was called. */
  peakBytes: number
  /** Memory held from the system, free blocks included. */
  reservedBytes: number
  budgetBytes: number
  commandsRun: number
  /** Times that the thread of a GPU stood still until all work given before was done; 0 on the CPU, whose thread does
   *  the work itself. */
  waits: number
}

const COMMAND = { op: 1, free: 2, view: 3, alloc: 4 }
const BUFFER_WORDS = 1 << 14
// Words after which the buffer is handed over although nobody waits: about 40 ops, so that the native thread starts
// early and the cost of the call is spread thin.
const EAGER_WORDS = 1 << 10

interface Pending {
  resolve: () => void
  reject: (error: Error) => void
}

/** One device: memory, an ordered command stream, and kernels. */
export class Device {
  readonly kind: 'cpu' | 'cuda'
  /** Of the processor, or of the GPU. */
  readonly name: string
  /** Instruction set of the processor (avx2), or architecture of the GPU (sm_90). */
  readonly isa: string
  readonly threads: number
  /** Where each op stands in the native table. */
  readonly #opIndex: Map<string, number>
  readonly #addon: Addon
  readonly #index: number
  readonly #words = new Int32Array(BUFFER_WORDS)
  readonly #doubles = new Float64Array(1)
  readonly #doubleWords = new Int32Array(this.#doubles.buffer)
  readonly #statistics = new Float64Array(7)
  readonly #pending = new Map<number, Pending>()
  readonly #freeIds: number[] = []
  /** Whether a profiler watches. */
  readonly #namesRanges: boolean
  readonly #synchronous = process.env.CARAVAN_SYNC === '1'
  /** Ids that recorded commands speak of: they are not given to other tensors. */
  readonly #reservedIds = new Set<number>()
  #recording: { words: number[]; ids: number[] } | undefined
  #commandStart = 0
  #nextId = 1
  #nextTicket = 1
  #nextPlan = 1
  #length = 0
  #closed = false

  constructor(options: DeviceOptions = {}) {
    this.kind = options.kind ?? 'cpu'
    this.#addon = loadAddon()
    const opened =
      this.kind === 'cuda'
        ? openCuda(this.#addon, options, this.#finished.bind(this))
        : openCpu(this.#addon, options, this.#finished.bind(this))
    this.#index = opened.index
    this.#namesRanges = this.#addon.namesRanges(opened.index)
    this.#opIndex = new Map(opened.ops.map((name, i) => [name, i]))
    this.name = opened.name
    this.isa = opened.isa
    this.threads = opened.threads
  }

  /** Index of a native op, or undefined when this device has no kernel of that name. */
  opIndex(op: string): number | undefined {
    return this.#opIndex.get(op)
  }

  newId(): number {
    const id = this.#freeIds.pop() ?? this.#nextId++
    if (this.#recording) {
      this.#recording.ids.push(id)
      this.#reservedIds.add(id)
    }
    return id
  }

  /**
   * Runs `body`, whose commands are executed and also written down, so that `replay` runs them again with one call.
   * Tensors made before keep their ids and are read as they are then. `body` may neither upload nor wait.
   */
  record<R>(body: () => R): { recorded: RecordedCommands; result: R } {
    if (this.#recording) throw new CaravanError('ERR_INTERNAL', 'commands are being recorded already')
    const recording = { words: [] as number[], ids: [] as number[] }
    this.#recording = recording
    try {
      const result = body()
      const plan = this.#nextPlan++
      this.#addon.keepPlan(this.#index, plan, Int32Array.from(recording.words))
      return { recorded: { plan, ids: recording.ids }, result }
    } catch (error) {
      this.#release(recording.ids)
      throw error
    } finally {
      this.#recording = undefined
    }
  }

  /** Runs recorded commands again; `outputs` are what they left alive the last time, and will leave again. */
  replay(recorded: RecordedCommands, outputs: readonly number[]): void {
    for (const id of outputs) this.#free(id)
    this.flush()
    this.#addon.replay(this.#index, recorded.plan)
  }

  /** Gives back the ids of recorded commands, all of whose tensors have been freed. */
  forget(recorded: RecordedCommands): void {
    if (!this.#closed) this.#addon.forgetPlan(this.#index, recorded.plan)
    this.#release(recorded.ids)
  }

  /** Allocates memory for tensor `id`, contents undefined. */
  alloc(id: number, dtype: DType, shape: Shape): void {
    this.#begin(4 + shape.length)
    this.#word(COMMAND.alloc)
    this.#word(id)
    this.#word(dtypeCode[dtype])
    this.#shape(shape)
    this.#end()
  }

  /** Makes `id` another view of the memory of `source`, from element `offset` on. */
  view(id: number, source: number, options: { dtype: DType; offset: number; shape: Shape }): void {
    this.#begin(7 + options.shape.length)
    this.#word(COMMAND.view)
    this.#word(id)
    this.#word(source)
    this.#word(dtypeCode[options.dtype])
    this.#double(options.offset)
    this.#shape(options.shape)
    this.#end()
  }

  /** Drops tensor `id`; the id may be used again at once, the stream keeps the order. */
  free(id: number): void {
    if (this.#closed) return
    this.#free(id)
    if (!this.#reservedIds.has(id)) this.#freeIds.push(id)
  }

  /** Runs native op `index`; absent tensors are undefined. Each output is allocated when the command runs. Hundreds of
   *  calls make a training step, hence plain loops over local variables. */
  op(
    index: number,
    inputs: readonly (OpTensor | undefined)[],
    outputs: readonly (OpTensor | undefined)[],
    attributes: readonly number[],
  ): void {
    this.#begin(5 + inputs.length + outputs.length * 9 + attributes.length * 2)
    const words = this.#words
    let n = this.#length
    words[n++] = COMMAND.op
    words[n++] = index
    words[n++] = inputs.length
    words[n++] = outputs.length
    words[n++] = attributes.length
    for (let i = 0; i < inputs.length; i++) words[n++] = inputs[i]?.id ?? 0
    for (let i = 0; i < outputs.length; i++) {
      const output = outputs[i] ?? absent
      words[n++] = output.id
      words[n++] = dtypeCode[output.dtype]
      words[n++] = output.shape.length
      for (let j = 0; j < output.shape.length; j++) words[n++] = output.shape[j]!
    }
    for (let i = 0; i < attributes.length; i++) {
      this.#doubles[0] = attributes[i]!
      words[n++] = this.#doubleWords[0]!
      words[n++] = this.#doubleWords[1]!
    }
    this.#length = n
    this.#end()
  }

  /** Runs `body` with what it submits under `name` in the timeline of a profiler; where none watches, just runs it. */
  named<R>(name: string, body: () => R): R {
    if (!this.#namesRanges) return body()
    this.flush()
    this.#addon.range(this.#index, name)
    try {
      return body()
    } finally {
      this.flush()
      this.#addon.range(this.#index)
    }
  }

  /** Copies `array` into tensor `id`. */
  upload(id: number, array: ArrayBufferView): void {
    this.#refuseWhileRecording('upload')
    this.flush()
    this.#addon.upload(this.#index, id, array)
  }

  /** Fills tensor `id` from elements of type `dtype` at `byteOffset` of a file; failures come at the next wait. */
  loadFile(id: number, source: { path: string; byteOffset: number; dtype: DType }): void {
    this.flush()
    this.#addon.loadFile(this.#index, id, source.path, source.byteOffset, dtypeCode[source.dtype])
  }

  /** Copies tensors into arrays, one for each, which must not be touched until the promise settles. What is written
   *  behind it goes on meanwhile. */
  read(ids: readonly number[], arrays: readonly ArrayBufferView[]): Promise<void> {
    return this.#wait((ticket) => this.#addon.read(this.#index, ticket, Int32Array.from(ids), [...arrays]))
  }

  /** Settles when everything written so far has run; rejects with the first failure since the last wait. */
  idle(): Promise<void> {
    return this.read([], [])
  }

  /** Hands the buffered commands to the native thread. */
  flush(): void {
    this.#assertOpen()
    if (this.#length === 0) return
    this.#addon.submit(this.#index, this.#words, this.#length)
    this.#length = 0
  }

  /** Counters of the commands that have run so far; after idle() they are those of everything written. */
  stats(): DeviceStats {
    this.flush()
    this.#addon.stats(this.#index, this.#statistics)
    const [liveTensors, liveBytes, peakBytes, reservedBytes, budgetBytes, commandsRun, waits] = this.#statistics
    return {
      liveTensors: liveTensors!,
      liveBytes: liveBytes!,
      peakBytes: peakBytes!,
      reservedBytes: reservedBytes!,
      budgetBytes: budgetBytes!,
      commandsRun: commandsRun!,
      waits: waits!,
    }
  }

  /** Runs `body` with every op timed and returns calls and seconds by op, the longest first. */
  async profile(body: () => Promise<void>): Promise<OpTime[]> {
    this.flush()
    this.#addon.profile(this.#index, true)
    await body()
    await this.idle()
    const names = [...this.#opIndex.keys()]
    const rows = this.#addon.opTimes(this.#index).map(([op, calls, seconds]) => ({ op: names[op]!, calls, seconds }))
    this.#addon.profile(this.#index, false)
    return rows.sort((a, b) => b.seconds - a.seconds)
  }

  resetPeak(): void {
    this.flush()
    this.#addon.resetPeak(this.#index)
  }

  /** For tests of what follows a failure: the n-th allocation of the commands written from now on (tensors and working
   *  memory of kernels) fails with ERR_OOM as if the budget were used up, once; 0 calls it off. */
  failAllocation(n: number): void {
    this.flush()
    this.#addon.failAllocation(this.#index, n)
  }

  /** Stops the stream and frees all memory of the device. Waiting promises reject with ERR_ABORTED. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#addon.close(this.#index)
    for (const { reject } of this.#pending.values()) {
      reject(new CaravanError('ERR_ABORTED', 'the device was closed'))
    }
    this.#pending.clear()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #wait(start: (ticket: number) => void): Promise<void> {
    this.#refuseWhileRecording('wait')
    this.flush()
    const ticket = this.#nextTicket++
    return new Promise<void>((resolve, reject) => {
      this.#pending.set(ticket, { resolve, reject })
      native(() => start(ticket))
    })
  }

  #finished(ticket: number, failure: NativeFailure | null): void {
    const pending = this.#pending.get(ticket)
    this.#pending.delete(ticket)
    if (!pending) return
    if (failure) pending.reject(toCaravanError(failure))
    else pending.resolve()
  }

  #free(id: number): void {
    this.#begin(2)
    this.#word(COMMAND.free)
    this.#word(id)
    this.#end()
  }

  #release(ids: readonly number[]): void {
    for (const id of ids) if (this.#reservedIds.delete(id)) this.#freeIds.push(id)
  }

  #refuseWhileRecording(what: string): void {
    if (this.#recording) throw new CaravanError('ERR_INTERNAL', `${what}: not possible while commands are recorded`)
  }

  #assertOpen(): void {
    if (this.#closed) throw new CaravanError('ERR_DEVICE', 'this device has been closed')
  }

  #begin(words: number): void {
    this.#assertOpen()
    if (this.#length + words > BUFFER_WORDS) this.flush()
    this.#commandStart = this.#length
  }

  #end(): void {
    if (this.#recording) {
      for (let i = this.#commandStart; i < this.#length; i++) this.#recording.words.push(this.#words[i]!)
    }
    if (this.#length >= EAGER_WORDS) this.flush()
    if (this.#synchronous) {
      this.flush()
      native(() => this.#addon.wait(this.#index))
    }
  }

  #word(value: number): void {
    this.#words[this.#length++] = value
  }

  #double(value: number): void {
    this.#doubles[0] = value
    this.#words[this.#length++] = this.#doubleWords[0]!
    this.#words[this.#length++] = this.#doubleWords[1]!
  }

  #shape(shape: Shape): void {
    this.#word(shape.length)
    for (let i = 0; i < shape.length; i++) this.#word(shape[i]!)
  }
}

/** What opening a device gives. */
interface Opened {
  index: number
  /** Names of the ops with a kernel, in the order of their indices. */
  ops: string[]
  name: string
  isa: string
  threads: number
}

type OnFinished = (ticket: number, error: NativeFailure | null) => void

const opsOf = (kernels: ReturnType<Addon['kernels']>) => [...new Set(kernels.map(([, op]) => op))].sort()

function openCpu(addon: Addon, options: DeviceOptions, onFinished: OnFinished): Opened {
  const ops = opsOf(addon.kernels())
  const wantedIsa = options.isa ?? process.env.CARAVAN_ISA ?? ''
  const wantedThreads = options.threads ?? availableParallelism()
  const budget = budgetOf(options.memoryBudgetBytes ?? totalmem() * 0.9)
  checkOptions(addon, { threads: wantedThreads, budget, isa: wantedIsa })
  const [index, isa, threads] = native(() => addon.openCpu(wantedThreads, budget, wantedIsa, ops, onFinished))
  return { index, ops, name: cpus()[0]?.model.trim() ?? 'unknown processor', isa, threads }
}

function openCuda(addon: Addon, options: DeviceOptions, onFinished: OnFinished): Opened {
  const { path, facts } = usableCudaBackend()
  const ops = opsOf(facts.kernels)
  const wanted = options.ordinal ?? (process.env.CARAVAN_CUDA_DEVICE || 0)
  const ordinal = Number(wanted)
  const budget = options.memoryBudgetBytes === undefined ? 0 : budgetOf(options.memoryBudgetBytes)
  if (!Number.isInteger(ordinal) || ordinal < 0 || ordinal > 1024) {
    throw new CaravanError('ERR_CONFIG', `the number of a CUDA device must be an integer from 0 on, got ${wanted}`, {
      hint: 'it is the option `ordinal`, or CARAVAN_CUDA_DEVICE',
    })
  }
  const index = native(() => addon.openBackend(path, ordinal, budget, ops, onFinished))
  const [name, , capability] = facts.devices[ordinal]!
  return { index, ops, name, isa: `sm_${capability}`, threads: 1 }
}

const budgetOf = (bytes: number) => Math.min(Math.floor(bytes), Number.MAX_SAFE_INTEGER)

/** Commands that can be run again, and the ids that they use. */
export interface RecordedCommands {
  /** The number under which the native side keeps the commands. */
  plan: number
  ids: readonly number[]
}

/** What the command stream must know of a tensor. */
export interface OpTensor {
  id: number
  dtype: DType
  shape: Shape
}

/** What the calls of an op took together. */
export interface OpTime {
  op: string
  calls: number
  seconds: number
}

const absent: OpTensor = { id: 0, dtype: 'f32', shape: [] }

/** Bytes that a tensor needs. */
export function tensorBytes(dtype: DType, shape: Shape): number {
  return countOf(shape) * dtypeBytes[dtype]
}

function checkOptions(addon: Addon, options: { threads: number; budget: number; isa: string }): void {
  const { threads, budget, isa } = options
  if (!Number.isInteger(threads) || threads < 1 || threads > 1024) {
    throw new CaravanError('ERR_CONFIG', `threads must be an integer from 1 to 1024, got ${threads}`)
  }
  if (!(budget > 0)) throw new CaravanError('ERR_CONFIG', `the memory budget must be positive, got ${budget} bytes`)
  const levels = addon.isaLevels()
  if (isa !== '' && !levels.some(([name]) => name === isa)) {
    const names = levels.map(([name]) => name)
    const nearest = nearestName(isa, names)
    throw new CaravanError('ERR_CONFIG', `unknown instruction set '${isa}'; known here: ${names.join(', ')}`, {
      hint: nearest ? `did you mean '${nearest}'?` : 'unset CARAVAN_ISA to let the engine choose',
    })
  }
}

function toCaravanError(failure: NativeFailure): CaravanError {
  return new CaravanError(failure.code as ErrorCode, failure.message, {
    details: { op: failure.op, sequence: failure.sequence },
    cause: failure,
    hint:
      failure.code === 'ERR_OOM'
        ? 'use a smaller micro-batch, activation checkpointing, bf16, or raise the memory budget'
        : undefined,
  })
}

function native<T>(call: () => T): T {
  try {
    return call()
  } catch (error) {
    throw typeof (error as NativeFailure).code === 'string' ? toCaravanError(error as NativeFailure) : error
  }
}
