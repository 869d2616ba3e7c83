// TensorFlow.js as a rival, in this process and in pure JavaScript (its CPU backend): what a program for Node has
// without native code. One thread, f32, and ops that it has or that are two or three of its own.
import type { Sample } from '../tensor/index.js'
import { type AbsentRival, optionalPackage, type Rival, type RivalOptions } from './rival.js'

interface TfTensor {
  dataSync(): ArrayLike<number>
  dispose(): void
}

/** What is used of the package: its types are not there where it is absent. */
interface TensorFlow {
  version: { 'tfjs-core'?: string }
  enableProdMode(): void
  setBackend(name: string): Promise<boolean>
  tidy<T>(body: () => T): T
  keep(tensor: TfTensor): TfTensor
  disposeVariables(): void
  fill(shape: readonly number[], value: number): TfTensor
  randomUniform(shape: readonly number[], low: number, high: number, type: string): TfTensor
  matMul(a: TfTensor, b: TfTensor, transposeA?: boolean, transposeB?: boolean): TfTensor
  gather(x: TfTensor, indices: TfTensor): TfTensor
  mul(a: TfTensor, b: TfTensor): TfTensor
  [unary: string]: unknown
}

const PACKAGE = '@tensorflow/tfjs'
/** Multiply-adds of the largest matrix product that it is asked for: about a second's work. */
const MOST_PRODUCTS = 2 ** 28
const unary = ['neg', 'exp', 'log', 'sqrt', 'sigmoid', 'cos', 'sin', 'tanh']
const binary = ['add', 'sub', 'mul', 'div', 'maximum']

export async function startTensorFlow({ dtype }: RivalOptions): Promise<Rival | AbsentRival> {
  const tf = await optionalPackage<TensorFlow>(PACKAGE)
  if (!tf) return { absent: `no TensorFlow.js beside it: ${PACKAGE} is not installed` }
  if (dtype !== 'fp32') return { absent: 'no TensorFlow.js beside it: it has no bf16' }
  // Otherwise it prints that there is a faster package.
  tf.enableProdMode()
  await tf.setBackend('cpu')
  return new TensorFlowRival(tf)
}

class TensorFlowRival implements Rival {
  readonly name = 'tfjs'
  readonly version: string
  #key = ''
  #call: (() => TfTensor) | undefined
  #data: TfTensor[] = []
  #repeats = 0

  constructor(private readonly tf: TensorFlow) {
    this.version = tf.version['tfjs-core'] ?? ''
  }

  async seconds(op: string, sample: Sample, budget: number): Promise<number | undefined> {
    const key = JSON.stringify([op, sample])
    if (key !== this.#key) {
      this.close()
      this.#key = key
      this.#call = this.#maker(op, sample)
      this.#repeats = 0
    }
    if (!this.#call) return undefined
    if (this.#repeats === 0) {
      const first = this.#timed(1)
      this.#repeats = Math.max(1, Math.min(2000, Math.ceil(budget / first)))
      if (first > budget) return first
    }
    return this.#timed(this.#repeats)
  }

  close(): void {
    for (const tensor of this.#data.splice(0)) tensor.dispose()
    this.#call = undefined
  }

  #timed(repeats: number): number {
    const started = performance.now()
    for (let i = 0; i < repeats; i++) this.tf.tidy(() => this.#call!().dataSync())
    return Math.max(1e-7, (performance.now() - started) / 1000 / repeats)
  }

  #tensor(shape: readonly number[], options: { below?: number } = {}): TfTensor {
    const { below } = options
    // Positive, since log and sqrt are among the ops; the values do not matter to its time.
    const isIndex = below !== undefined
    const tensor = isIndex ? this.tf.randomUniform(shape, 0, below, 'int32') : this.tf.fill(shape, 0.5)
    this.#data.push(tensor)
    return tensor
  }

  #maker(op: string, sample: Sample): (() => TfTensor) | undefined {
    const { tf } = this
    const of = (name: string) => Number(sample[name])
    const rows = (sample.lead ?? [of('N')]).reduce((product, size) => product * size, 1)
    if (unary.includes(op)) {
      const x = this.#tensor(sample.shapes!.x!)
      return () => (tf[op] as (x: TfTensor) => TfTensor)(x)
    }
    if (binary.includes(op)) {
      const [a, b] = [this.#tensor(sample.shapes!.a!), this.#tensor(sample.shapes!.b!)]
      return () => (tf[op] as (a: TfTensor, b: TfTensor) => TfTensor)(a, b)
    }
    const [D, F] = [of('D'), of('F')]
    const product = (a: readonly number[], b: readonly number[], turned: [boolean, boolean]) => {
      if (rows * D * F > MOST_PRODUCTS) return undefined
      const [x, y] = [this.#tensor(a), this.#tensor(b)]
      return () => tf.matMul(x, y, ...turned)
    }
    if (op === 'linear') return product([rows, D], [F, D], [false, true])
    if (op === 'linear_backward_input') return product([rows, F], [F, D], [false, false])
    if (op === 'linear_backward_weight') return product([rows, F], [rows, D], [true, false])
    if (op === 'embedding') {
      const [w, ids] = [this.#tensor([of('V'), D]), this.#tensor([of('N')], { below: of('V') })]
      return () => tf.gather(w, ids)
    }
    if (op === 'swiglu') {
      const [gate, up] = [this.#tensor([rows, F]), this.#tensor([rows, F])]
      const sigmoid = tf.sigmoid as (x: TfTensor) => TfTensor
      return () => tf.mul(tf.mul(gate, sigmoid(gate)), up)
    }
    return undefined
  }
}
