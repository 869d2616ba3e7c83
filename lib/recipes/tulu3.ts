// Tulu 3 (Lambert et al. 2024). Numbers of 8b, 70b and 405b: open-instruct at 26b732590 (2024-12-07), docs/tulu3.md and
// open_instruct/finetune.py, unless a line says otherwise. `pocket` is the same pipeline at a size for two CPU cores.
import { CaravanError, nearestName } from '../base/errors.js'
import type { DecoderShape } from '../nn/decoder_shape.js'
import type { DpoSettings, Recipe, RewardSettings, RlvrSettings, SftSettings } from './stage.js'

export const tulu3Scales = ['pocket', '8b', '70b', '405b'] as const
export type Tulu3Scale = (typeof tulu3Scales)[number]

/** Algorithms of the stage with verifiable rewards: ppo is that of Tulu 3, grpo that of Tulu 3.1. */
export const tulu3Algorithms = ['ppo', 'grpo'] as const
export type Tulu3Algorithm = (typeof tulu3Algorithms)[number]

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
  activationCheckpointing: 'full', //         --gradient_checkpointing (70B command); here for every published scale
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
  activationCheckpointing: 'full', //         --gradient_checkpointing
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
  activationCheckpointing: 'full', //         --gradient_checkpointing
}

/** What the stage with verifiable rewards has in common at all published scales. */
const publishedRlvr: Partial<RlvrSettings> = {
  maxPromptTokens: 2048, //                 docs/tulu3.md, RLVR commands: --max_prompt_token_length 2048
  microBatchTokens: 8192, //                per_device_train_batch_size 2 of at most 4096 tokens
  temperature: 1, //                        --temperature 1.0
  weightDecay: 0.01, //                     torch.optim.AdamW default, not overridden
  beta1: 0.9, //                            torch.optim.AdamW default
  beta2: 0.999, //                          torch.optim.AdamW default
  eps: 1e-8, //                             torch.optim.AdamW default
  maxNorm: 1, //                            DeepSpeed configuration
  clipLow: 0.2, //                          --cliprange 0.2
  clipHigh: 0.2, //                         --cliprange 0.2
  average: 'token', //                      masked mean; over the whole minibatch, upstream over a micro-batch
  verifiedReward: 10, //                    --verification_reward 10.0
  penaliseUnfinished: true, //              --non_stop_penalty
  template: 'tulu', //                      --chat_template tulu
  activationCheckpointing: 'full', //         --gradient_checkpointing
}

/** PPO (open-instruct 26b732590, ppo_vllm_thread_ray_gtrl.py). */
const publishedPpo: Partial<RlvrSettings> = {
  ...publishedRlvr,
  algorithm: 'ppo',
  samplesPerPrompt: 1, //                   --number_samples_per_prompt 1
  updateEpochs: 4, //                       --num_epochs 4, the default
  miniBatches: 1, //                        local_mini_batch_size = local_rollout_batch_size
  kl: 'k1', //                              --kl_estimator kl1
  gamma: 1, //                              --gamma 1.0
  lambda: 0.95, //                          --lam 0.95
  clipValue: 0.2, //                        --cliprange_value 0.2
  valueWeight: 0.1, //                      --vf_coef 0.1
  valueHead: 'keep', //                     --reward_model_path: the 8B reward model, head included, for every scale
  rewardAfterEnd: true, //                  the score lies on the position after the end token
  unfinishedReward: -10, //                 --penalty_reward_value -10.0
  asyncRollouts: true, //                   --async_mode, the default: answers are one rollout old
  schedule: 'linear', //                    --lr_scheduler_type linear
}

/** GRPO of Tulu 3.1 8B (open-instruct 745bf58d321c). */
const publishedGrpo: Partial<RlvrSettings> = {
  ...publishedRlvr,
  algorithm: 'grpo',
  lr: 5e-7, //                              --learning_rate 5e-7
  schedule: 'constant', //                  --lr_scheduler_type constant
  warmupRatio: 0, //                        --warm_up_steps 0
  rollouts: 13_020, //                      --total_episodes 10000000 / 768
  promptsPerRollout: 48, //                 4 prompts x 12 learners
  samplesPerPrompt: 16, //                  --number_samples_per_prompt 16
  miniBatches: 2, //                        768 answers / (32 x 12)
  updateEpochs: 1, //                       --num_epochs 1
  maxNewTokens: 2048, //                    --response_length 2048
  kl: 'k3', //                              --kl_estimator kl3
  klCoefficient: 0.01, //                   --beta 0.01
  advantage: 'standard', //                 (score - mean) / std of the group, unbiased
  filterZeroVariance: false, //             such groups have no advantage, but their divergence counts
  unfinishedReward: 0, //                   --penalty_reward_value 0.0
  asyncRollouts: true, //                   --async_mode, the default
  checkpointEvery: 80, //                   --save_freq 40 rollouts of 2 steps
}

const rlvrByScale: {
  [scale in Exclude<Tulu3Scale, 'pocket'>]: { [algorithm in Tulu3Algorithm]: Partial<RlvrSettings> }
} = {
  '8b': {
    ppo: {
      ...publishedPpo,
      lr: 3e-7, //                          docs/tulu3.md, 8B RLVR: --learning_rate 3e-7
      warmupRatio: 0,
      klCoefficient: 0.05, //               --beta 0.05
      rollouts: 44_642, //                  --total_episodes 10000000 / 224; stopped early
      promptsPerRollout: 224, //            7 learners x 32
      maxNewTokens: 2048, //                --response_length 2048
      checkpointEvery: 400, //              --save_freq 100 rollouts of 4 steps
    },
    grpo: publishedGrpo,
  },
  '70b': {
    ppo: {
      ...publishedPpo,
      lr: 1e-7, //                          docs/tulu3.md, 70B RLVR: --learning_rate 1e-7
      warmupRatio: 0.1, //                  --warmup_ratio 0.1
      klCoefficient: 0.07, //               --beta 0.07
      rollouts: 625, //                     --total_episodes 400000 / 640
      promptsPerRollout: 640, //            40 learners x 16
      maxNewTokens: 2048, //                --response_length 2048
      checkpointEvery: 160, //              --save_freq 40 rollouts of 4 steps
    },
    grpo: publishedGrpo, //                 not published at this scale
  },
  '405b': {
    ppo: {
      ...publishedPpo,
      lr: 1e-7, //                          docs/tulu3.md, 405B RLVR: --learning_rate 1e-7
      warmupRatio: 0,
      klCoefficient: 0.05, //               --beta 0.05
      rollouts: 215, //                     --total_episodes 400000 / 1856
      promptsPerRollout: 1856, //           232 learners x 8
      maxNewTokens: 1024, //                --response_length 1024
      checkpointEvery: 100, //              --save_freq 25 rollouts of 4 steps
    },
    grpo: publishedGrpo, //                 not published at this scale
  },
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
export function tulu3({ scale = 'pocket', algorithm = 'ppo' }: { scale?: string; algorithm?: string } = {}): Recipe {
  const known = tulu3Scales.find((name) => name === scale)
  if (!known) {
    const nearest = nearestName(scale, tulu3Scales)
    throw new CaravanError('ERR_CONFIG', `recipe tulu3 has no scale '${scale}'; known: ${tulu3Scales.join(', ')}`, {
      hint: nearest && `did you mean '${nearest}'?`,
    })
  }
  const chosen = tulu3Algorithms.find((name) => name === algorithm)
  if (!chosen) {
    const nearest = nearestName(algorithm, tulu3Algorithms)
    throw new CaravanError(
      'ERR_CONFIG',
      `recipe tulu3 has no algorithm '${algorithm}'; known: ${tulu3Algorithms.join(', ')}`,
      { hint: nearest && `did you mean '${nearest}'?` },
    )
  }
  return known === 'pocket' ? pocket(chosen) : published(known, chosen)
}

function published(scale: Exclude<Tulu3Scale, 'pocket'>, algorithm: Tulu3Algorithm): Recipe {
  return {
    name: 'tulu3',
    scale,
    description: `Tulu 3 ${scale.toUpperCase()}: supervised fine-tuning, preference tuning, a reward model, verifiable rewards`,
    stages: [
      { name: 'sft', kind: 'sft', settings: sftByScale[scale] },
      { name: 'dpo', kind: 'dpo', settings: dpoByScale[scale] },
      { name: 'reward_model', kind: 'reward_model', settings: publishedReward, from: 'sft' },
      { name: 'rlvr', kind: 'rlvr', settings: rlvrByScale[scale][algorithm], from: 'dpo' },
      { name: 'eval', kind: 'eval', settings: {} },
    ],
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

/** What both algorithms share at pocket scale: 150 rollouts of 128 answers. */
const pocketRollouts: Partial<RlvrSettings> = {
  rollouts: 150,
  maxNewTokens: 112,
  maxPromptTokens: 160,
  microBatchTokens: 4096,
  slots: 128,
  lr: 1e-4,
  warmupRatio: 0.05,
  finalLrRatio: 0.1,
  beta2: 0.95,
  // A tenth of the published rewards, which are kinder to a new head of values; advantages are scaled all the same.
  verifiedReward: 1,
  unfinishedReward: -1,
  instructionShare: 0.5,
  checkpointEvery: 100,
}

const pocketRlvr: { [algorithm in Tulu3Algorithm]: Partial<RlvrSettings> } = {
  ppo: {
    ...pocketRollouts,
    algorithm: 'ppo',
    promptsPerRollout: 128,
    samplesPerPrompt: 1,
    miniBatches: 4,
    valueLr: 1e-3,
    klCoefficient: 0.01,
    valueHead: 'zero',
    valueWeight: 1,
  },
  grpo: {
    ...pocketRollouts,
    algorithm: 'grpo',
    promptsPerRollout: 16,
    samplesPerPrompt: 8,
    miniBatches: 2,
    kl: 'k3',
    klCoefficient: 0.02,
    advantage: 'standard',
  },
}

/** Sizes and rates found by experiment for a model of about one million parameters; not of the paper. */
function pocket(algorithm: Tulu3Algorithm): Recipe {
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
      { name: 'rlvr', kind: 'rlvr', settings: pocketRlvr[algorithm], from: 'dpo' },
      { name: 'eval', kind: 'eval', settings: {} },
    ],
    builtInData: true,
    dtype: 'f32',
  }
}
