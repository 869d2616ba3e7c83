import { describe, expect, it } from 'vitest'
import { pocketData } from '../../lib/recipes/pocket_data.js'
import { PocketWriter } from '../../lib/recipes/pocket_writer.js'

describe('the thread that writes the corpus', () => {
  it('writes the documents of the seed, in order, past what it writes ahead', async () => {
    const writer = new PocketWriter(7, 3)
    try {
      const documents = pocketData(7).baseDocuments()[Symbol.iterator]()
      for (let chunk = 0; chunk < 12; chunk++) {
        const texts = await writer.next()
        expect(texts.length).toBeGreaterThan(0)
        expect(texts).toEqual(texts.map(() => documents.next().value))
        if (chunk === 0) await new Promise((resolve) => setTimeout(resolve, 300)) // until three are waiting
      }
    } finally {
      await writer.close()
    }
  })

  it('gives a typed error when it has ended, to who waits and to who asks', async () => {
    const writer = new PocketWriter(1)
    const first = expect(writer.next()).rejects.toMatchObject({ code: 'ERR_INTERNAL' })
    await writer.close()
    await first
    await expect(writer.next()).rejects.toThrow('the thread that writes the corpus ended with code')
  })

  it('gives a typed error when it cannot write', async () => {
    const writer = new PocketWriter(-1)
    await expect(writer.next()).rejects.toThrow('the thread that writes the corpus failed: pocket data: seed must be')
    await writer.close()
  })
})
