// Judges the stage with verifiable rewards of the pocket run: greedy and sampled answers to the held-out set, before
// and after, and how far the policy has gone from where it started.
import { join } from 'node:path'
import { type CausalLm, loadModel } from '../models/index.js'
import type { ChatText } from './chat_data.js'
import { divergence } from './pocket_comparison.js'
import { pocketGates, pocketTable } from './pocket_eval.js'
import { measurePocket, pocketSamples } from './pocket_judge.js'
import type { PreparedStage, StageContext } from './prepared_stage.js'
import { folderExists } from './run_folder.js'
import type { RlvrSettings } from './stage.js'

/** Samples and gates of the stage. The gates compare with the policy as it was, and with the run's SFT model, if there
 *  is one; both are read from their folders when they are judged. */
export async function judgeRlvr(
  loaded: ChatText & { model: CausalLm },
  settings: RlvrSettings,
  context: StageContext,
): Promise<Pick<PreparedStage, 'samples' | 'gates'>> {
  return {
    samples: await pocketSamples(context.stage, loaded),
    async gates({ signal }) {
      const { device } = loaded.model
      const { dtype } = context
      const sft = join(context.directory, 'sft')
      const sampledSft = (await folderExists(sft))
        ? await withModel(await loadModel(device, sft, { dtype }), (model) => sampled({ ...loaded, model }, signal))
        : undefined
      using start = await loadModel(device, settings.model, { dtype })
      const before = await measurePocket({ ...loaded, model: start }, { signal })
      const after = await measurePocket(loaded, { signal })
      const sampledBefore = await sampled({ ...loaded, model: start }, signal)
      const sampledAfter = await sampled(loaded, signal)
      const kl = await divergence(loaded, start, { signal })
      const metrics = { before, after, sampledSft, sampledBefore, sampledAfter, kl }
      const table = {
        ...Object.fromEntries(pocketTable(after)),
        'problems, sampled': sampledAfter.problems.accuracy,
        'problems, sampled, sft': sampledSft?.problems.accuracy ?? null,
        'problems, sampled, before': sampledBefore.problems.accuracy,
        'instructions, sampled': sampledAfter.instructions.accuracy,
        'instructions, sampled, before': sampledBefore.instructions.accuracy,
        'problems, before': before.problems.accuracy,
        'instructions, before': before.instructions.accuracy,
        'divergence from the start (nats per answer)': kl,
      }
      return { gates: pocketGates('rlvr', metrics), metrics: table }
    },
  }
}

const sampled = (judged: ChatText & { model: CausalLm }, signal?: AbortSignal) =>
  measurePocket(judged, { temperature: 1, signal })

async function withModel<M extends { dispose(): void }, T>(model: M, use: (model: M) => Promise<T>): Promise<T> {
  try {
    return await use(model)
  } finally {
    model.dispose()
  }
}
