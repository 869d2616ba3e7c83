import { afterAll, beforeAll, expect, it } from 'vitest'
import { Decoder } from '../../lib/nn/decoder.js'
import { type DecoderShape, ropeFrequencies } from '../../lib/nn/decoder_shape.js'
import { type ParameterPlace, ParameterScope } from '../../lib/nn/module.js'
import { fill, openDevice } from '../../lib/ops/index.js'
import type { Device } from '../../lib/runtime/index.js'

let device: Device
beforeAll(() => {
  device = openDevice({ threads: 1 })
})
afterAll(() => device.close())

const shape: DecoderShape = {
  V: 10,
  D: 8,
  L: 2,
  H: 2,
  K: 1,
  C: 4,
  F: 12,
  normPlacement: 'pre',
  normKind: 'rms',
  eps: 1e-5,
  queryKeyNorm: 'full',
  attentionBias: 'all',
  mlpBias: true,
  tiedHead: true,
  windows: [0, 0],
  clipQkv: undefined,
  rope: { theta: 10000, scaling: undefined },
}

it('calls parameters by the places they were asked for at, in order, and frees them', async () => {
  const places: ParameterPlace[] = []
  const scope = new ParameterScope((place) => {
    places.push(place)
    return fill(device, place.shape, { value: 1, dtype: 'f32' })
  })
  const decoder = new Decoder(scope.at('decoder'), shape)
  const parameters = [...decoder.parameters()]
  expect(parameters.map(([name, { shape }]) => [`decoder.${name}`, shape])).toEqual(
    places.map(({ name, shape }) => [name, shape]),
  )
  expect(places[0]).toEqual({ name: 'decoder.embedding.weight', shape: [10, 8], role: 'embedding' })
  expect(places.filter(({ role }) => role === 'branch_output').map(({ name }) => name)).toEqual([
    'decoder.blocks.0.attention.output.weight',
    'decoder.blocks.0.mlp.down.weight',
    'decoder.blocks.1.attention.output.weight',
    'decoder.blocks.1.mlp.down.weight',
  ])
  // Embedding and final norm; per block two norms, two norms of queries and keys, seven matrices with their biases.
  expect(places).toHaveLength(2 + 2 * (2 + 2 + 7 * 2))
  decoder.dispose()
  await device.idle()
  expect(device.stats().liveTensors).toBe(0)
})

it('has the rotary frequencies of Llama 3.1', () => {
  const scaling = {
    kind: 'llama3',
    factor: 8,
    lowFrequencyFactor: 1,
    highFrequencyFactor: 4,
    originalTokens: 8192,
  } as const
  const scaled = ropeFrequencies(128, { theta: 500000, scaling })
  const plain = ropeFrequencies(128, { theta: 500000, scaling: undefined })
  expect(plain[0]).toBe(1)
  expect(plain[1]).toBeCloseTo(500000 ** (-1 / 64), 15)
  // Wavelengths up to 2048 stay, those above 8192 are stretched eightfold.
  const wavelength = (j: number) => (2 * Math.PI) / plain[j]!
  for (const [j, f] of scaled.entries()) {
    if (wavelength(j) < 2048) expect(f).toBe(plain[j])
    else if (wavelength(j) > 8192) expect(f).toBe(plain[j]! / 8)
    else {
      const s = (8192 / wavelength(j) - 1) / 3
      expect(f).toBeCloseTo(((1 - s) * plain[j]!) / 8 + s * plain[j]!, 15)
    }
  }
  expect(scaled.filter((f, j) => f !== plain[j] && f !== plain[j]! / 8).length).toBeGreaterThan(3)
})
