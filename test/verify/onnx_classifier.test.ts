// ONNX classifiers: scores against the formula of the graph in doubles; rows of pairs against the tokenizer library.
import { execFile } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import tokenizers from 'tokenizers'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { OnnxClassifier, type OnnxClassifierOptions, type ScoredPair } from '../../lib/verify/onnx_classifier.js'
import { joinRow, rowTemplate } from '../../lib/verify/onnx_classifier_pair.js'
import { tokenizerFolder } from '../text/golden_files.js'
import { type ClassifierWeights, classifierGraph } from './onnx_graph.js'

const repository = fileURLToPath(new URL('../../', import.meta.url))
const root = mkdtempSync(join(tmpdir(), 'caravan-onnx-'))
const loaded: OnnxClassifier[] = []
afterEach(async () => {
  await Promise.all(loaded.splice(0).map((one) => one.dispose()))
})
afterAll(() => rmSync(root, { recursive: true, force: true }))

const LETTERS = 'abcdefghijklmnopqrstuvwxyz'
const VOCABULARY = 3 + LETTERS.length
const WIDTH = 4

/** One token a letter; rows `<s> a </s> b </s>`, the answer and its end in segment 1. */
const TOKENIZER = {
  version: '1.0',
  truncation: null,
  padding: null,
  added_tokens: ['<s>', '</s>', '<pad>'].map((content, id) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  })),
  normalizer: null,
  pre_tokenizer: null,
  post_processor: { type: 'BertProcessing', cls: ['<s>', 0], sep: ['</s>', 1] },
  decoder: null,
  model: {
    type: 'BPE',
    dropout: null,
    unk_token: null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    vocab: Object.fromEntries(['<s>', '</s>', '<pad>', ...LETTERS].map((token, id) => [token, id])),
    merges: [],
  },
}

function weightsOf(labels: number, hasSegments: boolean): ClassifierWeights {
  const random = new Random(7)
  const draw = (length: number) => Float32Array.from({ length }, () => 2 * random.uniform() - 1)
  return {
    tokens: draw(VOCABULARY * WIDTH),
    segments: hasSegments ? draw(2 * WIDTH) : undefined,
    head: draw(WIDTH * labels),
    vocabulary: VOCABULARY,
    width: WIDTH,
    labels,
  }
}

let folders = 0

/** A folder as an export writes it. */
function folderOf(weights: ClassifierWeights, files: Record<string, string | Buffer | undefined> = {}): string {
  const folder = join(root, `model${folders++}`)
  mkdirSync(folder)
  const all = {
    'model.onnx': classifierGraph(weights),
    'tokenizer.json': JSON.stringify(TOKENIZER),
    'tokenizer_config.json': JSON.stringify({ pad_token: '<pad>', model_max_length: 64 }),
    'config.json': JSON.stringify({ id2label: { 0: 'bad', 1: 'fair', 2: 'good' } }),
    ...files,
  }
  for (const [name, text] of Object.entries(all)) if (text !== undefined) writeFileSync(join(folder, name), text)
  return folder
}

async function load(folder: string, options?: OnnxClassifierOptions): Promise<OnnxClassifier> {
  const classifier = await OnnxClassifier.load(folder, options)
  loaded.push(classifier)
  return classifier
}

const idsOf = (text: string) => [...text].map((letter) => 3 + LETTERS.indexOf(letter))

/** The row of a pair, written out. */
function rowOf({ prompt, completion }: ScoredPair): { ids: number[]; segments: number[] } {
  const answer = [...idsOf(completion), 1]
  const before = prompt === undefined ? [0] : [0, ...idsOf(prompt), 1]
  const segment = prompt === undefined ? 0 : 1
  return { ids: [...before, ...answer], segments: [...before.map(() => 0), ...answer.map(() => segment)] }
}

/** What the graph computes, in doubles. */
function logitsOf({ tokens, segments, head, labels }: ClassifierWeights, pair: ScoredPair): number[] {
  const { ids, segments: kinds } = rowOf(pair)
  const mean = Array.from({ length: WIDTH }, (_, d) => {
    const values = ids.map((id, i) => tokens[id * WIDTH + d]! + (segments?.[kinds[i]! * WIDTH + d] ?? 0))
    return values.reduce((sum, value) => sum + value, 0) / ids.length
  })
  return Array.from({ length: labels }, (_, n) =>
    mean.reduce((sum, value, d) => sum + value * head[d * labels + n]!, 0),
  )
}

/** Pairs of very different lengths, some without a prompt. */
const pairs: ScoredPair[] = Array.from({ length: 40 }, (_, i) => ({
  prompt: i % 5 === 0 ? undefined : LETTERS.slice(0, (i * 7) % 26),
  completion: LETTERS.slice(i % 13, (i % 13) + 1 + ((i * 3) % 11)),
}))

const close = (values: number[]) => values.map((value) => expect.closeTo(value, 5))

describe('scores', () => {
  it.each([true, false])('are the only logit (segments: %s)', async (hasSegments) => {
    const weights = weightsOf(1, hasSegments)
    const classifier = await load(folderOf(weights))
    expect(await classifier.score(pairs)).toEqual(close(pairs.map((pair) => logitsOf(weights, pair)[0]!)))
    expect(await classifier.score([])).toEqual([])
  })

  it('do not depend on how rows are batched', async () => {
    const weights = weightsOf(1, true)
    const expected = close(pairs.map((pair) => logitsOf(weights, pair)[0]!))
    for (const batchTokens of [1, 60, 1e6]) {
      expect(await (await load(folderOf(weights), { batchTokens })).score(pairs)).toEqual(expected)
    }
  })

  const softmax = (logits: number[], at: number) =>
    Math.exp(logits[at]!) / logits.reduce((sum, logit) => sum + Math.exp(logit), 0)
  const sigmoid = (logit: number) => 1 / (1 + Math.exp(-logit))
  it.each<[OnnxClassifierOptions, (logits: number[]) => number]>([
    [{ label: 'good' }, (logits) => softmax(logits, 2)],
    [{ label: 1 }, (logits) => softmax(logits, 1)],
    [{ label: 'bad', activation: 'sigmoid' }, (logits) => sigmoid(logits[0]!)],
    [{ label: 2, activation: 'none' }, (logits) => logits[2]!],
  ])('of several labels: %j', async (options, score) => {
    const weights = weightsOf(3, true)
    const classifier = await load(folderOf(weights), options)
    expect(await classifier.score(pairs)).toEqual(close(pairs.map((pair) => score(logitsOf(weights, pair)))))
  })

  it('come from several graphs at once', async () => {
    const [one, two] = [weightsOf(1, true), weightsOf(3, false)]
    const first = await load(folderOf(one, { 'onnx.txt': '' }), { activation: 'sigmoid' })
    const second = await load(folderOf(two), { label: 0, activation: 'none' })
    const scores = await Promise.all([first.score(pairs), second.score(pairs), first.score(pairs.slice(3))])
    const expected = pairs.map((pair) => sigmoid(logitsOf(one, pair)[0]!))
    expect(scores[0]).toEqual(close(expected))
    expect(scores[1]).toEqual(close(pairs.map((pair) => logitsOf(two, pair)[0]!)))
    expect(scores[2]).toEqual(close(expected.slice(3)))
  })

  it('are of the end of the prompt and all of the answer', async () => {
    const weights = weightsOf(1, true)
    const classifier = await load(folderOf(weights), { maxTokens: 10 })
    const cut = [
      [
        { prompt: 'abcdefgh', completion: 'xyz' },
        { prompt: 'efgh', completion: 'xyz' },
      ],
      [
        { prompt: 'abcdefgh', completion: 'klmnopqrst' },
        { prompt: '', completion: 'klmnopq' },
      ],
      [{ completion: 'abcdefghijkl' }, { completion: 'abcdefgh' }],
    ]
    const huge = { prompt: 'q'.repeat(3e6), completion: 'z'.repeat(3e6) }
    expect(await classifier.score([...cut.map(([long]) => long!), huge])).toEqual(
      close(
        [...cut.map(([, short]) => short!), { prompt: '', completion: 'zzzzzzz' }].map(
          (short) => logitsOf(weights, short)[0]!,
        ),
      ),
    )
  })
})

describe('real exports', () => {
  interface GoldenRow {
    prompt: string | null
    completion: string
    ids: number[]
    logits: number[]
  }
  const pairOf = ({ prompt, completion }: GoldenRow): ScoredPair => ({ prompt: prompt ?? undefined, completion })

  it.each([
    ['bert', 1],
    ['bert', 50],
    ['bert', 4096],
    ['qwen2', 50],
    ['qwen2', 4096],
  ])('have the scores that transformers gives: %s, batches of %i tokens', async (kind, batchTokens) => {
    const folder = join(repository, 'test/golden/onnx', kind)
    const rows = JSON.parse(readFileSync(join(folder, 'scores.json'), 'utf8')) as GoldenRow[]
    for (const [index, label] of ['bad', 'fair', 'good'].entries()) {
      const classifier = await load(folder, { label, activation: 'none', batchTokens })
      const scores = await classifier.score(rows.map(pairOf))
      expect(scores).toEqual(rows.map(({ logits }) => expect.closeTo(logits[index]!, 4)))
    }
  })

  it('have the rows of their WordPiece tokenizer', async () => {
    const folder = join(repository, 'test/golden/onnx/bert')
    const rows = JSON.parse(readFileSync(join(folder, 'scores.json'), 'utf8')) as GoldenRow[]
    const tokenizer = await Tokenizer.load(folder)
    for (const { prompt, completion, ids } of rows) {
      const [before, answer] = await tokenizer.encodeBatch([prompt ?? '', completion])
      const texts = { prompt: prompt === null ? undefined : before!.ids, answer: answer!.ids }
      expect([...joinRow(rowTemplate(tokenizer), texts, 64).ids]).toEqual(ids)
    }
  })
})

describe('rows', () => {
  const roberta = { type: 'RobertaProcessing', sep: ['</s>', 1], cls: ['<s>', 0], trim_offsets: true }
  const template = {
    type: 'TemplateProcessing',
    single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
    pair: [
      { Sequence: { id: 'B', type_id: 1 } },
      { SpecialToken: { id: '</s>', type_id: 1 } },
      { Sequence: { id: 'A', type_id: 0 } },
    ],
    special_tokens: {
      '<s>': { id: '<s>', ids: [0], tokens: ['<s>'] },
      '</s>': { id: '</s>', ids: [1], tokens: ['</s>'] },
    },
  }
  const processors: [name: string, processor: object | null][] = [
    ['BERT', TOKENIZER.post_processor],
    ['RoBERTa', { ...roberta, add_prefix_space: false }],
    ['a template', template],
    [
      'a sequence',
      {
        type: 'Sequence',
        processors: [{ type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true }, template],
      },
    ],
    ['none', null],
  ]

  it.each(processors)('are what the library makes of pairs: %s', async (_, post_processor) => {
    const json = { ...TOKENIZER, post_processor }
    const tokenizer = Tokenizer.fromJson(json)
    const library = tokenizers.Tokenizer.fromString(JSON.stringify(json))
    const texts = { prompt: Int32Array.from(idsOf('abc')), answer: Int32Array.from(idsOf('xy')) }
    for (const prompt of ['abc', undefined]) {
      const encoding = await library.encode(prompt ?? 'xy', prompt === undefined ? null : 'xy', {
        addSpecialTokens: true,
      })
      const row = joinRow(
        rowTemplate(tokenizer),
        { ...texts, prompt: prompt === undefined ? undefined : texts.prompt },
        64,
      )
      expect([...row.ids]).toEqual(encoding.getIds())
      expect([...row.segments]).toEqual(encoding.getTypeIds())
    }
  })

  it('are right for a tokenizer of a language model', async () => {
    const tokenizer = await Tokenizer.load(tokenizerFolder('llama3'))
    const library = tokenizers.Tokenizer.fromString(tokenizer.files.get('tokenizer.json')!.toString())
    const [prompt, answer] = await tokenizer.encodeBatch(['What is 2 + 2?', ' It is four.'])
    const row = joinRow(rowTemplate(tokenizer), { prompt: prompt!.ids, answer: answer!.ids }, 512)
    const encoding = await library.encode('What is 2 + 2?', ' It is four.', { addSpecialTokens: true })
    expect([...row.ids]).toEqual(encoding.getIds())
    expect([...row.segments]).toEqual(encoding.getTypeIds())
  })
})

describe('errors', () => {
  const three = weightsOf(3, false)
  const graph = classifierGraph(three)
  const cases: [what: string, folder: () => string, options: OnnxClassifierOptions, code: string, message: RegExp][] = [
    [
      'no label chosen',
      () => folderOf(three),
      {},
      'ERR_CONFIG',
      /has 3 labels: `label` must be one of bad, fair, good/,
    ],
    ['an unknown label', () => folderOf(three), { label: 'god' }, 'ERR_CONFIG', /got "god"/],
    ['a label too high', () => folderOf(three), { label: 3 }, 'ERR_CONFIG', /\(0 to 2\); got 3/],
    ['softmax of one', () => folderOf(weightsOf(1, false)), { activation: 'softmax' }, 'ERR_CONFIG', /is always 1/],
    ['no tokens at all', () => folderOf(three), { label: 0, maxTokens: 3 }, 'ERR_CONFIG', /beside 3 special tokens/],
    ['no threads', () => folderOf(three), { label: 0, threads: 0 }, 'ERR_CONFIG', /`threads` must be/],
    [
      'no graph',
      () => folderOf(three, { 'model.onnx': undefined }),
      {},
      'ERR_MODEL',
      /no model\.onnx or onnx\/model\.onnx/,
    ],
    ['another graph', () => folderOf(three), { file: 'q.onnx' }, 'ERR_MODEL', /there is no q\.onnx/],
    [
      'a damaged graph',
      () => folderOf(three, { 'model.onnx': graph.subarray(0, 200) }),
      {},
      'ERR_MODEL',
      /model\.onnx: /,
    ],
    [
      'a graph of something else',
      () => folderOf(three, { 'model.onnx': classifierGraph(three, { input_ids: 'pixels' }) }),
      {},
      'ERR_MODEL',
      /has the inputs input_ids and maybe .*; got pixels, attention_mask/,
    ],
    [
      'a graph with a smaller vocabulary',
      () => folderOf({ ...three, vocabulary: 2, tokens: three.tokens.subarray(0, 2 * WIDTH) }),
      { label: 0 },
      'ERR_MODEL',
      /indices element out of data bounds/,
    ],
    ['no tokenizer', () => folderOf(three, { 'tokenizer.json': undefined }), {}, 'ERR_TOKENIZER', /is missing/],
    ['a bad configuration', () => folderOf(three, { 'config.json': '{' }), {}, 'ERR_MODEL', /config\.json/],
  ]

  it.for(cases)('%s', async ([, folder, options, code, message]) => {
    await expect(load(folder(), options)).rejects.toMatchObject({ code, message: expect.stringMatching(message) })
  })

  it('name the pair whose score is no number', async () => {
    const weights = weightsOf(1, false)
    weights.tokens.fill(Number.NaN, idsOf('q')[0]! * WIDTH, (idsOf('q')[0]! + 1) * WIDTH)
    const classifier = await load(folderOf(weights))
    const some = ['a', 'q', 'b'].map((completion) => ({ completion }))
    await expect(classifier.score(some)).rejects.toMatchObject({ code: 'ERR_MODEL', details: { pair: 1 } })
  })

  it('of an ended classifier, and of a signal', async () => {
    const classifier = await load(folderOf(weightsOf(1, false)))
    await expect(classifier.score(pairs, AbortSignal.abort())).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    const scoring = classifier.score(pairs)
    scoring.catch(() => {})
    await classifier.dispose()
    await expect(scoring).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
    await expect(classifier.score(pairs)).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
    await classifier.dispose()
  })
})

describe('the runtime', () => {
  const script = (library: string, folder: string) => `
    import { OnnxClassifier } from ${JSON.stringify(join(library, 'verify/onnx_classifier.js'))}
    try {
      const classifier = await OnnxClassifier.load(${JSON.stringify(folder)})
      console.log((await classifier.score([{ completion: 'a' }])).length)
    } catch ({ code, message, hint }) {
      console.log(code, message, hint)
    }`
  const run = async (library: string) => {
    const words = ['--input-type=module', '-e', script(library, folderOf(weightsOf(1, false)))]
    return (await promisify(execFile)(process.execPath, words, { timeout: 30_000 })).stdout
  }

  it('keeps no process alive', async () => {
    expect(await run(join(repository, 'dist'))).toBe('1\n')
  })

  it('is named where it is missing', async () => {
    const library = join(root, 'alone')
    for (const part of ['base', 'text', 'verify'])
      cpSync(join(repository, 'dist', part), join(library, part), { recursive: true })
    writeFileSync(join(library, 'package.json'), '{"type":"module"}')
    mkdirSync(join(library, 'node_modules'))
    for (const name of ['tokenizers', '@huggingface']) {
      symlinkSync(join(repository, 'node_modules', name), join(library, 'node_modules', name))
    }
    expect(await run(library)).toMatch(
      /^ERR_CONFIG ONNX classifiers need the package onnxruntime-node, which is not installed npm install onnxruntime-node/,
    )
  })
})
