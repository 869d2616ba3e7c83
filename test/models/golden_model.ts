// Reference models and their results: folders in test/golden/models, inputs and outputs in test/golden/model_io.
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseSafetensors } from '../../lib/data/safetensors.js'
import type { CausalLm } from '../../lib/models/index.js'
import type { PackedRows } from '../../lib/nn/decoder.js'
import type { Device } from '../../lib/runtime/index.js'
import { Tensor } from '../../lib/tensor/index.js'

export const goldenNames = [
  'llama_gqa_rope3',
  'llama_mha_tied',
  'llama_bf16',
  'qwen2_bias_tied',
  'qwen3_qknorm',
  'mistral_swa',
  'olmo2',
  'olmo1',
] as const
export const cases = ['plain', 'right_pad', 'left_pad', 'packed'] as const
export type CaseName = (typeof cases)[number]

const root = fileURLToPath(new URL('../golden/', import.meta.url))
export const modelFolder = (name: string) => `${root}models/${name}`

export interface Deviation {
  max_abs: number
  rms: number
  ref_max: number
}

interface Compared {
  fp32_deviation: Deviation
  suggested_atol: number
  bf16_deviation?: Deviation
}

export interface GradientFacts extends Compared {
  shape: number[]
  l2: number
  sum: number
  stored: string
}

export interface GoldenFacts {
  cases: {
    [K in CaseName]: { shape: number[]; ce_sum: number; target_tokens: number; logits: Compared; logprobs: Compared }
  }
  grads: { [name in 'right_pad' | 'packed']: { params: { [name: string]: GradientFacts }; global_norm: number } }
  generation?: {
    prompt_ids: number[][]
    attention_mask: number[][]
    new_tokens: number
    greedy: { tokens: number[]; logprobs: number[] }[]
    eos_case: { eos_token_id: number; pad_token_id: number; output: number[][] }
  }
}

export function goldenFacts(name: string): GoldenFacts {
  return JSON.parse(readFileSync(`${root}model_io/${name}.json`, 'utf8')) as GoldenFacts
}

export interface GoldenTensor {
  shape: number[]
  data: Float32Array | Int32Array
}

/** All tensors (F32 and I32) of a file in test/golden/model_io. */
export function goldenTensors(file: string): Map<string, GoldenTensor> {
  const path = `${root}model_io/${file}.safetensors`
  if (!existsSync(path)) return new Map()
  const bytes = readFileSync(path)
  const found = new Map<string, GoldenTensor>()
  for (const [name, { dtype, shape, byteOffset, byteLength }] of parseSafetensors(path, bytes).tensors) {
    const part = bytes.buffer.slice(bytes.byteOffset + byteOffset, bytes.byteOffset + byteOffset + byteLength)
    found.set(name, { shape, data: dtype === 'I32' ? new Int32Array(part) : new Float32Array(part) })
  }
  return found
}

/** A case without its padding: sequences end to end. Row n of the pack is element `source[n]` of the case's [B,T]. */
export interface PackedCase {
  source: number[]
  ids: Int32Array
  positions: Int32Array
  /** Token that row n must predict, or -100. */
  targets: Int32Array
  cuSeqlens: number[]
}

export function packCase(tensors: Map<string, GoldenTensor>, name: CaseName): PackedCase {
  const field = (key: string) => tensors.get(`${name}.${key}`)
  const [B, T] = field('input_ids')!.shape as [number, number]
  const mask = field('attention_mask')?.data
  const source: number[] = []
  const cuSeqlens = [0]
  for (let b = 0; b < B; b++) {
    for (let t = 0; t < T; t++) if (!mask || mask[b * T + t] === 1) source.push(b * T + t)
    if (name !== 'packed') cuSeqlens.push(source.length)
  }
  if (name === 'packed') cuSeqlens.push(...[...field('cu_seqlens')!.data].slice(1))
  const pick = (key: string) => Int32Array.from(source, (i) => field(key)!.data[i]!)
  const labels = field('labels')!.data
  return {
    source,
    ids: pick('input_ids'),
    positions: pick('position_ids'),
    targets: Int32Array.from(source, (i) => (i % T === T - 1 ? -100 : labels[i + 1]!)),
    cuSeqlens,
  }
}

/** The rows of a packed case on a device. The caller disposes them. */
export function rowsOnDevice(device: Device, packed: Omit<PackedCase, 'source' | 'targets'>): PackedRows {
  const { ids, positions, cuSeqlens } = packed
  const table = cuSeqlens.slice(1).flatMap((end, s) => [cuSeqlens[s]!, end, cuSeqlens[s]!, end])
  return {
    ids: Tensor.from(device, ids, [ids.length]),
    positions: Tensor.from(device, positions, [positions.length]),
    segments: Tensor.from(device, Int32Array.from(table), [table.length / 4, 4]),
  }
}

/** Largest absolute difference and root mean square difference. */
export function deviation(got: ArrayLike<number>, wanted: ArrayLike<number>): { max: number; rms: number } {
  let [max, squares] = [0, 0]
  if (got.length !== wanted.length) return { max: Number.POSITIVE_INFINITY, rms: Number.POSITIVE_INFINITY }
  for (let i = 0; i < got.length; i++) {
    const difference = Math.abs(got[i]! - wanted[i]!)
    // NaN must count as a difference.
    if (!(difference <= max)) max = difference
    squares += difference ** 2
  }
  return { max, rms: Math.sqrt(squares / Math.max(1, got.length)) }
}

/** Values of every parameter by name. */
export async function parameterValues(model: CausalLm): Promise<Map<string, Float32Array>> {
  const values = new Map<string, Float32Array>()
  for (const [name, tensor] of model.parameters()) values.set(name, (await tensor.read()) as Float32Array)
  return values
}

/** Names under which two sets of values are not the same bits (or that only one has). */
export function differing(a: Map<string, Float32Array>, b: Map<string, Float32Array>): string[] {
  const bits = (values: Float32Array | undefined) =>
    values && Buffer.from(values.buffer, values.byteOffset, values.byteLength)
  return [...new Set([...a.keys(), ...b.keys()])].filter((name) => {
    const [one, other] = [bits(a.get(name)), bits(b.get(name))]
    return !one || !other || !one.equals(other)
  })
}
