// Compares imports and includes with the order of the layers, and finds import cycles.
//   node scripts/check_layers.mjs [--root DIR]
import { dirname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'
import { readSource, report, rootFromArguments, sourceFiles } from './source_files.mjs'

const engine = ['base', 'runtime', 'tensor', 'ops']

/** For each folder of lib/, the folders it may import from besides itself. index.ts may import all. */
const layers = {
  base: [],
  runtime: ['base'],
  tensor: ['base', 'runtime'],
  ops: ['base', 'runtime', 'tensor'],
  nn: engine,
  optim: engine,
  parallel: engine,
  text: ['base'],
  data: ['base'],
  verify: ['base'],
  models: [...engine, 'nn', 'data'],
  generate: [...engine, 'nn', 'models', 'text'],
  losses: engine,
  methods: [...engine, 'losses', 'models', 'generate', 'verify', 'data', 'text'],
  train: [...engine, 'methods', 'optim', 'parallel', 'data'],
  evals: [...engine, 'generate', 'verify', 'models', 'text', 'data'],
}
layers.recipes = Object.keys(layers)
layers.cli = Object.keys(layers)

/** Files that a folder may import from another one, where it may not import all of that folder. */
const onlyFiles = {
  'train -> methods': ['lib/methods/method.ts'],
  'verify -> text': ['lib/text/tokenizer.ts'],
}

/** Files that may import each other in a circle, and why. */
const allowedCycles = [
  // Gradients of primitives are made of other primitives. They run long after all of these files have been loaded.
  ['elementwise', 'reduce', 'movement', 'matmul'].map((name) => `lib/ops/${name}.ts`),
]

const reasons = {
  base: 'base holds values without a device and imports nothing',
  text: 'text works without any tensor',
  data: 'data works without any tensor or tokenizer',
  verify: 'verify is pure: (prompt, completion, truth) -> score',
  losses: 'losses know no models',
  methods: 'methods know no optimizer, device count or file',
  train: 'train knows no algorithm: of methods it sees the contract alone',
}

/** What a folder of native/ may include besides itself. */
const nativeLayers = {
  core: [],
  cpu: ['core'],
  cuda: ['core'],
  comm: ['core'],
  kernels: ['core', 'cpu', 'cuda'],
  node: ['core', 'cpu', 'cuda', 'comm'],
  lab: ['core', 'cpu', 'cuda', 'kernels'],
}

/** All faults of the tree at `root`, one line each. */
export function checkLayers(root) {
  const graph = new Map()
  const faults = []
  for (const file of sourceFiles(root, ['lib'], ['.ts'])) {
    const imports = importsOf(readSource(root, file))
    graph.set(
      file,
      imports
        .filter(({ from }) => from.startsWith('.'))
        .map((entry) => ({ ...entry, file: resolved(file, entry.from) })),
    )
    faults.push(...importFaults(file, graph.get(file)), ...nativeImportFaults(file, imports))
  }
  faults.push(...cycles(graph), ...includeFaults(root))
  return faults
}

/** Static, re-exporting and dynamic imports of a module. A type import leaves nothing at run time. */
function importsOf(text) {
  const found = []
  const pattern =
    /^[ \t]*(?:import|export)\s+(type\s+)?[^'"]*?from\s+'([^']+)'|\bimport\('([^']+)'\)|^[ \t]*import\s+'([^']+)'/gm
  for (const match of text.matchAll(pattern)) {
    const line = text.slice(0, match.index).split('\n').length
    found.push({
      from: match[2] ?? match[3] ?? match[4],
      isType: match[1] !== undefined,
      isDynamic: match[3] !== undefined,
      line,
    })
  }
  return found
}

function resolved(file, from) {
  return normalize(join(dirname(file), from)).replace(/\.js$/, '.ts')
}

function layerOf(file) {
  return file.split('/')[1]
}

function importFaults(file, imports) {
  const layer = layerOf(file)
  if (layer === 'index.ts') return []
  if (!layers[layer]) return [`${file}: lib/${layer} is not a layer of scripts/check_layers.mjs`]
  return imports.flatMap(({ file: target, line }) => {
    const other = layerOf(target)
    const allowed = onlyFiles[`${layer} -> ${other}`]
    const isAllowed = allowed ? allowed.includes(target) : layers[layer].includes(other)
    if (other === layer || isAllowed) return []
    const list = layers[layer].join(', ') || 'nothing'
    const reason = reasons[layer] ? ` (${reasons[layer]})` : ''
    return [`${file}:${line}: ${layer} must not import ${target}; ${layer} may import: ${list}${reason}`]
  })
}

/** Only lib/runtime loads the .node file. */
function nativeImportFaults(file, imports) {
  if (layerOf(file) === 'runtime') return []
  return imports
    .filter(({ from }) => from.endsWith('.node'))
    .map(({ from, line }) => {
      return `${file}:${line}: only lib/runtime may load the native addon, not ${file} (${from})`
    })
}

/** Cycles of imports that exist at run time, each once, as the path that closes it. */
function cycles(graph) {
  const faults = []
  const state = new Map()
  const visit = (file, path) => {
    if (state.get(file) === 'done' || !graph.has(file)) return
    if (state.get(file) === 'open') {
      const cycle = path.slice(path.indexOf(file))
      const isAllowed = allowedCycles.some((files) => cycle.every((one) => files.includes(one)))
      if (!isAllowed) faults.push(`import cycle: ${[...cycle, file].join(' -> ')}`)
      return
    }
    state.set(file, 'open')
    for (const { file: target, isType, isDynamic } of graph.get(file)) {
      if (!isType && !isDynamic) visit(target, [...path, file])
    }
    state.set(file, 'done')
  }
  for (const file of graph.keys()) visit(file, [])
  return faults
}

function includeFaults(root) {
  const faults = []
  for (const file of sourceFiles(root, ['native'], ['.cc', '.h', '.cu'])) {
    const layer = layerOf(file)
    const text = readSource(root, file)
    for (const match of text.matchAll(/^\s*#\s*include\s+[<"]([^>"]+)[>"]/gm)) {
      const line = text.slice(0, match.index).split('\n').length
      const included = match[1]
      const other = included.split('/')[0]
      if (included === 'napi.h' && layer !== 'node') {
        faults.push(`${file}:${line}: only native/node may include napi.h`)
      }
      if (!(other in nativeLayers) || !included.includes('/') || other === layer) continue
      const allowed = nativeLayers[layer]
      if (!allowed) faults.push(`${file}: native/${layer} is not a layer of scripts/check_layers.mjs`)
      else if (!allowed.includes(other)) {
        faults.push(
          `${file}:${line}: ${layer} must not include ${included}; it may include: ${allowed.join(', ') || 'nothing'}`,
        )
      }
    }
  }
  return faults
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const root = rootFromArguments(process.argv, dirname(dirname(fileURLToPath(import.meta.url))))
  report('layers', checkLayers(root))
}
