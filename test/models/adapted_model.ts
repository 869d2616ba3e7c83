// What the tests of adapters share: the reference model, outputs and values.
import { type AdaptableModel, adapterParameters, type CausalLm } from '../../lib/models/index.js'
import { linear, randomNormal, scatterRows } from '../../lib/ops/index.js'
import { scope, Tensor } from '../../lib/tensor/index.js'
import { goldenTensors, packCase, rowsOnDevice } from './golden_model.js'

export const base = 'llama_gqa_rope3'
export const packed = packCase(goldenTensors(base), 'packed')
export const options = { rank: 4, alpha: 8, seed: 5 }

export async function logitsOf(model: CausalLm): Promise<Map<string, Float32Array>> {
  const logits = scope(() => linear(model.hidden(rowsOnDevice(model.device, packed)), model.head))
  const values = (await logits.read()) as Float32Array
  logits.dispose()
  return new Map([['logits', values]])
}

export async function adapterValues(model: AdaptableModel): Promise<Map<string, Float32Array>> {
  const values = new Map<string, Float32Array>()
  for (const [name, tensor] of adapterParameters(model)) values.set(name, (await tensor.read()) as Float32Array)
  return values
}

/** Random values in every B, which starts as zero. */
export function fillB(model: AdaptableModel): void {
  let stream = 100
  for (const { matrices } of model.decoder.lora!.layers.values()) {
    const { shape } = matrices.b
    scope(() => {
      const values = randomNormal(model.device, shape, { deviation: 0.3, seed: 1, stream: stream++, dtype: 'f32' })
      const index = Tensor.from(
        model.device,
        Int32Array.from({ length: shape[0]! }, (_, i) => i),
        [shape[0]!],
      )
      scatterRows(matrices.b, values, index)
    })
  }
}
