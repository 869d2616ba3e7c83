// Wrong command lines: exit code 2, one line that says what is wrong, one that says what to do, and no stack.
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { caravan, temporaryFolder } from './command_line.js'

const folder = temporaryFolder()

interface UsageCase {
  words: string[]
  error: RegExp
  hint?: RegExp
}

const cases: UsageCase[] = [
  { words: [], error: /a command is needed/, hint: /caravan --help/ },
  { words: ['trian'], error: /unknown command 'trian'/, hint: /did you mean train\?/ },
  { words: ['train', '--recpie', 'tulu3'], error: /unknown option '--recpie'/, hint: /did you mean --recipe\?/ },
  { words: ['train', 'stray'], error: /too many arguments/ },
  { words: ['train', '--recipe', 'tulu'], error: /there is no recipe 'tulu'; known: tulu3/, hint: /'tulu3'/ },
  { words: ['train', '--scale', '8B'], error: /no scale '8B'; known: pocket, 8b/, hint: /'8b'/ },
  { words: ['train', '--stage', 'stf'], error: /has no stage 'stf'/, hint: /'sft'/ },
  { words: ['train', '--stage', 'dpo'], error: /stage 'dpo' of tulu3 is not part of this version/ },
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
  { words: ['train', '--resume'], error: /there is no run to resume in runs/, hint: /--resume DIR/ },
  { words: ['train', '--resume', 'a', '--out', 'b'], error: /--resume a and --out b name two run folders/ },
  { words: ['train', '--recipe'], error: /argument missing/ },
  { words: ['score', '--input', 'a', '--output', 'b'], error: /required option '--model <dir>' not specified/ },
  { words: ['inspect', '--data', 'a.jsonl'], error: /inspect needs a tokenizer/, hint: /--tokenizer DIR/ },
  { words: ['inspect', '--data', 'a', '--model', 'm', '--tokenizer', 't'], error: /both name a tokenizer/ },
  { words: ['bench', 'step', '--model', 'huge'], error: /--model must be one of tiny, small, base/ },
  { words: ['bench', 'kernels', 'rms_nrm', '--no-peer'], error: /no op 'rms_nrm'/, hint: /did you mean rms_norm\?/ },
  { words: ['bench', 'stpe'], error: /no op 'stpe'/, hint: /did you mean step\?/ },
]

describe('a wrong command line', () => {
  it.for(cases)('caravan $words', async ({ words, error, hint }) => {
    const { exitCode, stdout, stderr } = await caravan(words, { directory: folder })
    expect(stderr).toMatch(error)
    if (hint) expect(stderr.split('\n')[1]).toMatch(hint)
    expect(exitCode).toBe(2)
    expect(stdout).toBe('')
    expect(stderr).toMatch(/^error: .*\[ERR_(USAGE|CONFIG)\]\n/)
    expect(stderr).not.toMatch(/\n\s+at /)
  })

  it('is an event, too, where events are asked for', async () => {
    const { exitCode, stdout } = await caravan(['train', '--scale', '7b', '--json'], { directory: folder })
    const event = JSON.parse(stdout) as { type: string; code: string; message: string }
    expect(event).toMatchObject({ type: 'error', code: 'ERR_CONFIG' })
    expect(event.message).toContain("'7b'")
    expect(exitCode).toBe(2)
  })
})

describe('a failure that is not one of usage', () => {
  it('exits with 1', async () => {
    const words = ['score', '--model', 'nowhere', '--input', 'a.jsonl', '--output', 'b.jsonl']
    const { exitCode, stderr } = await caravan(words, { directory: folder })
    expect(stderr).toMatch(/^error: .*nowhere.*\[ERR_(MODEL|FILE)\]/)
    expect(exitCode).toBe(1)
  })

  it('shows where it came from with CARAVAN_DEBUG=1', async () => {
    const { stderr } = await caravan(['train', '--scale', '7b'], { environment: { CARAVAN_DEBUG: '1' } })
    expect(stderr).toMatch(/\n\s+at /)
  })
})

describe('help', () => {
  const commands = ['train', 'score', 'inspect', 'doctor', 'bench']

  it('lists the commands and the exit codes', async () => {
    const { exitCode, stdout } = await caravan(['--help'])
    for (const command of commands) expect(stdout).toMatch(new RegExp(`^  ${command} `, 'm'))
    expect(stdout).toContain('130 stopped by Ctrl-C')
    expect(exitCode).toBe(0)
  })

  it.for(commands)('of %s has examples', async (command) => {
    const { exitCode, stdout } = await caravan([command, '--help'])
    expect(stdout).toMatch(/Examples:\n {2}\$ /)
    expect(exitCode).toBe(0)
  })

  it('train.js is caravan train', async () => {
    const { stdout, exitCode } = await caravan(['--help'], { script: 'train.js' })
    expect(stdout).toContain('--recipe <name>')
    expect(exitCode).toBe(0)
  })

  it('--version is that of the package', async () => {
    const { stdout } = await caravan(['--version'])
    const manifest = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }
    expect(stdout.trim()).toBe(manifest.version)
  })
})
