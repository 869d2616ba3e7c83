// Adapters of whole models: which layers get one, what is trained, switching it off, and merging it into the weights.
// Only linear layers of the blocks can have one: the output head meets the tokens inside the fused losses alone, as a
// plain matrix.
import { CaravanError, nearestName, throwIfAborted } from '../base/errors.js'
import type { Decoder } from '../nn/decoder.js'
import { Linear } from '../nn/linear.js'
import { DropoutMasks, Lora, type LoraAdapter, type LoraMatrices, newLoraMatrices, rowLengths } from '../nn/lora.js'
import { cast, iota, scatterRows } from '../ops/index.js'
import type { Device } from '../runtime/index.js'
import { keep, scope, type Tensor, withoutTape } from '../tensor/index.js'
import type { DecoderConfig } from './decoder_config.js'
import { huggingFaceName } from './parameter_names.js'
import { familyNamed } from './registry.js'

/** A model whose blocks can have an adapter: a language model, or a decoder with another head. */
export interface AdaptableModel {
  readonly config: DecoderConfig
  readonly decoder: Decoder
  readonly device: Device
  parameters(): Map<string, Tensor>
}

/** The word for every linear layer of the blocks, as in PEFT. */
export const ALL_LINEAR = 'all-linear'

export interface LoraSpec {
  rank: number
  /** The low-rank product is scaled by alpha / rank, or with rankStabilised by alpha / sqrt(rank). */
  alpha: number
  rankStabilised?: boolean
  /** Also trains the lengths of the rows of the changed weights (DoRA, Liu et al. 2024); default false. */
  decomposed?: boolean
  /** Share of the elements of a layer's input that its adapter does not see in a training pass; default 0. */
  dropout?: number
  /** Last parts of the names of layers (q_proj, down_proj, ...), whole names, or all-linear, which is the default. */
  targetModules?: readonly string[]
}

export interface LoraOptions extends LoraSpec {
  /** Decides the first A and the dropout masks. */
  seed: number
}

/** Gives layers of `model` new adapters, which are trained from now on in place of its weights. ERR_CONFIG for an
 *  impossible option, for a name that no layer has, and for a model that has an adapter already. */
export function addAdapter(model: AdaptableModel, options: LoraOptions): Lora {
  const { rank, alpha, rankStabilised = false, decomposed = false, dropout = 0, seed } = options
  const { targetModules = [ALL_LINEAR] } = options
  checkSpec(options)
  const layers = targetedLayers(linearLayers(model), targetModules)
  const lora = attach(model, { dropout, seed })
  for (const [name, linear] of layers) {
    const [outputs, inputs] = linear.weight.shape as [number, number]
    const sizes = { inputs, outputs, rank }
    const matrices = newLoraMatrices(model.device, sizes, { seed, place: lora.layers.size })
    if (decomposed) matrices.magnitude = keep(scope(() => rowLengths(cast(linear.weight, 'f32'))))
    linear.adapter = lora.add(name, matrices, { alpha, rankStabilised })
  }
  trainAdapter(model)
  return lora
}

/** ERR_CONFIG for a number that is impossible. */
export function checkSpec({ rank, alpha, dropout = 0 }: LoraSpec): void {
  const fault = (what: string, rule: string, got: number) =>
    new CaravanError('ERR_CONFIG', `LoRA: ${what} must be ${rule}; got ${got}`, { details: { [what]: got } })
  if (!(Number.isSafeInteger(rank) && rank > 0)) throw fault('rank', 'a whole number >= 1', rank)
  if (!(alpha > 0 && Number.isFinite(alpha))) throw fault('alpha', 'a number > 0', alpha)
  if (!(dropout >= 0 && dropout < 1)) throw fault('dropout', 'at least 0 and below 1', dropout)
}

/** An adapter without layers for a model that has none. */
export function attach(model: AdaptableModel, { dropout, seed }: { dropout: number; seed: number }): Lora {
  if (model.decoder.lora) {
    throw new CaravanError('ERR_CONFIG', 'the model has an adapter already', {
      hint: 'merge it with mergeAdapter(model), or drop it with removeAdapter(model)',
    })
  }
  const lora = new Lora(dropout > 0 ? new DropoutMasks(dropout, seed) : undefined)
  model.decoder.lora = lora
  return lora
}

/** The linear layers of the blocks by their names in a Hugging Face checkpoint: `model.layers.0.self_attn.q_proj`. */
export function linearLayers({ decoder, config }: AdaptableModel): Map<string, Linear> {
  const { blockNorms } = familyNamed(config.family)
  const found = new Map<string, Linear>()
  for (const [path, module] of decoder.modules()) {
    if (!(module instanceof Linear)) continue
    const weight = huggingFaceName(`decoder.${path}.weight`, blockNorms)
    found.set(weight.slice(0, -'.weight'.length), module)
  }
  return found
}

/** Whether one of `targets` is `name` or its last parts: PEFT's rule for lists. */
export function isNamed(name: string, targets: readonly string[]): boolean {
  return targets.some((target) => name === target || name.endsWith(`.${target}`))
}

/** Those of `layers` that `targets` name. ERR_CONFIG for a name that none of them has. */
export function targetedLayers<T>(layers: ReadonlyMap<string, T>, targets: readonly string[]): Map<string, T> {
  const names = [...layers.keys()]
  for (const target of targets) {
    if (target === ALL_LINEAR || names.some((name) => isNamed(name, [target]))) continue
    const known = [...new Set(names.map(lastPart)), ALL_LINEAR]
    const nearest = nearestName(target, known)
    throw new CaravanError('ERR_CONFIG', `LoRA: no linear layer is named '${target}'; there are ${known.join(', ')}`, {
      details: { target, known },
      hint: nearest && `did you mean '${nearest}'?`,
    })
  }
  if (targets.length === 0) throw new CaravanError('ERR_CONFIG', `LoRA: name a layer to adapt, or ${ALL_LINEAR}`)
  const all = targets.includes(ALL_LINEAR)
  return new Map([...layers].filter(([name]) => all || isNamed(name, targets)))
}

export const lastPart = (name: string): string => name.slice(name.lastIndexOf('.') + 1)

/** The heads that are trained whole beside an adapter: those of a decoder that is not a language model. */
export function trainedHeads(model: AdaptableModel): Map<string, Tensor> {
  return new Map([...model.parameters()].filter(([name]) => !/^(model|lm_head)\./.test(name)))
}

/** Lets gradients flow to the adapter and the trained heads, and to nothing else. */
export function trainAdapter(model: AdaptableModel): void {
  for (const tensor of model.parameters().values()) tensor.tracked = false
  for (const tensor of adapterParameters(model).values()) tensor.tracked = true
}

const PEFT_PREFIX = 'base_model.model.'

const matrixNames: { [matrix in keyof LoraMatrices]-?: string } = {
  a: 'lora_A.weight',
  b: 'lora_B.weight',
  magnitude: 'lora_magnitude_vector',
}

/** Name of a matrix of an adapter in an adapter file. */
export const matrixName = (layer: string, matrix: keyof LoraMatrices): string =>
  `${PEFT_PREFIX}${layer}.${matrixNames[matrix]}`

/** Name of a head's parameter in an adapter file. */
export const headName = (parameter: string): string => `${PEFT_PREFIX}${parameter}`

/** The parameters of the model's adapter and the heads trained with it, by their names in an adapter file. */
export function adapterParameters(model: AdaptableModel): Map<string, Tensor> {
  const found = new Map<string, Tensor>()
  const { lora } = model.decoder
  if (!lora) return found
  for (const [layer, { matrices }] of lora.layers) {
    for (const [matrix, tensor] of Object.entries(matrices) as [keyof LoraMatrices, Tensor][]) {
      found.set(matrixName(layer, matrix), tensor)
    }
  }
  for (const [name, tensor] of trainedHeads(model)) found.set(headName(name), tensor)
  return found
}

/** What an optimizer has to train and a checkpoint to hold: the adapter's parameters where there is one, else all. */
export function trainedParameters(model: AdaptableModel): Map<string, Tensor> {
  return model.decoder.lora ? adapterParameters(model) : model.parameters()
}

/** Runs `body`, which must not be async, with the model's adapter switched on or off. Off, the model is its base, bit
 *  for bit; a trained head stays as it is. */
export function withAdapter<R>(model: AdaptableModel, enabled: boolean, body: () => R): R {
  const { lora } = model.decoder
  if (!lora) return body()
  const before = lora.enabled
  lora.enabled = enabled
  let result: R
  try {
    result = body()
  } finally {
    lora.enabled = before
  }
  if (result instanceof Promise) throw new CaravanError('ERR_INTERNAL', 'the body of withAdapter() must not be async')
  return result
}

/** Takes the adapter away and frees it: the model is its base again. */
export function removeAdapter(model: AdaptableModel): void {
  for (const linear of linearLayers(model).values()) {
    linear.adapter?.dispose()
    linear.adapter = undefined
  }
  model.decoder.lora = undefined
}

export interface MergeOptions {
  onProgress?: (done: number, total: number) => void
  signal?: AbortSignal
}

/** Puts the adapter into the weight of every adapted layer, W + scale * B A, in f32 and rounded once, and removes it.
 *  An abort between two layers leaves a model in which some are merged. */
export async function mergeAdapter(model: AdaptableModel, { onProgress, signal }: MergeOptions = {}): Promise<void> {
  const adapted = [...linearLayers(model).values()].filter(({ adapter }) => adapter)
  for (const [i, linear] of adapted.entries()) {
    throwIfAborted(signal)
    const adapter = linear.adapter!
    linear.adapter = undefined
    withoutTape(() => merge(linear.weight, adapter))
    adapter.dispose()
    await model.device.idle()
    onProgress?.(i + 1, adapted.length)
  }
  removeAdapter(model)
}

/** Overwrites `weight` by its sum with the adapter. */
function merge(weight: Tensor, adapter: LoraAdapter): void {
  scope(() => {
    const rows = iota(weight.device, weight.shape[0]!, { dtype: 'i32' })
    scatterRows(weight, cast(adapter.merged(weight), weight.dtype), rows)
  })
}
