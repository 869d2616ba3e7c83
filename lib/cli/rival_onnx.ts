// ONNX Runtime as a rival, in this process: its Node package runs a graph of one op. Outputs are made beforehand, so
// that a call allocates nothing; what a call through the package costs (some 20 us) is part of its time.
import { Random } from '../base/random.js'
import type { Sample } from '../tensor/index.js'
import { type AbsentRival, optionalPackage, type Rival, type RivalOptions } from './rival.js'
import { type OnnxCase, onnxGraph } from './rival_onnx_graphs.js'
import { type OnnxValue, onnxModel } from './rival_onnx_model.js'

/** What is used of the package: its types are not there where it is absent. */
interface OnnxRuntime {
  InferenceSession: { create(model: Uint8Array, options: object): Promise<Session> }
  Tensor: new (type: string, data: Float32Array | BigInt64Array | Uint8Array, shape: readonly number[]) => object
  env: { versions: { node?: string; common?: string } }
}

interface Session {
  run(inputs: object, outputs: object): Promise<unknown>
  release(): Promise<void>
}

const PACKAGE = 'onnxruntime-node'

export async function startOnnxRuntime({ threads, dtype }: RivalOptions): Promise<Rival | AbsentRival> {
  const runtime = await optionalPackage<OnnxRuntime>(PACKAGE)
  if (!runtime) return { absent: `no ONNX Runtime beside it: ${PACKAGE} is not installed` }
  if (dtype !== 'fp32') return { absent: 'no ONNX Runtime beside it: its CPU kernels take fp32' }
  return new OnnxRival(runtime, threads)
}

class OnnxRival implements Rival {
  readonly name = 'onnx'
  readonly version: string
  #key = ''
  #run: (() => Promise<unknown>) | undefined
  #session: Session | undefined
  #repeats = 0

  constructor(
    private readonly runtime: OnnxRuntime,
    private readonly threads: number,
  ) {
    this.version = runtime.env.versions.node ?? runtime.env.versions.common ?? ''
  }

  async seconds(op: string, sample: Sample, budget: number): Promise<number | undefined> {
    const key = JSON.stringify([op, sample])
    if (key !== this.#key) await this.#open(key, onnxGraph(op, sample))
    if (!this.#run) return undefined
    if (this.#repeats === 0) {
      await this.#run()
      this.#repeats = Math.max(1, Math.min(2000, Math.ceil(budget / Math.max(1e-7, await this.#timed(1)))))
    }
    return await this.#timed(this.#repeats)
  }

  close(): void {
    this.#session?.release()
    this.#session = undefined
    this.#run = undefined
  }

  async #timed(repeats: number): Promise<number> {
    const started = performance.now()
    for (let i = 0; i < repeats; i++) await this.#run!()
    return (performance.now() - started) / 1000 / repeats
  }

  /** One session at a time, so that one op's data are in memory. */
  async #open(key: string, graph: OnnxCase | undefined): Promise<void> {
    await this.#session?.release()
    this.#key = key
    this.#session = undefined
    this.#run = undefined
    this.#repeats = 0
    if (!graph) return
    const session = await this.runtime.InferenceSession.create(onnxModel(graph), {
      intraOpNumThreads: this.threads,
      interOpNumThreads: 1,
      logSeverityLevel: 4,
    })
    const random = new Random(1, 12)
    const tensors = (values: readonly OnnxValue[]) =>
      Object.fromEntries(values.map((value) => [value.name, this.#tensor(value, random, graph.indexLimit ?? 1)]))
    const [inputs, outputs] = [tensors(graph.inputs), tensors(graph.outputs)]
    this.#session = session
    this.#run = () => session.run(inputs, outputs)
  }

  #tensor({ type, shape }: OnnxValue, random: Random, indexLimit: number): object {
    const count = shape.reduce((product, size) => product * size, 1)
    if (type === 'int64') {
      return new this.runtime.Tensor(
        type,
        BigInt64Array.from({ length: count }, () => BigInt(random.integer(0, indexLimit))),
        shape,
      )
    }
    if (type === 'bool') return new this.runtime.Tensor(type, new Uint8Array(count), shape)
    // Positive, since log and sqrt are among the ops.
    return new this.runtime.Tensor(
      'float32',
      Float32Array.from({ length: count }, () => 0.1 + random.uniform()),
      shape,
    )
  }
}
