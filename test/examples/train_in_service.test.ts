// The example as a client sees it, over HTTP: steps arrive, none arrives while paused, abort ends the run, and the
// health check answers while every core trains.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { tulu3 } from 'caravan-train'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { main, type Service } from '../../examples/train_in_service.js'

let folder: string
let service: Service

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'caravan-service-'))
  const overrides = {
    'base.tokens': '60000',
    'base.width': '64',
    'base.layers': '2',
    'base.feedForwardWidth': '128',
    'base.vocabularySize': '400',
  }
  service = await main(tulu3(), { directory: join(folder, 'run'), stages: ['base'], overrides, port: 0 })
})
afterAll(async () => {
  await service.close()
  await rm(folder, { recursive: true, force: true })
})

interface ServerEvent {
  event: string
  data: unknown
}

/** The events of a stream, as they come. */
async function* events(): AsyncGenerator<ServerEvent> {
  const response = await fetch(`${service.url}/events`)
  expect(response.headers.get('content-type')).toBe('text/event-stream')
  let text = ''
  for await (const chunk of response.body!.pipeThrough(new TextDecoderStream())) {
    text += chunk
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const [, event, data] = /^event: (.*)\ndata: (.*)$/.exec(text.slice(0, end))!
      text = text.slice(end + 2)
      yield { event: event!, data: JSON.parse(data!) }
    }
  }
}

const post = async (path: string) => (await fetch(service.url + path, { method: 'POST' })).json()
const health = async () => (await (await fetch(`${service.url}/healthz`)).json()) as { state: string; step: number }
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))

describe('examples/train_in_service', () => {
  it('streams steps, pauses, resumes, answers meanwhile, and aborts', { timeout: 60_000 }, async () => {
    const seen: ServerEvent[] = []
    const reading = (async () => {
      for await (const event of events()) seen.push(event)
    })()
    const steps = () => seen.filter(({ event }) => event === 'step').length
    const until = async (condition: () => boolean) => {
      while (!condition()) {
        expect(seen.find(({ event }) => event === 'failure')).toBeUndefined()
        await sleep(5)
      }
    }
    await until(() => steps() >= 2)

    const latencies: number[] = []
    const before = steps()
    while (latencies.length < 100 || steps() < before + 2) {
      const started = performance.now()
      expect((await health()).state).toBe('running')
      latencies.push(performance.now() - started)
    }
    latencies.sort((a, b) => a - b)
    // Client and server share this thread with the run. A blocked loop would be late by a whole step, over and over;
    // the bound leaves room for a machine that is busy with other things.
    expect(latencies[Math.floor(latencies.length * 0.5)]).toBeLessThan(25)
    expect(latencies[Math.floor(latencies.length * 0.99)]).toBeLessThan(300)

    expect(await post('/pause')).toMatchObject({ state: 'paused' })
    await sleep(50) // what was sent before the pause may still be on its way, on the other connection
    const paused = steps()
    await sleep(500)
    expect(steps()).toBe(paused)
    expect(await health()).toMatchObject({ state: 'paused' })

    expect(await post('/resume')).toMatchObject({ state: 'running' })
    await until(() => steps() >= paused + 2)
    const numbers = seen.flatMap(({ event, data }) => (event === 'step' ? [(data as { step: number }).step] : []))
    expect(numbers).toEqual(Array.from(numbers, (_, i) => numbers[0]! + i))

    await post('/abort')
    await service.finished
    await reading
    expect(seen.at(-1)).toEqual({ event: 'state', data: 'aborted' })
    expect(await health()).toMatchObject({ state: 'aborted' })
    expect((await fetch(`${service.url}/unknown`)).status).toBe(404)
  })
})
