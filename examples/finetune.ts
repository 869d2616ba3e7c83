// Fine-tunes a Hugging Face model folder on a file of chat rows. The recipe is written out here, because a recipe is
// plain data: what is left out has the defaults of docs/recipes.md.
//   node examples/finetune.ts MODEL_FOLDER ROWS.jsonl OUT_FOLDER          (Node 22.18 or newer runs TypeScript)
import { fileURLToPath } from 'node:url'
import { CaravanError, type Recipe, type RunOptions, run } from 'caravan-train'

const recipe: Recipe = {
  name: 'finetune',
  scale: 'small',
  description: 'supervised fine-tuning on one file',
  stages: [
    {
      name: 'sft',
      kind: 'sft',
      settings: { epochs: 2, batchSequences: 16, lr: 1e-5, evaluationShare: 0.1, checkpointEvery: 100 },
    },
  ],
  dtype: 'f32',
}

export interface FinetuneResult {
  /** Loss of every step, in nats per trained token. */
  losses: number[]
  /** The same on the tenth of the rows that was held out. */
  evalLoss: number | undefined
  /** The fine-tuned model, as a Hugging Face folder. */
  folder: string
}

/** Trains `model` on the rows of `data`; `options` are those of `run`. */
export async function main(model: string, data: string, options: RunOptions): Promise<FinetuneResult> {
  const result: FinetuneResult = { losses: [], evalLoss: undefined, folder: '' }
  for await (const event of run(recipe, { ...options, model, data: [data] })) {
    if (event.type === 'step') result.losses.push(event.loss)
    else if (event.type === 'evaluation') result.evalLoss = event.metrics.evalLoss ?? undefined
    else if (event.type === 'saved') result.folder = event.directory
  }
  return result
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [model = '', data = '', directory = 'runs/finetune'] = process.argv.slice(2)
  try {
    const { losses, evalLoss, folder } = await main(model, data, { directory })
    console.log(`${losses.length} steps, loss ${losses[0]} -> ${losses.at(-1)}, held out ${evalLoss}: ${folder}`)
  } catch (error) {
    if (!(error instanceof CaravanError)) throw error
    console.error(`${error.message} [${error.code}]\n${error.hint ?? ''}`)
    process.exitCode = 1
  }
}
