// Four workers and the main thread compute the same; prints their answers.
import { Worker } from 'node:worker_threads'
import { digest, makeBlock, open, pass } from './compute.mjs'

const url = new URL('worker.mjs', import.meta.url)
const answers = [1, 2, 3, 4].map(
  (threads) =>
    new Promise((resolve, reject) => {
      const worker = new Worker(url, { workerData: { threads } })
      let answer
      worker.on('message', (message) => {
        answer = message
      })
      worker.on('error', reject)
      worker.on('exit', (code) => resolve({ ...answer, code }))
    }),
)
const device = open(1)
const block = makeBlock(device)
const main = await digest(block, pass(block))
console.log(JSON.stringify({ main, workers: await Promise.all(answers) }))
device.close()
