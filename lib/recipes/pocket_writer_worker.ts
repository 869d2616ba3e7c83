// Entry of the thread that writes the base corpus: for every chunk it is asked for, the next documents.
import { parentPort, workerData } from 'node:worker_threads'
import { pocketData } from './pocket_data.js'
import type { PocketWriterData, PocketWriterRequest } from './pocket_writer.js'

const port = parentPort!
const { seed, chunkTexts } = workerData as PocketWriterData
const documents = pocketData(seed).baseDocuments()[Symbol.iterator]()

port.on('message', (chunks: PocketWriterRequest) => {
  for (let chunk = 0; chunk < chunks; chunk++) {
    port.postMessage(Array.from({ length: chunkTexts }, () => documents.next().value as string))
  }
})
