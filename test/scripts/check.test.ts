// The checks of scripts/: each rule finds what breaks it, in a small tree made for it.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'

type Check = (root: string) => string[]
let checkLayers: Check
let checkSizes: Check
let checkNativeFormat: (root: string, command: string) => { faults: string[]; unknown: string | undefined }
let root = ''

beforeAll(async () => {
  // The scripts are plain JavaScript: what they export is typed here.
  const folder = new URL('../../scripts/', import.meta.url).href
  checkLayers = ((await import(`${folder}check_layers.mjs`)) as { checkLayers: Check }).checkLayers
  checkNativeFormat = (
    (await import(`${folder}check_native_format.mjs`)) as { checkNativeFormat: typeof checkNativeFormat }
  ).checkNativeFormat
  checkSizes = ((await import(`${folder}check_sizes.mjs`)) as { checkSizes: Check }).checkSizes
})
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'caravan-check-'))
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

function faultsOf(check: Check, files: { [path: string]: string }): string[] {
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }
  return check(root)
}

describe('layers', () => {
  it('may import what is above them', () => {
    const faults = faultsOf(checkLayers, {
      'lib/base/a.ts': 'export const a = 1\n',
      'lib/text/b.ts': "import { a } from '../base/a.js'\nexport const b = a\n",
      'lib/cli/c.ts': "import { b } from '../text/b.js'\nexport const c = () => import('../train/d.js')\n",
      'lib/train/d.ts': "import type { M } from '../methods/method.js'\nexport type D = M\n",
      'lib/methods/method.ts': 'export type M = 1\n',
      'native/core/a.h': '#include <vector>\n',
      'native/kernels/b.cc': '#include "core/a.h"\n',
      'native/node/c.cc': '#include <napi.h>\n#include "core/a.h"\n',
    })
    expect(faults).toEqual([])
  })

  it.for([
    [
      'lib/base/a.ts',
      "import { x } from '../ops/x.js'\n",
      /base must not import lib\/ops\/x\.ts; base may import: nothing/,
    ],
    [
      'lib/text/a.ts',
      "\nexport { x } from '../tensor/x.js'\n",
      /a\.ts:2: text must not import .* \(text works without any tensor\)/,
    ],
    ['lib/losses/a.ts', "import {\n  x,\n} from '../models/x.js'\n", /losses must not import/],
    ['lib/train/a.ts', "import type { Sft } from '../methods/sft.js'\n", /train knows no algorithm/],
    ['lib/train/a.ts', "const x = await import('../recipes/x.js')\n", /train must not import lib\/recipes\/x\.ts/],
    ['lib/ops/a.ts', "import x from '../../build/x.node'\n", /only lib\/runtime may load the native addon/],
    ['lib/stray/a.ts', 'export {}\n', /lib\/stray is not a layer/],
    ['native/core/a.cc', '#include "cpu/gemm.h"\n', /core must not include cpu\/gemm\.h/],
    ['native/kernels/a.cc', '#include <napi.h>\n', /only native\/node may include napi\.h/],
  ] as const)('%s may not hold %j', ([path, text, fault]) => {
    const faults = faultsOf(checkLayers, { [path]: text })
    expect(faults.join('\n')).toMatch(fault)
  })

  it('have no cycles of imports, except of types', () => {
    const files = (word: string) => ({
      'lib/base/a.ts': "import { b } from './b.js'\nexport const a = b\n",
      'lib/base/b.ts': `${word} { a } from './a.js'\nexport const b = 1\n`,
    })
    expect(faultsOf(checkLayers, files('import'))).toEqual([
      'import cycle: lib/base/a.ts -> lib/base/b.ts -> lib/base/a.ts',
    ])
    expect(faultsOf(checkLayers, files('import type'))).toEqual([])
  })
})

describe('sizes and names', () => {
  const lines = (count: number, line: string) => `${line}\n`.repeat(count)

  it.for([
    ['lib/base/utils.ts', '\n', /the name 'utils' says nothing/],
    ['lib/base/camelCase.ts', '\n', /snake_case/],
    ['lib/base/a.ts', lines(501, ''), /501 lines; at most 500/],
    ['lib/base/a.ts', `// ${'x'.repeat(118)}\n`, /121 columns; at most 120/],
    ['lib/base/a.ts', 'console.log(1)\n', /a library never prints/],
    ['lib/base/a.ts', `function long() {\n${lines(59, '  f()')}}\n`, /long has 61 lines; at most 60/],
    ['lib/base/a.ts', `class A {\n  go() {\n${lines(59, '    f()')}  }\n}\n`, /go has 61 lines/],
    ['lib/base/a.ts', 'const five = (a, b, c, d, e) => a\n', /five has 5 parameters; at most 4, then an object/],
    ['native/core/a.cc', `void go(int a) {\n${lines(59, '  f();')}}\n`, /go has 61 lines/],
    [
      'native/core/a.cc',
      'int many(int a, int b, int c, int d, int e, int f, int g) { return a; }\n',
      /many has 7 parameters/,
    ],
    [
      'native/kernels/a.cc',
      `namespace x {\nvoid go() {\n${lines(149, '  f();')}}\n}\n`,
      /go has 151 lines; at most 150/,
    ],
  ] as const)('%s: a fault is found', ([path, text, fault]) => {
    const faults = faultsOf(checkSizes, { [path]: text })
    expect(faults).toHaveLength(1)
    expect(faults[0]).toMatch(fault)
  })

  it('at the limits are accepted', () => {
    const faults = faultsOf(checkSizes, {
      'lib/base/a.ts': `function long({ b }: { b: (v: 1, w: 2, x: 3, y: 4, z: 5) => 1 }) {\n${lines(58, '  f()')}}\n`,
      'lib/base/b.ts': lines(500, ''),
      'lib/cli/c.ts': 'console.log(1)\n',
      'lib/base/d.ts': `// https://${'x'.repeat(200)}\n`,
      'native/core/e.cc': `// void f() {\nconst char* s = "{";\nnamespace a {\n${lines(100, 'int f();')}}\n`,
    })
    expect(faults).toEqual([])
  })
})

describe('native format', () => {
  /** A stand-in for clang-format of version `version` that finds what is wrong with lines that hold a tab. */
  function standIn(version: string): string {
    const path = join(root, `clang-format-${version}`)
    const find = `grep -n '\t' "$file" | sed "s|^\\([0-9]*\\):.*|$file:\\1:1: error: not formatted [-Wclang-format]|" >&2`
    const lines = [
      '#!/bin/sh',
      `if [ "$1" = --version ]; then echo "Debian clang-format version ${version}"; exit 0; fi`,
      `shift 2; for file; do ${find}; done`,
    ]
    writeFileSync(path, `${lines.join('\n')}\n`, { mode: 0o755 })
    return path
  }

  it('finds the lines of native sources that are not formatted', () => {
    const command = standIn('14.0.6')
    mkdirSync(join(root, 'native/core'), { recursive: true })
    writeFileSync(join(root, 'native/core/a.cc'), 'int a;\n\tint b;\n')
    writeFileSync(join(root, 'native/core/b.h'), 'int a;\n')
    writeFileSync(join(root, 'native/core/c.txt'), '\t\n')
    expect(checkNativeFormat(root, command)).toEqual({
      faults: ['native/core/a.cc:2: not formatted'],
      unknown: undefined,
    })
  })

  it('says so, and finds no fault, without clang-format or with one that is too old', () => {
    const missing = checkNativeFormat(root, join(root, 'nowhere'))
    expect(missing).toEqual({
      faults: [],
      unknown: expect.stringMatching(/no .*nowhere on PATH, 14 or newer is needed/),
    })
    const old = checkNativeFormat(root, standIn('11.0.1'))
    expect(old).toEqual({ faults: [], unknown: expect.stringMatching(/is version 11, 14 or newer is needed/) })
  })
})
