// A worker thread: answers with the digest of one pass, then works until it is terminated if told to.
import { parentPort, workerData } from 'node:worker_threads'
import { digest, makeBlock, open, pass, workForEver } from './compute.mjs'

const device = open(workerData.threads)
const block = makeBlock(device)
const gradients = pass(block)
const result = await digest(block, gradients)
gradients.dispose()
for (const tensor of Object.values(block)) tensor.dispose()
await device.idle()
parentPort.postMessage({ digest: result, live: device.stats().liveTensors })
if (workerData.forEver) await workForEver(device)
device.close()
