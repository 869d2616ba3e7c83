// The prompts of a stage with verifiable rewards: read, checked against their verifiers, tokenised, and dealt out to
// rollouts in an order that depends on the seed alone.
import { CaravanError } from '../base/errors.js'
import { Random } from '../base/random.js'
import { openDataset, withoutRows } from '../data/dataset.js'
import { promptRows } from '../data/prompt_rows.js'
import type { Message, RowLabel, RowPlace } from '../data/rows.js'
import type { RolloutPrompt } from '../methods/rollout.js'
import { encodePromptBatch } from '../text/chat_encoding.js'
import type { VerifyInput } from '../verify/verifier.js'
import type { VerdictSource } from './answer_judge.js'
import type { ChatText } from './chat_data.js'
import { pocketPrompts } from './pocket_prompts.js'
import type { StageContext } from './prepared_stage.js'
import type { RlvrSettings } from './stage.js'

/** A prompt with what its answers are judged by. */
export interface LabelledPrompt extends RolloutPrompt {
  /** The user's last message. */
  text: string
  verifier: string
  input: Omit<VerifyInput, 'completion'>
}

export type UnencodedPrompt = Omit<LabelledPrompt, 'ids'> & { messages: readonly Message[] }

/** Prompts by rollout. */
export interface PromptSource {
  of: (rollout: number) => Promise<readonly LabelledPrompt[]>
  /** Prompts in all; undefined where there is no end of them. */
  count: number | undefined
}

/** Stream of the order of prompts, one part of it for every pass over them. */
const ORDER_STREAM = 0x9807

/** The prompts of the stage's files, or the recipe's own. */
export async function promptSource(
  text: ChatText & { verdicts: VerdictSource },
  settings: RlvrSettings,
  context: StageContext,
): Promise<PromptSource> {
  if (settings.data.length > 0) return dealt(await promptsOfFiles(text, settings, context), settings, context)
  if (!context.builtInData) {
    throw new CaravanError('ERR_CONFIG', `stage ${context.stage} needs data`, {
      hint: `give files with --data, or with --set ${context.stage}.data=FILE,FILE`,
    })
  }
  const { promptsPerRollout: size, instructionShare } = settings
  return {
    count: undefined,
    async of(rollout) {
      const prompts = pocketPrompts(context.seed, { rollout, size, instructionShare })
      return await encoded(text, prompts, context.signal)
    },
  }
}

/** Every pass over the prompts is in an order of its own; what does not fill a rollout is left to the next pass. */
function dealt(prompts: readonly LabelledPrompt[], settings: RlvrSettings, context: StageContext): PromptSource {
  const { promptsPerRollout: size } = settings
  const perPass = Math.floor(prompts.length / size)
  if (perPass === 0) {
    throw new CaravanError(
      'ERR_CONFIG',
      `${context.stage}.promptsPerRollout is ${size}, but there are only ${prompts.length} prompts`,
      { hint: `set it to at most ${prompts.length}` },
    )
  }
  let pass: { number: number; order: Uint32Array } = { number: -1, order: new Uint32Array(0) }
  return {
    count: prompts.length,
    async of(rollout) {
      const number = Math.floor(rollout / perPass)
      if (number !== pass.number) {
        const random = new Random(context.seed, ORDER_STREAM, number * 2 ** 30)
        pass = { number, order: random.permutation(prompts.length) }
      }
      const begin = (rollout % perPass) * size
      return Array.from(pass.order.subarray(begin, begin + size), (i) => prompts[i]!)
    },
  }
}

async function promptsOfFiles(
  text: ChatText & { verdicts: VerdictSource },
  settings: RlvrSettings,
  context: StageContext,
): Promise<LabelledPrompt[]> {
  const { stage, signal, report } = context
  const prompts: UnencodedPrompt[] = []
  const places: RowPlace[] = []
  for (const file of settings.data) {
    const dataset = await openDataset([file], { fields: settings.fields, form: promptRows, signal })
    for await (const { row, line } of dataset.rows()) {
      if (row.kind !== 'messages') continue
      prompts.push(labelledPrompt(row, { file, line }, settings, stage))
      places.push({ file, line })
    }
    if (dataset.counts.rows === 0) throw withoutRows(dataset)
    report({ type: 'progress', stage, what: 'reading prompts', done: prompts.length })
  }
  await checkLabels(prompts, { places, verdicts: text.verdicts, signal })
  const all = await encoded(text, prompts, signal, (done) =>
    report({ type: 'progress', stage, what: 'tokenising', done, total: prompts.length }),
  )
  const short = all.filter(({ ids }) => ids.length <= settings.maxPromptTokens)
  if (short.length < all.length) {
    const message = `${all.length - short.length} prompts have more than ${settings.maxPromptTokens} tokens and were left out`
    report({ type: 'warning', stage, message })
  }
  return short
}

function labelledPrompt(
  { messages, label }: { messages: Message[]; label?: RowLabel },
  { file, line }: RowPlace,
  settings: RlvrSettings,
  stage: string,
): UnencodedPrompt {
  const verifier = label?.verifier ?? settings.verifier
  if (verifier === '') {
    throw new CaravanError('ERR_DATA', `${file}:${line}: no column says which verifier judges the answers`, {
      details: { file, line },
      hint: `name one for all rows with --set ${stage}.verifier=gsm8k, or add a column \`verifier\` or \`dataset\``,
    })
  }
  const text = messages.at(-1)!.content
  return { messages, text, verifier, input: { prompt: text, groundTruth: label?.groundTruth, row: label?.row } }
}

/** Every verifier reads its labels once: a wrong one must not be found in the middle of a run. */
async function checkLabels(
  prompts: readonly UnencodedPrompt[],
  { places, verdicts, signal }: { places: readonly RowPlace[]; verdicts: VerdictSource; signal?: AbortSignal },
): Promise<void> {
  const tasks = prompts.map(({ verifier, input }) => ({ verifier, input: { ...input, completion: '' } }))
  await verdicts.verify(tasks, signal).catch((error: unknown) => {
    const place = error instanceof CaravanError ? places[error.details.task as number] : undefined
    if (!(error instanceof CaravanError) || !place) throw error
    throw new CaravanError(error.code, `${place.file}:${place.line}: ${error.message}`, {
      details: { ...error.details, ...place },
      hint: error.hint,
      cause: error,
    })
  })
}

/** Prompts that are tokenised at once. */
const CHUNK = 512

async function encoded(
  { tokenizer, template }: ChatText,
  prompts: readonly UnencodedPrompt[],
  signal?: AbortSignal,
  onProgress?: (done: number) => void,
): Promise<LabelledPrompt[]> {
  const all: LabelledPrompt[] = []
  for (let from = 0; from < prompts.length; from += CHUNK) {
    const part = prompts.slice(from, from + CHUNK)
    const conversations = part.map(({ messages }) => messages.map((message) => ({ ...message })))
    const ids = await encodePromptBatch(tokenizer, template, conversations, { signal })
    for (const [i, { text, verifier, input }] of part.entries()) all.push({ ids: ids[i]!, text, verifier, input })
    onProgress?.(all.length)
  }
  return all
}
