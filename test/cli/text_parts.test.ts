// Numbers, tables, option values and colours: the small parts that every command is made of.
import { describe, expect, it } from 'vitest'
import { CaravanError } from '../../lib/base/errors.js'
import { exitCodeOf, printFailure } from '../../lib/cli/failure.js'
import { bytesText, countText, durationText, measureText } from '../../lib/cli/format.js'
import { byteSize, collectAssignment, pairs } from '../../lib/cli/option_values.js'
import { tableLines, wrapText } from '../../lib/cli/table.js'
import { printable, Terminal, visibleWidth } from '../../lib/cli/terminal.js'

describe('numbers', () => {
  it.for([
    [bytesText(0), '0 B'],
    [bytesText(1536), '1.50 KiB'],
    [bytesText(8 * 2 ** 30), '8.00 GiB'],
    [countText(9999), '9,999'],
    [countText(12_345), '12.3 k'],
    [countText(984_000), '984 k'],
    [countText(3.05e13), '30.5 T'],
    [durationText(0.04), '0.0 s'],
    [durationText(59.4), '59 s'],
    [durationText(125), '2 m 05 s'],
    [durationText(3725), '1 h 02 m'],
    [durationText(90_000), '1 d 01 h'],
    [durationText(Number.POSITIVE_INFINITY), '-'],
    [measureText(1.23456), '1.235'],
    [measureText(5e-6), '5.00e-6'],
    [measureText(0), '0'],
    [measureText(null), '-'],
    [measureText(Number.NaN), 'NaN'],
  ] as const)('%s = %s', ([got, wanted]) => expect(got).toBe(wanted))
})

describe('option values', () => {
  it('reads sizes', () => {
    const read = byteSize('--memory-limit')
    expect([read('8GiB'), read('500MB'), read('1.5g'), read('1024')]).toEqual([8 * 2 ** 30, 5e8, 1.5 * 2 ** 30, 1024])
    for (const bad of ['', '0', '-1', 'GiB', '1 XB', '1e9']) expect(() => read(bad)).toThrow(/size such as 8GiB/)
  })

  it('reads assignments whose value holds an equals sign', () => {
    const read = collectAssignment('--set')
    expect(read('sft.fields.prompt=a=b', { 'sft.lr': '1' })).toEqual({ 'sft.lr': '1', 'sft.fields.prompt': 'a=b' })
    expect(read('sft.template=')).toEqual({ 'sft.template': '' })
  })

  it('reads pairs', () => {
    expect(pairs('--fields')('prompt=q, completion=a')).toEqual({ prompt: 'q', completion: 'a' })
    for (const bad of ['', 'prompt', 'prompt=', '=q', 'a=b=c']) expect(() => pairs('--fields')(bad)).toThrow(/pairs/)
  })
})

describe('tables', () => {
  it('align by what is seen', () => {
    expect(
      tableLines(
        [
          ['a', '1'],
          ['\u001b[31mlong\u001b[39m', '20'],
        ],
        { align: 'lr', indent: '  ' },
      ),
    ).toEqual(['  a      1', '  \u001b[31mlong\u001b[39m  20'])
  })

  it('wrap at words, and cut words that are longer than the line', () => {
    expect(wrapText('one two three', 8)).toEqual(['one two', 'three'])
    expect(wrapText('a\n\nbb', 8)).toEqual(['a', '', 'bb'])
    expect(wrapText('x'.repeat(20), 8)).toEqual(['x'.repeat(8), 'x'.repeat(8), 'xxxx'])
  })
})

describe('colour', () => {
  const stream = (isTTY: boolean) => ({ isTTY, write: () => true })
  it.for([
    [true, {}, true, true],
    [false, {}, false, false],
    [true, { NO_COLOR: '1' }, false, true],
    [true, { NO_COLOR: '' }, true, true],
    [false, { FORCE_COLOR: '1' }, true, false],
    [false, { FORCE_COLOR: '0' }, false, false],
    [true, { TERM: 'dumb' }, false, false],
    [true, { CI: 'true' }, true, false],
  ] as const)('terminal %s, %j: colour %s, live line %s', ([isTTY, environment, colored, interactive]) => {
    const terminal = new Terminal(stream(isTTY), environment)
    expect([terminal.colored, terminal.interactive]).toEqual([colored, interactive])
  })

  it('has no width', () => expect(visibleWidth('\u001b[31m🙂a\u001b[39m')).toBe(2))
})

describe('text from outside', () => {
  it('cannot steer the terminal', () => {
    expect(printable('a\u001b]0;x\u0007\r\n\tb\u009bm\u202e')).toBe('a\\x1b]0;x\\x07\\x0d\n\tb\\x9bm\\u202e')
  })
})

describe('failures', () => {
  function printed(error: unknown, environment: NodeJS.ProcessEnv = {}): string {
    let text = ''
    printFailure(error, new Terminal({ write: (more) => (text += more) }, {}), environment)
    return text
  }

  it('have a message, a code and a hint', () => {
    const error = new CaravanError('ERR_DATA', 'a.jsonl:3: bad', { hint: 'mend it' })
    expect(printed(error)).toBe('error: a.jsonl:3: bad [ERR_DATA]\nhint: mend it\n')
    expect(exitCodeOf(error)).toBe(1)
  })

  it('of another kind are bugs, with a stack only when asked for', () => {
    const error = new TypeError('x is not a function')
    expect(printed(error)).toMatch(/^error: x is not a function\nhint: this is a bug in caravan.*CARAVAN_DEBUG=1/)
    expect(printed(error)).not.toMatch(/\n\s+at /)
    expect(printed(error, { CARAVAN_DEBUG: '1' })).toMatch(/\n\s+at /)
    expect(exitCodeOf(error)).toBe(1)
  })

  it('of usage and settings end with 2', () => {
    for (const code of ['ERR_USAGE', 'ERR_CONFIG'] as const) expect(exitCodeOf(new CaravanError(code, ''))).toBe(2)
  })
})
