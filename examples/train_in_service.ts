// A web service that trains in the background and goes on answering. Training is an async iterator, so it needs no
// thread and no queue of its own here: pausing is not asking for the next event, since nothing runs while nobody asks.
//   node examples/train_in_service.ts [RUN_FOLDER] [PORT]          (Node 22.18 or newer runs TypeScript)
//   GET /healthz    GET /events (server-sent events)    POST /pause  /resume  /abort
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import { CaravanError, type Recipe, type RunEvent, type RunOptions, run, tulu3 } from 'caravan-train'

/** A reader that falls this far behind is cut off; it may connect again. */
const MAX_BACKLOG_BYTES = 1 << 20

type State = 'running' | 'paused' | 'done' | 'aborted' | 'failed'

class TrainingJob {
  state: State = 'running'
  step = 0
  /** Settles when the run has ended, whatever way. */
  readonly finished: Promise<void>
  readonly #readers = new Set<ServerResponse>()
  readonly #abort = new AbortController()
  #gate: Promise<void> = Promise.resolve()
  #open = () => {}

  constructor(recipe: Recipe, options: RunOptions) {
    this.finished = this.#follow(recipe, options)
  }

  /** The step under way is finished, but its event is held back until resume(). */
  pause(): void {
    if (this.state !== 'running') return
    this.state = 'paused'
    this.#gate = new Promise((resolve) => {
      this.#open = resolve
    })
  }

  resume(): void {
    if (this.state === 'paused') this.state = 'running'
    this.#open()
  }

  /** Ends the run within a micro-batch. What has been saved in the run folder stays. */
  abort(): void {
    this.#abort.abort()
    this.#open()
  }

  addReader(response: ServerResponse): void {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' })
    response.write(`event: state\ndata: ${JSON.stringify(this.state)}\n\n`)
    this.#readers.add(response)
    response.on('close', () => this.#readers.delete(response))
  }

  async #follow(recipe: Recipe, options: RunOptions): Promise<void> {
    try {
      for await (const event of run(recipe, { ...options, signal: this.#abort.signal })) {
        await this.#gate
        if (this.#abort.signal.aborted) break
        this.#publish(event)
      }
      this.state = this.#abort.signal.aborted ? 'aborted' : 'done'
    } catch (error) {
      const { code, message, hint } = error instanceof CaravanError ? error : unexpected(error)
      this.state = this.#abort.signal.aborted ? 'aborted' : 'failed'
      if (this.state === 'failed') this.#send('failure', { code, message, hint })
    } finally {
      this.#send('state', this.state)
      for (const response of this.#readers) response.end()
    }
  }

  #publish(event: RunEvent): void {
    if (event.type === 'step') this.step = event.step
    this.#send(event.type, event)
  }

  #send(name: string, data: unknown): void {
    for (const response of this.#readers) {
      if (response.writableLength > MAX_BACKLOG_BYTES) response.destroy()
      else response.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`)
    }
  }
}

/** A bug must not take the service down with the run. */
function unexpected(cause: unknown): CaravanError {
  return new CaravanError('ERR_INTERNAL', cause instanceof Error ? cause.message : String(cause), { cause })
}

export interface Service {
  url: string
  /** Settles when the run has ended; the service goes on answering. */
  finished: Promise<void>
  /** Ends the run and the server. */
  close(): Promise<void>
}

/** Starts to train `recipe` and to listen on `port` (0: any free one). */
export async function main(recipe: Recipe, options: RunOptions & { port: number }): Promise<Service> {
  const job = new TrainingJob(recipe, options)
  const actions: { [path: string]: () => void } = {
    '/pause': () => job.pause(),
    '/resume': () => job.resume(),
    '/abort': () => job.abort(),
  }
  const server = createServer(({ method, url = '' }, response) => {
    const action = method === 'POST' ? actions[url] : undefined
    if (method === 'GET' && url === '/events') return job.addReader(response)
    if (!action && !(method === 'GET' && url === '/healthz')) return response.writeHead(404).end()
    action?.()
    response.setHeader('content-type', 'application/json')
    return response.end(JSON.stringify({ state: job.state, step: job.step }))
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject).listen(options.port, '127.0.0.1', resolve)
  })
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const close = async () => {
    job.abort()
    await job.finished
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  }
  return { url, finished: job.finished, close }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [directory = 'runs/service', port = '8080'] = process.argv.slice(2)
  const service = await main(tulu3(), { directory, port: Number(port) })
  process.once('SIGTERM', () => service.close())
  console.log(`training in ${directory}; follow it with: curl -N ${service.url}/events`)
}
