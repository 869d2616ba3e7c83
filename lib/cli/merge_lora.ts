// `caravan merge-lora`: a base and an adapter become one Hugging Face folder. Each weight is summed in f32 and rounded
// once to the type that is written, which is that of the base's file unless asked otherwise.
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { CaravanError, throwIfAborted } from '../base/errors.js'
import { fileError } from '../data/atomic_file.js'
import { loadAdapter, loadModel, mergeAdapter, readModelConfig, type StoredDtype, saveModel } from '../models/index.js'
import { openDevice } from '../ops/index.js'
import { folderAtomic } from '../recipes/run_folder.js'
import { type DeviceFlag, type DtypeFlag, engineDtype } from './command_options.js'
import { runFileCommand } from './file_command.js'
import { bytesText, durationText, grouped } from './format.js'

export interface MergeLoraFlags {
  model: string
  adapter: string
  out: string
  dtype?: DtypeFlag
  device?: DeviceFlag
  threads?: number
  memoryLimit?: number
  quiet?: boolean
  json?: boolean
}

interface MergeSummary {
  layers: number
  dtype: StoredDtype
  bytes: number
  seconds: number
}

/** What belongs to a model beside its weights and configuration; copied where the base has it. */
const tokenizerNames = new Set([
  ...['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'tokenizer.model'],
  ...['vocab.json', 'merges.txt', 'chat_template.jinja', 'chat_template.json'],
])

/** Merges an adapter into its base; the value is the exit code. */
export function mergeLora(flags: MergeLoraFlags): Promise<number> {
  return runFileCommand<MergeSummary>({
    flags,
    work: (signal, show) =>
      mergeFolders(flags, signal, (done, total) => {
        const parts = ['merging', `${grouped(done)}/${grouped(total)} layers`]
        show({ id: 'merge', done, total, parts })
      }),
    values: (summary) => ({ ...summary, out: flags.out }),
    print({ layers, dtype, bytes, seconds }, terminal) {
      const what = `${grouped(layers)} layers merged, ${bytesText(bytes)} in ${dtype}, in ${durationText(seconds)}`
      terminal.line(`${what} -> ${flags.out}`)
    },
  })
}

/** Writes the merged model to `flags.out`, which appears whole or not at all. ERR_CONFIG when something is there. */
async function mergeFolders(
  flags: MergeLoraFlags,
  signal: AbortSignal,
  onProgress: (done: number, total: number) => void,
): Promise<MergeSummary> {
  const { model: directory, adapter, out, device: kind, threads, memoryLimit } = flags
  const started = performance.now()
  await refuseFull(out)
  const { config } = await readModelConfig(directory)
  const dtype: StoredDtype = engineDtype(flags.dtype) ?? config.dtype
  using device = openDevice({ kind, threads, memoryBudgetBytes: memoryLimit })
  using model = await loadModel(device, directory, { dtype: dtype === 'bf16' ? 'bf16' : 'f32' })
  throwIfAborted(signal)
  const layers = (await loadAdapter(model, adapter)).layers.size
  await mergeAdapter(model, { onProgress, signal })
  let bytes = 0
  await folderAtomic(out, async (temporary) => {
    const written = await saveModel(model, temporary, { dtype, tokenizerFiles: await tokenizerFiles(directory) })
    throwIfAborted(signal)
    bytes = written.reduce((sum, { byteLength }) => sum + byteLength, 0)
  })
  return { layers, dtype, bytes, seconds: (performance.now() - started) / 1000 }
}

async function namesIn(directory: string): Promise<string[] | undefined> {
  return readdir(directory).catch((cause) => {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw fileError('list', directory, cause)
  })
}

async function refuseFull(out: string): Promise<void> {
  const names = await namesIn(out)
  if (names === undefined || names.length === 0) return
  throw new CaravanError('ERR_CONFIG', `--out ${out} is there already, and not empty`, {
    details: { directory: out },
    hint: 'choose a folder that does not exist yet',
  })
}

async function tokenizerFiles(directory: string): Promise<string[]> {
  const names = (await namesIn(directory)) ?? []
  return names.filter((name) => tokenizerNames.has(name)).map((name) => join(directory, name))
}
