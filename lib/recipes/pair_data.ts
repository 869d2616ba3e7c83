// Preference pairs of a stage: both sides tokenised as chats, mixed, divided, and put into a loader that keeps the two
// sides of a pair together.
import { CaravanError } from '../base/errors.js'
import { openDataset } from '../data/dataset.js'
import { Loader } from '../data/loader.js'
import { pairRows } from '../data/pair_rows.js'
import { EncodedPairs, type PairBatch } from '../data/pairs.js'
import { type ChatText, encodedExamples, splitHeldOut } from './chat_data.js'
import { pocketData } from './pocket_data.js'
import { loaderOptions, reportLoader, type StageContext } from './prepared_stage.js'
import type { PairSettings } from './stage.js'

export interface StagePairs {
  train: EncodedPairs
  held: EncodedPairs | undefined
  loader: Loader<PairBatch>
}

/** Tokenises the pairs of a stage and says what was left out. */
export async function stagePairs(text: ChatText, settings: PairSettings, context: StageContext): Promise<StagePairs> {
  refusePacking(settings, context.stage)
  const own = context.builtInData ? () => [...pocketData(context.seed).pairs(settings.rows)] : undefined
  const sides = await encodedExamples(text, settings, context, { form: pairRows, perRow: 2, own })
  const { train, held } = splitHeldOut(sides, settings.evaluationShare, 2)
  const pairs = new EncodedPairs(train, settings.sharePrompt)
  const loader = new Loader(pairs, loaderOptions(settings, context))
  reportLoader(loader, context)
  if (settings.sharePrompt) reportSharing(pairs, context)
  return { train: pairs, held: held && new EncodedPairs(held, false), loader }
}

/** Packings that cut a row into pieces would part the sides of a pair. */
function refusePacking({ packing }: PairSettings, stage: string): void {
  if (packing === 'bfd' || packing === 'none') return
  throw new CaravanError(
    'ERR_CONFIG',
    `${stage}.packing must be bfd or none, which keep a pair together; got ${packing}`,
  )
}

function reportSharing(pairs: EncodedPairs, { stage, report }: StageContext): void {
  let [shared, all] = [0, 0]
  for (let pair = 0; pair < pairs.count; pair++) {
    shared += pairs.sharedOf(pair)
    all += pairs.lengthOf(pair) + pairs.sharedOf(pair)
  }
  const share = all === 0 ? 0 : (100 * shared) / all
  report({
    type: 'note',
    stage,
    text: `shared prompts: ${shared} of ${all} tokens (${share.toFixed(1)} %) are not computed again`,
  })
}

/** The margin column of the data files, a number for each pair in their order. ERR_DATA names a row without one. */
export async function pairMargins(settings: PairSettings, column: string): Promise<Float32Array> {
  const margins: number[] = []
  const form = {
    ...pairRows,
    convert(row: Record<string, unknown>, place: { file: string; line: number }, map = {}) {
      const converted = pairRows.convert(row, place, map)
      const value = row[column]
      if (converted.length > 0 && (typeof value !== 'number' || !Number.isFinite(value))) {
        const { file, line } = place
        throw new CaravanError(
          'ERR_DATA',
          `${file}:${line}: \`${column}\` must be a number; got ${JSON.stringify(value)}`,
          {
            details: { file, line, field: column },
          },
        )
      }
      if (converted.length > 0) margins.push(value as number)
      return converted
    },
  }
  for (const file of settings.data) {
    const dataset = await openDataset([file], { fields: settings.fields, form })
    for await (const _ of dataset.rows());
  }
  return Float32Array.from(margins)
}
