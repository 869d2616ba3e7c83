// Process that runs an ONNX graph. A process and not a thread: the runtime's binding before 1.24 loads only once into a
// process, its run() blocks, and a graph that brings it down must not bring training down.
import type { OnnxAnswer, OnnxJob, OnnxSetup } from './onnx_classifier_process.js'

/** What is used of the runtime. Its own types are not, for it need not be installed. */
interface Runtime {
  InferenceSession: { create(file: string, options: Record<string, unknown>): Promise<Session> }
  Tensor: new (type: 'int64', data: BigInt64Array, shape: readonly number[]) => unknown
}

interface Session {
  inputNames: readonly string[]
  outputNames: readonly string[]
  run(feeds: Record<string, unknown>, outputs: string[]): Promise<Record<string, Output>>
}

interface Output {
  type: string
  data: unknown
  dims: readonly number[]
}

const RUNTIME: string = 'onnxruntime-node'
const setup = JSON.parse(process.argv[2]!) as OnnxSetup
const send = (answer: OnnxAnswer) => process.send!(answer)
const textOf = (error: unknown) => (error instanceof Error ? error.message : String(error))

process.on('disconnect', () => process.exit())

async function start(): Promise<void> {
  let runtime: Runtime
  try {
    runtime = ((await import(RUNTIME)) as { default: Runtime }).default
  } catch (error) {
    send({ failure: 'runtime', message: textOf(error) })
    return
  }
  let session: Session
  try {
    session = await runtime.InferenceSession.create(setup.file, {
      intraOpNumThreads: setup.threads,
      interOpNumThreads: 1,
      logSeverityLevel: 4,
    })
  } catch (error) {
    send({ failure: 'graph', message: textOf(error) })
    return
  }
  let queue = Promise.resolve()
  process.on('message', (job: OnnxJob) => {
    queue = queue.then(() => run(runtime, session, job))
  })
  send({ inputs: [...session.inputNames], outputs: [...session.outputNames] })
}

async function run({ Tensor }: Runtime, session: Session, { id, inputs, shape, output }: OnnxJob): Promise<void> {
  try {
    const feeds = Object.fromEntries(
      Object.entries(inputs).map(([name, values]) => [
        name,
        new Tensor('int64', BigInt64Array.from(values, BigInt), shape),
      ]),
    )
    const { type, data, dims } = (await session.run(feeds, [output]))[output]!
    const values = data instanceof Float32Array || data instanceof Float64Array ? Float64Array.from(data) : undefined
    send({ id, values, type, shape: [...dims] })
  } catch (error) {
    send({ id, failure: 'run', message: textOf(error) })
  }
}

await start()
