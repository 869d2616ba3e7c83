// Terminates working workers at random moments. Prints how long each termination took, in milliseconds. Arguments:
// seed, number of workers.
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { Random } from '../../../dist/base/random.js'
import { digest, makeBlock, open, pass } from './compute.mjs'

const [seed, count] = process.argv.slice(2).map(Number)
const random = new Random(seed)
const took = []
for (let i = 0; i < count; i++) {
  const worker = new Worker(new URL('worker.mjs', import.meta.url), { workerData: { threads: 2, forEver: true } })
  // Some are ended while they still load, most while they work.
  if (random.chance(0.75)) await new Promise((resolve) => worker.once('message', resolve))
  await sleep(random.integer(0, 40))
  const started = performance.now()
  await worker.terminate()
  took.push(Math.round(performance.now() - started))
}
const device = open(2)
const block = makeBlock(device)
console.log(JSON.stringify({ took, digest: await digest(block, pass(block)) }))
device.close()
