// Tulu 3 (Lambert et al. 2024). Numbers of 8b, 70b and 405b: open-instruct at 26b732590 (2024-12-07), docs/tulu3.md and
// open_instruct/finetune.py, unless a line says otherwise. `pocket` is the same pipeline at a size for two CPU cores.
import { CaravanError, nearestName } from '../base/errors.js'
import type { DecoderShape } from '../nn/decoder_shape.js'
import type { DpoSettings, Recipe, RewardSettings, RlvrSettings, SftSettings } from './stage.js'

export const tulu3Scales = ['pocket', '8b', '70b', '405b'] as const
export type Tulu3Scale = (typeof tulu3Scales)[number]

/** What all published scales share in the SFT stage. */
const publishedSft: Partial<SftSettings> = {
  epochs: 2, //                             docs/tulu3.md, SFT commands: --num_train_epochs 2
  maxTokens: 4096, //                       --max_seq_length 4096, truncated on the right
  microBatchTokens: 4096, //                per_device_train_batch_size 1 of at most 4096 tokens
  packing: 'none', //                       no --packing; one sequence per micro-batch
  reduction: 'sequence_mean_of_sums', //    --reduce_loss sum, averaged over accumulation steps and ranks by DeepSpeed
  schedule: 'linear', //                    --lr_scheduler_type linear, to 0
  warmupRatio: 0.03, //                     --warmup_ratio 0.03
  weightDecay: 0, //                        --weight_decay 0.0
  beta1: 0.9, //                            torch.optim.AdamW default, not overridden in finetune.py
  beta2: 0.999, //                          torch.optim.AdamW default
  eps: 1e-8, //                             torch.optim.AdamW default
  maxNorm: 1, //                            DeepSpeed "auto", which accelerate fills with 1.0
  template: 'tulu', //                      --chat_template tulu; no beginning token
  trainOn: 'all', //                        finetune.py encode_sft_example: every assistant turn, with its end token
  activationCheckpointing: true, //         --gradient_checkpointing (70B command); here for every published scale
}

const sftByScale: { [scale in Exclude<Tulu3Scale, 'pocket'>]: Partial<SftSettings> } = {
  '8b': {
    ...publishedSft,
    lr: 5e-6, //                            docs/tulu3.md, 8B SFT: --learning_rate 5e-06
    batchSequences: 128, //                 64 GPUs x 1 x accumulation 2
  },
  '70b': {
    ...publishedSft,
    lr: 2e-6, //                            docs/tulu3.md, 70B SFT: --learning_rate 2e-06
    batchSequences: 128, //                 docs/tulu3.md, 70B SFT
    checkpointEvery: 1000, //               --checkpointing_steps 1000
    keepCheckpoints: 20, //                 --keep_last_n_checkpoints 20
  },
  '405b': {
    ...publishedSft,
    lr: 2e-6, //                            Lambert et al. 2024, table of SFT hyperparameters
    batchSequences: 256, //                 Lambert et al. 2024, table of SFT hyperparameters
  },
}

/** What all published scales share in the preference stage: length-normalised DPO. */
const publishedDpo: Partial<DpoSettings> = {
  loss: 'dpo_norm', //                      docs/tulu3.md, DPO commands: --dpo_loss_type dpo_norm
  beta: 5, //                               --dpo_beta 5
  epochs: 1, //                             --num_train_epochs 1
  maxTokens: 2048, //                       --max_seq_length 2048, each side for itself
  microBatchTokens: 4096, //                per_device_train_batch_size 1: one pair of at most 2 x 2048 tokens
  packing: 'none', //                       one pair per micro-batch
  schedule: 'linear', //                    --lr_scheduler_type linear, to 0
  warmupRatio: 0.1, //                      --warmup_ratio 0.1
  weightDecay: 0, //                        --weight_decay 0.0
  beta1: 0.9, //                            torch.optim.AdamW default
  beta2: 0.999, //                          torch.optim.AdamW default
  eps: 1e-8, //                             torch.optim.AdamW default
  maxNorm: 1, //                            DeepSpeed "auto", which accelerate fills with 1.0
  template: 'tulu', //                      --chat_template tulu
  trainOn: 'all', //                        dpo_tune.py encodes both sides with the SFT encoder: every assistant turn
  activationCheckpointing: true, //         --gradient_checkpointing
}

const dpoByScale: { [scale in Exclude<Tulu3Scale, 'pocket'>]: Partial<DpoSettings> } = {
  '8b': {
    ...publishedDpo,
    lr: 5e-7, //                            docs/tulu3.md, 8B DPO: --learning_rate 5e-07
    batchSequences: 128, //                 8 GPUs x 1 x accumulation 16 (later scripts have 512)
  },
  '70b': {
    ...publishedDpo,
    lr: 2e-7, //                            docs/tulu3.md, 70B DPO: --learning_rate 2e-07
    batchSequences: 128, //                 64 GPUs x 1 x accumulation 2
  },
  '405b': {
    ...publishedDpo,
    lr: 2e-7, //                            docs/tulu3.md, 405B DPO: --learning_rate 2e-07
    batchSequences: 256, //                 256 GPUs x 1 x accumulation 1
  },
}

/** The 8B reward model, from which the value function of every scale starts. */
const publishedReward: Partial<RewardSettings> = {
  lr: 3e-6, //                              docs/tulu3.md, reward model: --learning_rate 3e-6
  epochs: 1, //                             --num_train_epochs 1
  maxTokens: 2048, //                       --max_token_length 2048
  microBatchTokens: 4096, //                per_device_train_batch_size 1
  packing: 'none', //                       one pair per micro-batch
  batchSequences: 256, //                   8 GPUs x 1 x accumulation 32
  schedule: 'linear', //                    reward_modeling.py default, to 0
  warmupRatio: 0, //                        reward_modeling.py: no warm-up
  weightDecay: 0, //                        reward_modeling.py: Adam without decay
  beta1: 0.9, //                            torch.optim.AdamW default
  beta2: 0.999, //                          torch.optim.AdamW default
  eps: 1e-5, //                             reward_modeling.py: eps=1e-5
  maxNorm: 1, //                            DeepSpeed "auto", which accelerate fills with 1.0
  headScale: 1, //                          reward_modeling.py: score ~ N(0, 1 / sqrt(hidden + 1))
  template: 'tulu', //                      --chat_template tulu
  activationCheckpointing: true, //         --gradient_checkpointing
}

/** Sizes of Llama 3.1 (Dubey et al. 2024, table 3), for plans. */
function llama31(name: string, { D, L, H, F }: { D: number; L: number; H: number; F: number }) {
  const shape: DecoderShape = {
    V: 128_256, //  config.json of the published checkpoints
    D,
    L,
    H,
    K: 8,
    C: D / H,
    F,
    normPlacement: 'pre',
    normKind: 'rms',
    eps: 1e-5,
    queryKeyNorm: 'none',
    attentionBias: 'none',
    mlpBias: false,
    tiedHead: false,
    windows: Array(L).fill(0),
    clipQkv: undefined,
    rope: { theta: 500_000, scaling: undefined },
  }
  return { name, shape }
}

const models = {
  '8b': llama31('Llama-3.1-8B', { D: 4096, L: 32, H: 32, F: 14_336 }),
  '70b': llama31('Llama-3.1-70B', { D: 8192, L: 80, H: 64, F: 28_672 }),
  '405b': llama31('Llama-3.1-405B', { D: 16_384, L: 126, H: 128, F: 53_248 }),
}

/** The recipe at one scale. The published scales need a model folder and data files; `pocket` brings its own. */
export function tulu3({ scale = 'pocket' }: { scale?: string } = {}): Recipe {
  const known = tulu3Scales.find((name) => name === scale)
  if (!known) {
    const nearest = nearestName(scale, tulu3Scales)
    throw new CaravanError('ERR_CONFIG', `recipe tulu3 has no scale '${scale}'; known: ${tulu3Scales.join(', ')}`, {
      hint: nearest && `did you mean '${nearest}'?`,
    })
  }
  return known === 'pocket' ? pocket() : published(known)
}

function published(scale: Exclude<Tulu3Scale, 'pocket'>): Recipe {
  return {
    name: 'tulu3',
    scale,
    description: `Tulu 3 ${scale.toUpperCase()}: supervised fine-tuning of a base model, preference tuning, a reward model`,
    stages: [
      { name: 'sft', kind: 'sft', settings: sftByScale[scale] },
      { name: 'dpo', kind: 'dpo', settings: dpoByScale[scale] },
      { name: 'reward_model', kind: 'reward_model', settings: publishedReward, from: 'sft' },
    ],
    notBuilt: ['rlvr'],
    model: models[scale],
    dtype: 'bf16', // accelerate bf16 mixed precision with f32 optimizer state
  }
}

/** What the pocket stages on pairs share. */
const pocketPairs: Partial<DpoSettings & RewardSettings> = {
  batchSequences: 16,
  maxTokens: 160,
  microBatchTokens: 4096,
  beta2: 0.95,
  checkpointEvery: 100,
}

/** 100 rollouts of 128 answers, 4 steps each. */
const pocketRlvr: Partial<RlvrSettings> = {
  algorithm: 'ppo',
  rollouts: 100,
  promptsPerRollout: 128,
  samplesPerPrompt: 1,
  maxNewTokens: 112,
  maxPromptTokens: 160,
  microBatchTokens: 4096,
  slots: 128,
  miniBatches: 4,
  lr: 1e-4,
  valueLr: 3e-4,
  warmupRatio: 0.05,
  finalLrRatio: 0.1,
  beta2: 0.95,
  // A tenth of the published rewards, which are kinder to a new head of values; advantages are whitened all the same.
  verifiedReward: 1,
  unfinishedReward: -1,
  klCoefficient: 0.005,
  valueHead: 'zero',
  valueWeight: 1,
  checkpointEvery: 100,
}

/** Sizes and rates found by experiment for a model of about one million parameters; not of the paper. */
function pocket(): Recipe {
  return {
    name: 'tulu3',
    scale: 'pocket',
    description: 'the Tulu 3 pipeline with a model of a million parameters and generated text',
    stages: [
      {
        name: 'base',
        kind: 'pretrain',
        settings: {
          tokens: 2_500_000,
          batchTokens: 2048, // 16 rows of 128
          maxTokens: 2048,
          microBatchTokens: 2048,
          packing: 'bfd',
          lr: 3e-3,
          warmupRatio: 0.03,
          finalLrRatio: 0.05,
          beta2: 0.95,
          weightDecay: 0.1,
          checkpointEvery: 300,
        },
      },
      {
        name: 'sft',
        kind: 'sft',
        settings: {
          epochs: 3,
          batchSequences: 32,
          maxTokens: 160,
          microBatchTokens: 4096,
          lr: 1e-3,
          warmupRatio: 0.03,
          beta2: 0.95,
          checkpointEvery: 300,
        },
      },
      {
        name: 'dpo',
        kind: 'dpo',
        settings: { ...pocketPairs, rows: 2400, lr: 3e-5, warmupRatio: 0.1, loss: 'dpo_norm', beta: 5 },
      },
      {
        name: 'reward_model',
        kind: 'reward_model',
        settings: { ...pocketPairs, rows: 3000, lr: 3e-4, warmupRatio: 0.05, headScale: 0 },
        from: 'sft',
      },
      { name: 'rlvr', kind: 'rlvr', settings: pocketRlvr, from: 'dpo' },
    ],
    builtInData: true,
    notBuilt: [],
    dtype: 'f32',
  }
}
