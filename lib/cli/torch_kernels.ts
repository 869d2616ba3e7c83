// PyTorch's kernels as rivals: one Python process that answers requests, a line of JSON each, so that both sides take
// turns under the same load. An op that PyTorch does not have is answered with nothing. What PyTorch can call is a
// rival of its own: the oneDNN inside it for matrix products, which PyTorch itself gives to another library; on a GPU
// its compiler, and attention by FlashAttention and by cuDNN.
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import type { Sample } from '../tensor/index.js'
import type { AbsentRival, Rival, RivalOptions } from './rival.js'
import { benchScript, pythonCommand } from './torch_peer.js'

type Peer = ChildProcessByStdio<Writable, Readable, null>

export class TorchKernels {
  readonly #waiting: ((line: string | undefined) => void)[] = []
  readonly #lines: string[] = []
  #ended = false

  private constructor(private readonly child: Peer) {
    const lines = createInterface({ input: child.stdout })
    lines.on('line', (line) => {
      const wake = this.#waiting.shift()
      if (wake) wake(line)
      else this.#lines.push(line)
    })
    const end = () => {
      this.#ended = true
      for (const wake of this.#waiting.splice(0)) wake(undefined)
    }
    lines.on('close', end)
    child.on('error', end)
    child.stdin.on('error', end)
  }

  /** Versions by the name of the library. */
  libraries: { [name: string]: string } = {}

  /** Starts the process; undefined when it has no PyTorch. */
  static async start(options: RivalOptions): Promise<TorchKernels | undefined> {
    const script = benchScript('torch_kernels.py')
    const words = [script, '--threads', String(options.threads), '--dtype', options.dtype]
    if (options.device === 'cuda') words.push('--device', 'cuda')
    const child = spawn(pythonCommand(), words, { stdio: ['pipe', 'pipe', 'ignore'] })
    const peer = new TorchKernels(child)
    const first = await peer.#line()
    const hello = first === undefined ? undefined : (JSON.parse(first) as { libraries?: { [name: string]: string } })
    if (hello?.libraries) {
      peer.libraries = hello.libraries
      return peer
    }
    peer.close()
    return undefined
  }

  /** Seconds for one call, measured over about `budget` seconds; undefined where the library has no such op. */
  async seconds(library: string, op: string, sample: Sample, budget: number): Promise<number | undefined> {
    if (this.#ended) return undefined
    this.child.stdin.write(`${JSON.stringify({ library, op, sample, budget })}\n`)
    const line = await this.#line()
    return line === undefined ? undefined : ((JSON.parse(line) as { seconds?: number }).seconds ?? undefined)
  }

  close(): void {
    this.child.kill()
  }

  #line(): Promise<string | undefined> {
    const ready = this.#lines.shift()
    if (ready !== undefined) return Promise.resolve(ready)
    if (this.#ended) return Promise.resolve(undefined)
    return new Promise((resolve) => this.#waiting.push(resolve))
  }
}

/** PyTorch, and the libraries that it can call. */
export async function startTorch(options: RivalOptions): Promise<(Rival | AbsentRival)[]> {
  const process = await TorchKernels.start(options)
  if (!process) {
    const [hint, what] = ['CARAVAN_PYTHON names another interpreter', options.device === 'cuda' ? ' for CUDA' : '']
    return [{ absent: `no PyTorch${what} beside it: ${pythonCommand()} has none (${hint})` }]
  }
  return Object.entries(process.libraries).map(([name, version]) => ({
    name,
    version,
    seconds: (op, sample, budget) => process.seconds(name, op, sample, budget),
    close: () => process.close(),
  }))
}
