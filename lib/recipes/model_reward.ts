// A model's opinion as a part of the reward: a reward model of ours, on the tokens that were sampled, or an ONNX
// classifier, on their text.
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { CaravanError } from '../base/errors.js'
import type { Generated } from '../generate/index.js'
import { answerRows } from '../methods/answer_rows.js'
import { policyRows } from '../methods/policy_batch.js'
import { loadRewardModel, type RewardModel } from '../models/index.js'
import type { Device } from '../runtime/index.js'
import { scope, Tensor } from '../tensor/index.js'
import { Tokenizer } from '../text/tokenizer.js'
import { OnnxClassifier } from '../verify/onnx_classifier.js'
import type { ModelScores } from './answer_judge.js'
import type { LabelledPrompt } from './prompt_data.js'

export interface ModelReward {
  scores: ModelScores
  dispose(): Promise<void>
}

export interface ModelRewardOptions {
  /** Folder of the model. */
  folder: string
  /** Factor of its scores. */
  weight: number
  /** That of the policy: a reward model reads the same tokens. */
  tokenizer: Tokenizer
  dtype: 'f32' | 'bf16'
  /** Tokens that go through the model at once. */
  tokens: number
}

/** Loads the model of a folder. Errors as those of loadRewardModel and OnnxClassifier.load; ERR_CONFIG for a reward
 *  model with another tokenizer. */
export async function openModelReward(device: Device, options: ModelRewardOptions): Promise<ModelReward> {
  const { folder } = options
  const isOnnx = ['model.onnx', 'onnx/model.onnx'].some((file) => existsSync(join(folder, file)))
  return isOnnx && !existsSync(join(folder, 'model.safetensors'))
    ? await ofClassifier(options)
    : await ofRewardModel(device, options)
}

async function ofClassifier({ folder, weight }: ModelRewardOptions): Promise<ModelReward> {
  const classifier = await OnnxClassifier.load(folder)
  return {
    async scores(prompt, _answers, texts) {
      const pairs = texts.map((completion) => ({ prompt: prompt.text, completion }))
      return (await classifier.score(pairs)).map((score) => weight * score)
    },
    dispose: () => classifier.dispose(),
  }
}

async function ofRewardModel(
  device: Device,
  { folder, weight, tokenizer, dtype, tokens }: ModelRewardOptions,
): Promise<ModelReward> {
  const own = await Tokenizer.load(folder)
  if (own.hash !== tokenizer.hash) {
    throw new CaravanError('ERR_CONFIG', `${folder}: the reward model has another tokenizer than the policy`, {
      details: { folder },
      hint: 'a reward model must have been trained on the tokens that the policy writes; an ONNX classifier reads text',
    })
  }
  const model = await loadRewardModel(device, folder, { dtype })
  return {
    async scores(prompt, answers) {
      return (await answerScores(model, prompt, { answers, tokens })).map((score) => weight * score)
    },
    dispose: () => Promise.resolve(model.dispose()),
  }
}

/** Score at the last token of every answer. */
async function answerScores(
  model: RewardModel,
  prompt: LabelledPrompt,
  { answers, tokens }: { answers: readonly Generated[]; tokens: number },
): Promise<number[]> {
  const found = new Map<Generated, number>()
  for (const { rows, samples } of policyRows([{ prompt: prompt.ids, samples: answers }], tokens)) {
    const last = Int32Array.from(samples, (_, s) => rows.spans[3 * s + 1]! - 1)
    using scores = scope(() => {
      const packed = answerRows(model.device, rows, (row) => last.includes(row))
      return model.scores(packed, Tensor.from(model.device, last, [last.length]))
    })
    const values = await scores.read()
    for (const [s, sample] of samples.entries()) found.set(sample, values[s]!)
  }
  return answers.map((answer) => found.get(answer)!)
}
