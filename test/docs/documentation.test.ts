// The documentation as a reader uses it: code blocks marked `ts run` are compiled and run against the built package,
// what a following `text` block shows is what they print, and links lead somewhere.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, it } from 'vitest'

const root = fileURLToPath(new URL('../..', import.meta.url))
// Inside the package, so that its own name resolves to its own build.
const workFolder = join(root, 'build/documentation')

const documents = [
  'README.md',
  'CONTRIBUTING.md',
  'LOG.md',
  ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`),
]

interface Block {
  document: string
  line: number
  code: string
  /** What it must print, where the document says so. */
  output: string | undefined
}

interface Fence {
  info: string
  line: number
  text: string
  /** Line after the fence. */
  end: number
}

function fencesOf(document: string): Fence[] {
  const lines = readFileSync(join(root, document), 'utf8').split('\n')
  const fences: Fence[] = []
  for (let i = 0; i < lines.length; i++) {
    if (!lines[i]!.startsWith('```')) continue
    const end = lines.indexOf('```', i + 1)
    if (end < 0) throw new Error(`${document}:${i + 1}: this code block does not end`)
    fences.push({
      info: lines[i]!.slice(3).trim(),
      line: i + 1,
      text: `${lines.slice(i + 1, end).join('\n')}\n`,
      end: end + 2,
    })
    i = end
  }
  return fences
}

function blocksOf(document: string): Block[] {
  const fences = fencesOf(document)
  return fences.flatMap(({ info, line, text, end }, i) => {
    if (info !== 'ts run') return []
    const next = fences[i + 1]
    const isOutput = next !== undefined && next.info === 'text' && next.line - end <= 1
    return [{ document, line, code: text, output: isOutput ? next.text : undefined }]
  })
}

const blocks = documents.flatMap(blocksOf)
const nameOf = ({ document, line }: Block) => `${document.replaceAll(/\W/g, '_')}_${line}`

function compile(): string {
  rmSync(workFolder, { recursive: true, force: true })
  mkdirSync(workFolder, { recursive: true })
  for (const block of blocks) writeFileSync(join(workFolder, `${nameOf(block)}.ts`), block.code)
  const compilerOptions = { rootDir: '.', outDir: 'out', declaration: false, sourceMap: false }
  writeFileSync(
    join(workFolder, 'tsconfig.json'),
    JSON.stringify({ extends: '../../tsconfig.json', compilerOptions, include: ['*.ts'] }),
  )
  const { stdout } = spawnSync(join(root, 'node_modules/.bin/tsc'), ['-p', workFolder], { encoding: 'utf8' })
  return stdout
}

describe('code in the documentation', () => {
  let faults: string
  beforeAll(() => {
    faults = compile()
  })

  it('is there', () => {
    expect(blocks.length).toBeGreaterThan(4)
  })

  it('compiles', () => {
    expect(faults).toBe('')
  })

  it.each(blocks.map((block) => [`${block.document}:${block.line}`, block] as const))('%s runs', (_, block) => {
    const file = join(workFolder, 'out', `${nameOf(block)}.js`)
    const { stdout, stderr, status } = spawnSync(process.execPath, [file], {
      cwd: root,
      encoding: 'utf8',
      timeout: 50_000,
    })
    expect({ stderr, status }).toEqual({ stderr: '', status: 0 })
    if (block.output !== undefined) expect(stdout).toBe(block.output)
  })
})

/** The anchor that a heading gets on the usual hosts. */
function anchorOf(heading: string): string {
  return heading
    .replace(/^#+\s+/, '')
    .toLowerCase()
    .replaceAll(/[^\w\s-]/g, '')
    .replaceAll(' ', '-')
}

function anchorsOf(path: string): Set<string> {
  const lines = readFileSync(path, 'utf8').split('\n')
  return new Set(lines.filter((line) => /^#+\s/.test(line)).map(anchorOf))
}

describe.each(documents)('%s', (document) => {
  const text = readFileSync(join(root, document), 'utf8')

  it('has links that lead somewhere', () => {
    const broken: string[] = []
    for (const [, target] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(target!)) continue
      const [path, anchor] = target!.split('#') as [string, string | undefined]
      const file = path === '' ? join(root, document) : join(root, dirname(document), path)
      if (!existsSync(file)) broken.push(target!)
      else if (anchor !== undefined && !anchorsOf(file).has(anchor)) broken.push(target!)
    }
    expect(broken).toEqual([])
  })

  it('names only files that exist', () => {
    const named = [...text.matchAll(/`((?:lib|native|test|examples|scripts|docs|bench)\/[\w./-]+\.\w+)`/g)].map(
      ([, path]) => path!,
    )
    const missing = named.filter((path) => !path.includes('<') && !existsSync(join(root, path)))
    expect(missing.map((path) => relative(root, join(root, path)))).toEqual([])
  })
})
