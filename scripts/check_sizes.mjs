// Sizes and names that keep the code readable: lengths of files, functions and lines, numbers of parameters, file
// names.
//   node scripts/check_sizes.mjs [--root DIR]
import { basename, dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseAst } from 'vitest/node'
import { readSource, report, rootFromArguments, sourceFiles } from './source_files.mjs'

const limits = { fileLines: 500, functionLines: 60, lineWidth: 120, parameters: 4 }
/** C++ has no destructured parameters, and an object of pointers in an inner loop costs what the compiler then cannot
 *  keep in registers. */
const nativeLimits = { ...limits, parameters: 6 }
const kernelLimits = { ...nativeLimits, fileLines: 600, functionLines: 150, parameters: 9 }
const bannedNames = ['utils', 'util', 'helpers', 'helper', 'common', 'misc', 'manager']

/** Where a rule ('file', 'function', 'parameters', 'width', 'name', 'console') does not hold, and why. */
const exceptions = [
  { file: 'test/native/simt/simt_hopper.cc', rule: 'parameters', why: "a function of CUDA's driver has that many" },
]

/** A line that is long because of one literal or address in it: the formatter breaks everything else. */
function unbreakable(line) {
  if (line.includes('://')) return true
  return !/^\s*(\/\/|\/?\*)/.test(line) && /(['"`/])(?:(?!\1).){80,}/.test(line)
}

/** All faults of the tree at `root`, one line each. */
export function checkSizes(root) {
  const faults = []
  const script = sourceFiles(root, ['lib', 'test', 'scripts', 'examples'], ['.ts', '.mjs'])
  for (const file of script) faults.push(...checkFile(root, file, scriptFunctions))
  for (const file of sourceFiles(root, ['native', 'test/native', 'bench/native'], ['.cc', '.h', '.cu'])) {
    faults.push(...checkFile(root, file, nativeFunctions))
  }
  return faults.filter((fault) => !isExcepted(fault)).map(({ file, line, text }) => `${file}:${line}: ${text}`)
}

function isExcepted({ file, rule }) {
  return exceptions.some((entry) => entry.file === file && entry.rule === rule)
}

function limitsOf(file) {
  if (file.startsWith('native/kernels/')) return kernelLimits
  return /\.(cc|h|cu)$/.test(file) ? nativeLimits : limits
}

function checkFile(root, file, functionsOf) {
  const text = readSource(root, file)
  const lines = text.replace(/\n$/, '').split('\n')
  const own = limitsOf(file)
  const faults = []
  const add = (line, rule, message) => faults.push({ file, line, rule, text: message })
  const stem = basename(file).split('.')[0]
  if (bannedNames.includes(stem)) add(1, 'name', `the name '${stem}' says nothing: name the concept`)
  if (!/^[a-z0-9_]+$/.test(stem)) add(1, 'name', 'file names are snake_case')
  if (lines.length > own.fileLines) add(1, 'file', `${lines.length} lines; at most ${own.fileLines}`)
  for (const [i, line] of lines.entries()) {
    const width = [...line].length
    if (width > own.lineWidth && !unbreakable(line)) add(i + 1, 'width', `${width} columns; at most ${own.lineWidth}`)
    if (file.startsWith('lib/') && !file.startsWith('lib/cli/') && /\bconsole\./.test(line)) {
      add(i + 1, 'console', 'a library never prints')
    }
  }
  for (const { line, name, length, parameters } of functionsOf(file, text)) {
    // The blocks of tests are lists of cases, not functions to be understood as one.
    if (length > own.functionLines && !file.startsWith('test/')) {
      add(line, 'function', `${name} has ${length} lines; at most ${own.functionLines}`)
    }
    if (parameters > own.parameters) {
      add(line, 'parameters', `${name} has ${parameters} parameters; at most ${own.parameters}, then an object`)
    }
  }
  return faults
}

const functionTypes = new Set(['FunctionDeclaration', 'FunctionExpression', 'ArrowFunctionExpression'])

function scriptFunctions(file, text) {
  const found = []
  const lineOf = lineCounter(text)
  const visit = (node, name) => {
    if (Array.isArray(node)) {
      for (const item of node) visit(item, name)
      return
    }
    if (node === null || typeof node !== 'object') return
    const own = node.id?.name ?? node.key?.name ?? name
    if (functionTypes.has(node.type)) {
      const line = lineOf(node.start)
      const parameters = node.params.filter((param) => param.name !== 'this').length
      found.push({ line, name: own ?? 'a function', length: lineOf(node.end) - line + 1, parameters })
    }
    for (const [key, value] of Object.entries(node)) if (key !== 'type') visit(value, own)
  }
  visit(parseAst(text, { lang: file.endsWith('.ts') ? 'ts' : 'js' }), undefined)
  return found
}

function lineCounter(text) {
  const starts = [0]
  for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) starts.push(at + 1)
  return (offset) => {
    let [low, high] = [0, starts.length]
    while (high - low > 1) {
      const middle = (low + high) >> 1
      if (starts[middle] <= offset) low = middle
      else high = middle
    }
    return low + 1
  }
}

/** Function definitions of C++ text, found by their braces: a body is what follows `)` outside any other body. */
function nativeFunctions(_file, text) {
  const code = withoutCommentsAndStrings(text)
  const lineOf = lineCounter(code)
  const found = []
  const open = []
  let head = 0
  for (let at = 0; at < code.length; at++) {
    const character = code[at]
    if (character === ';' || (character === '}' && open.length === 0)) head = at + 1
    else if (character === '{') {
      const signature = code.slice(head, at)
      const inFunction = open.some(({ isFunction }) => isFunction)
      const isType = /\b(namespace|struct|class|enum|union|extern)\b[^()]*$/.test(signature)
      const isFunction = !inFunction && !isType && /\)[\w\s:<>&*,()]*$/.test(signature)
      open.push({ isFunction, signature, start: head + signature.search(/\S|$/) })
      head = at + 1
    } else if (character === '}') {
      const { isFunction, signature, start } = open.pop()
      head = at + 1
      if (!isFunction) continue
      const { name, parameters } = nativeSignature(signature)
      const line = lineOf(start)
      found.push({ line, name, length: lineOf(at) - line + 1, parameters })
    }
  }
  return found
}

/** Name and number of parameters: of the first `name(...)` outside template brackets. */
function nativeSignature(signature) {
  const match = /([\w:~]+)\s*\(/.exec(signature.replace(/template\s*<[^>]*>|alignas\s*\([^)]*\)/g, ''))
  const start = match ? signature.indexOf(match[0]) + match[0].length : signature.length
  let [depth, parameters] = [0, signature.slice(start).trim().startsWith(')') ? 0 : 1]
  for (const character of signature.slice(start)) {
    if ('([{<'.includes(character)) depth++
    else if (character === ')' && depth === 0) break
    else if (')]}>'.includes(character)) depth--
    else if (character === ',' && depth === 0) parameters++
  }
  const name = match?.[1] ?? 'a function'
  // The op, device and signature of a kernel are no parameters.
  return { name, parameters: /^CARAVAN_|^TEST$/.test(name) ? 0 : parameters }
}

/** The text with the insides of comments, strings and preprocessor lines blanked, at the same offsets. */
function withoutCommentsAndStrings(text) {
  const blank = (match) => match.replace(/[^\n]/g, ' ')
  return text.replace(
    /\/\/[^\n]*|\/\*[\s\S]*?\*\/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])'|^[ \t]*#(?:[^\n\\]|\\[\s\S])*/gm,
    blank,
  )
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const root = rootFromArguments(process.argv, dirname(dirname(fileURLToPath(import.meta.url))))
  report('sizes', checkSizes(root))
}
