// The process that runs an ONNX graph, seen from its parent. It starts with the classifier and is not started again: a
// graph that ended it once would do so again.
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { CaravanError } from '../base/errors.js'
import { workerUrl } from '../base/worker.js'

export interface OnnxSetup {
  file: string
  threads: number
}

/** A batch: int64 inputs by name, each [B, S]. */
export interface OnnxJob {
  id: number
  inputs: Record<string, Int32Array>
  shape: [number, number]
  output: string
}

export interface OnnxOutput {
  /** Undefined where the output is no floating-point tensor. */
  values: Float64Array | undefined
  type: string
  shape: number[]
}

export interface OnnxSignature {
  inputs: string[]
  outputs: string[]
}

export type OnnxAnswer =
  | OnnxSignature
  | { failure: 'runtime' | 'graph'; message: string }
  | ({ id: number } & OnnxOutput)
  | { id: number; failure: 'run'; message: string }

interface Waiting<T> {
  resolve(value: T): void
  reject(error: CaravanError): void
}

export class OnnxProcess {
  readonly #file: string
  readonly #child: ChildProcess
  readonly #jobs = new Map<number, Waiting<OnnxOutput>>()
  #start: Waiting<OnnxSignature> | undefined
  #end: CaravanError | undefined
  #nextId = 0
  /** Names of the graph's inputs and outputs. ERR_CONFIG without the runtime, ERR_MODEL where it refuses the graph. */
  readonly signature: Promise<OnnxSignature>

  constructor(setup: OnnxSetup) {
    this.#file = setup.file
    this.signature = new Promise((resolve, reject) => {
      this.#start = { resolve, reject }
    })
    this.#child = fork(
      fileURLToPath(workerUrl(import.meta.url, './onnx_classifier_worker.js')),
      [JSON.stringify(setup)],
      {
        serialization: 'advanced',
        execArgv: [],
        env: { ...process.env, NODE_OPTIONS: '' },
        stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
      },
    )
    this.#child.on('message', (answer: OnnxAnswer) => this.#read(answer))
    this.#child.on('error', (cause) => this.#fail(this.#fault(`its process failed: ${cause.message}`)))
    this.#child.on('exit', (code, signal) => {
      this.#fail(this.#fault(`the process that runs it ended (${signal ?? `exit code ${code}`})`))
    })
    this.#child.unref()
  }

  /** Runs the graph once. ERR_MODEL where it does not run. */
  run(job: Omit<OnnxJob, 'id'>): Promise<OnnxOutput> {
    if (this.#end !== undefined) return Promise.reject(this.#end)
    const id = this.#nextId++
    return new Promise((resolve, reject) => {
      this.#jobs.set(id, { resolve, reject })
      this.#child.channel?.ref()
      this.#child.send({ id, ...job } satisfies OnnxJob, () => {})
    })
  }

  /** Ends the process; resolves when it has gone. What waits is rejected with ERR_DISPOSED. */
  async dispose(): Promise<void> {
    this.#fail(new CaravanError('ERR_DISPOSED', `${this.#file}: the classifier has been disposed of`))
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return
    this.#child.ref()
    const ended = once(this.#child, 'exit')
    this.#child.kill('SIGKILL')
    await ended
  }

  #read(answer: OnnxAnswer): void {
    if ('inputs' in answer) this.#start?.resolve(answer)
    else if (!('id' in answer))
      this.#fail(answer.failure === 'runtime' ? noRuntime(answer.message) : this.#fault(answer.message))
    else {
      const waiting = this.#jobs.get(answer.id)
      this.#jobs.delete(answer.id)
      if ('failure' in answer) waiting?.reject(this.#fault(answer.message))
      else waiting?.resolve(answer)
    }
    // Nothing keeps this process alive but work.
    if (this.#jobs.size === 0) this.#child.channel?.unref()
  }

  #fail(error: CaravanError): void {
    this.#end ??= error
    this.#start?.reject(error)
    for (const { reject } of this.#jobs.values()) reject(error)
    this.#jobs.clear()
  }

  #fault(message: string): CaravanError {
    return new CaravanError('ERR_MODEL', `${this.#file}: ${message}`, { details: { file: this.#file } })
  }
}

function noRuntime(message: string): CaravanError {
  const isAbsent = /Cannot find (package|module) 'onnxruntime-/.test(message)
  const what = isAbsent ? 'which is not installed' : `which does not load: ${message}`
  return new CaravanError('ERR_CONFIG', `ONNX classifiers need the package onnxruntime-node, ${what}`, {
    details: { package: 'onnxruntime-node' },
    hint: 'npm install onnxruntime-node (with --onnxruntime-node-install=skip where only the CPU is used or there is no network)',
  })
}
