import { describe, expect, it } from 'vitest'
import { CaravanError, nearestName, throwIfAborted } from '../../lib/base/errors.js'

describe('nearestName', () => {
  const known = ['learning_rate', 'weight_decay', 'batch_size', 'warmup', 'lr']

  it.each([
    ['learning_rat', 'learning_rate'],
    ['learningrate', 'learning_rate'],
    ['LEARNING_RATE', 'learning_rate'],
    ['wieght_decay', 'weight_decay'],
    ['batchsize', 'batch_size'],
    ['l', 'lr'],
    ['warmup', 'warmup'],
  ])('%s -> %s', (word, expected) => {
    expect(nearestName(word, known)).toBe(expected)
  })

  it.each(['temperature', 'xyzzy_and_more', ''])('nothing is near %j', (word) => {
    expect(nearestName(word, ['learning_rate', 'weight_decay'])).toBeUndefined()
  })

  it('the first of equals wins, and nothing is near in an empty list', () => {
    expect(nearestName('cat', ['bat', 'hat'])).toBe('bat')
    expect(nearestName('cat', [])).toBeUndefined()
  })
})

describe('CaravanError', () => {
  it('is an Error with a code, details and a hint', () => {
    const cause = new Error('below')
    const error = new CaravanError('ERR_DATA', 'row 3 is no object', {
      details: { file: 'a.jsonl', line: 3 },
      hint: 'fix it',
      cause,
    })
    expect(error).toBeInstanceOf(Error)
    expect(error).toMatchObject({
      name: 'CaravanError',
      code: 'ERR_DATA',
      message: 'row 3 is no object',
      hint: 'fix it',
      cause,
    })
    expect(error.details).toEqual({ file: 'a.jsonl', line: 3 })
    expect(String(error)).toBe('CaravanError: row 3 is no object')
  })

  it('has no cause of its own unless one is given', () => {
    const error = new CaravanError('ERR_USAGE', 'x')
    expect('cause' in error).toBe(false)
    expect(error.details).toEqual({})
    expect(error.hint).toBeUndefined()
  })
})

describe('throwIfAborted', () => {
  it('throws once the signal has fired, with its reason', () => {
    const controller = new AbortController()
    throwIfAborted(undefined)
    throwIfAborted(controller.signal)
    controller.abort('enough')
    expect(() => throwIfAborted(controller.signal)).toThrow(
      expect.objectContaining({ code: 'ERR_ABORTED', cause: 'enough' }),
    )
  })
})

describe('CaravanError of another copy', () => {
  it('is known by another copy of its module, and nothing else is', async () => {
    const copy = (await import(`${new URL('../../lib/base/errors.js', import.meta.url).href}?copy`)) as {
      CaravanError: typeof CaravanError
    }
    expect(copy.CaravanError).not.toBe(CaravanError)
    expect(new copy.CaravanError('ERR_DATA', 'a row')).toBeInstanceOf(CaravanError)
    expect(new CaravanError('ERR_DATA', 'a row')).toBeInstanceOf(copy.CaravanError)
    for (const other of [new Error('a row'), { name: 'CaravanError', code: 'ERR_DATA' }, undefined, null, 'text']) {
      expect(other instanceof CaravanError).toBe(false)
    }
  })
})
