// Wrong command lines: exit code 2, one line that says what is wrong, one that says what to do, and no stack.
import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { execute } from '../../lib/cli/main.js'
import { createProgram } from '../../lib/cli/program.js'
import { caravan, temporaryFolder } from './command_line.js'

const folder = temporaryFolder()

/** The command line in this process: a hundred times faster than one of its own. */
async function here(words: readonly string[]): Promise<{ exitCode: number; stdout: string; stderr: string }> {
  let [stdout, stderr] = ['', '']
  const exitCode = await execute(words, {
    stdout: { write: (text: string) => (stdout += text) },
    stderr: { write: (text: string) => (stderr += text) },
  })
  return { exitCode, stdout, stderr }
}

beforeAll(() => {
  vi.stubEnv('FORCE_COLOR', '')
  vi.stubEnv('CARAVAN_DEBUG', '')
})
afterAll(() => vi.unstubAllEnvs())

interface UsageCase {
  words: string[]
  error: RegExp
  hint?: RegExp
}

const generateWords = ['generate', '--model', 'm', '--input', 'a', '--output', 'b']

const cases: UsageCase[] = [
  { words: [], error: /a command is needed/, hint: /caravan --help/ },
  { words: ['trian'], error: /unknown command 'trian'/, hint: /did you mean train\?/ },
  { words: ['train', '--recpie', 'tulu3'], error: /unknown option '--recpie'/, hint: /did you mean --recipe\?/ },
  { words: ['train', 'stray'], error: /too many arguments/ },
  { words: ['train', '--recipe', 'tulu'], error: /there is no recipe 'tulu'; known: tulu3/, hint: /'tulu3'/ },
  { words: ['train', '--scale', '8B'], error: /no scale '8B'; known: pocket, 8b/, hint: /'8b'/ },
  { words: ['train', '--stage', 'stf'], error: /has no stage 'stf'/, hint: /'sft'/ },
  { words: ['train', '--algorithm', 'grp'], error: /no algorithm 'grp'; known: ppo, grpo/, hint: /'grpo'/ },
  { words: ['train', '--stage', 'sft,'], error: /--stage must be names separated by commas; got "sft,"/ },
  { words: ['train', '--set', 'sft.lrr=1'], error: /stage sft has no setting 'lrr'/, hint: /'lr'/ },
  { words: ['train', '--set', 'lr'], error: /--set must be written stage\.setting=value/ },
  { words: ['train', '--set', 'sft.lr=fast'], error: /sft\.lr must be a number like .*, got "fast"/ },
  { words: ['train', '--fields', 'prompt'], error: /--fields must be name=column pairs/ },
  { words: ['train', '--seed', '-1'], error: /--seed must be a whole number >= 0; got "-1"/ },
  { words: ['train', '--threads', '0'], error: /--threads must be a whole number >= 1; got "0"/ },
  { words: ['train', '--threads', 'two'], error: /--threads must be a whole number/ },
  { words: ['train', '--dtype', 'fp16'], error: /--dtype must be one of fp32, bf16; got "fp16"/ },
  { words: ['train', '--device', 'gpu'], error: /--device must be one of cpu, cuda/ },
  { words: ['train', '--memory-limit', '8 elephants'], error: /--memory-limit must be a size such as 8GiB/ },
  { words: ['train', '--resume', 'nowhere'], error: /nowhere cannot be resumed/, hint: /folder of an earlier run/ },
  { words: ['train', '--resume', 'a', '--out', 'b'], error: /--resume a and --out b name two run folders/ },
  { words: ['train', '--recipe'], error: /argument missing/ },
  { words: ['score', '--input', 'a', '--output', 'b'], error: /required option '--model <dir>' not specified/ },
  {
    words: ['verify', '--verifier', 'gms8k', '--input', 'a', '--output', 'b'],
    error: /there is no verifier 'gms8k'; known: gsm8k, /,
    hint: /did you mean 'gsm8k'\?/,
  },
  { words: ['verify', '--input', 'a', '--output', 'b'], error: /required option '--verifier <name>' not specified/ },
  { words: [...generateWords, '--top-p', '0'], error: /--top-p must be above 0, at most 1; got "0"/ },
  { words: [...generateWords, '--temperature', '-1'], error: /--temperature must be from 0 to 10000; got "-1"/ },
  { words: [...generateWords, '--n', '0'], error: /--n must be a whole number >= 1; got "0"/ },
  { words: ['bench', 'generate', '--batch', '1,x'], error: /--batch must be a whole number >= 1; got "x"/ },
  { words: ['inspect', '--data', 'a.jsonl'], error: /inspect needs a tokenizer/, hint: /--tokenizer DIR/ },
  { words: ['inspect', '--data', 'a', '--model', 'm', '--tokenizer', 't'], error: /both name a tokenizer/ },
  { words: ['bench', 'compare', 'a.json'], error: /missing required argument 'after'/ },
  { words: ['bench', 'compare', 'a', 'b', '--fail-above', '0.9'], error: /--fail-above must be from 1 to 1000/ },
  { words: ['bench', 'page', 'a.json'], error: /required option '--output <file>' not specified/ },
  { words: ['bench', 'growth', '--seconds', '0'], error: /--seconds must be a whole number >= 1/ },
  { words: ['bench', 'step', '--model', 'huge'], error: /--model must be one of tiny, small, base/ },
  {
    words: ['bench', 'step', '--checkpointing', 'some'],
    error: /--checkpointing must be one of none, selective, full/,
  },
  { words: ['bench', 'kernels', 'rms_nrm', '--no-peer'], error: /no op 'rms_nrm'/, hint: /did you mean rms_norm\?/ },
  { words: ['bench', 'stpe'], error: /no op 'stpe'/, hint: /did you mean step\?/ },
]

describe('a wrong command line', () => {
  it.for(cases)('caravan $words', async ({ words, error, hint }) => {
    const { exitCode, stdout, stderr } = await here(words)
    expect(stderr).toMatch(error)
    if (hint) expect(stderr.split('\n')[1]).toMatch(hint)
    expect(exitCode).toBe(2)
    expect(stdout).toBe('')
    expect(stderr).toMatch(/^error: .*\[ERR_(USAGE|CONFIG)\]\n/)
    expect(stderr).not.toMatch(/\n\s+at /)
  })

  it('is an event, too, where events are asked for', async () => {
    const { exitCode, stdout } = await here(['train', '--scale', '7b', '--json'])
    const event = JSON.parse(stdout) as { type: string; code: string; message: string }
    expect(event).toMatchObject({ type: 'error', code: 'ERR_CONFIG' })
    expect(event.message).toContain("'7b'")
    expect(exitCode).toBe(2)
  })
})

describe('a wrong command line in a process of its own', () => {
  it.for(cases.filter((_, i) => [0, 1, 6, 15].includes(i)))('caravan $words', async ({ words, error }) => {
    const { exitCode, stdout, stderr } = await caravan(words, { directory: folder })
    expect(stderr).toMatch(error)
    expect(stdout).toBe('')
    expect(exitCode).toBe(2)
  })
})

describe('a failure that is not one of usage', () => {
  it('exits with 1', async () => {
    const words = ['score', '--model', 'nowhere', '--input', 'a.jsonl', '--output', 'b.jsonl']
    const { exitCode, stderr } = await here(words)
    expect(stderr).toMatch(/^error: .*nowhere.*\[ERR_(MODEL|FILE)\]/)
    expect(exitCode).toBe(1)
  })

  it('shows where it came from with CARAVAN_DEBUG=1', async () => {
    vi.stubEnv('CARAVAN_DEBUG', '1')
    const { stderr } = await here(['train', '--scale', '7b'])
    vi.stubEnv('CARAVAN_DEBUG', '')
    expect(stderr).toMatch(/\n\s+at /)
  })
})

describe('help', () => {
  const commands = ['train', 'generate', 'score', 'verify', 'inspect', 'doctor', 'bench']

  it('lists the commands and the exit codes', async () => {
    const { exitCode, stdout } = await caravan(['--help'])
    for (const command of commands) expect(stdout).toMatch(new RegExp(`^  ${command} `, 'm'))
    expect(stdout).toContain('130 stopped by Ctrl-C')
    expect(exitCode).toBe(0)
  })

  it.for(commands)('of %s has examples', (command) => {
    const program = createProgram(() => {})
    const texts: string[] = []
    const found = program.commands.find((one) => one.name() === command)!
    found.configureOutput({ writeOut: (text) => texts.push(text) })
    found.outputHelp()
    expect(texts.join('')).toMatch(/Examples:\n {2}\$ /)
  })

  it('train.js is caravan train', async () => {
    const { stdout, exitCode } = await caravan(['--help'], { script: 'train.js' })
    expect(stdout).toContain('--recipe <name>')
    expect(exitCode).toBe(0)
  })

  it('says that there is no run to resume', async () => {
    const { exitCode, stderr } = await caravan(['train', '--resume'], { directory: folder })
    expect(stderr).toMatch(/there is no run to resume in runs\/ \[ERR_USAGE\]\nhint: .*--resume DIR/)
    expect(exitCode).toBe(2)
  })

  it('--version is that of the package', async () => {
    const { stdout } = await caravan(['--version'])
    const manifest = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
      version: string
    }
    expect(stdout.trim()).toBe(manifest.version)
  })
})
