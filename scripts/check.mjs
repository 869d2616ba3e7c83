// Everything that can be known without running the code: types, style, layers, sizes, documentation. The first part of
// `npm test`; all checks run, so that one look shows all faults.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const bin = (name) => join(root, 'node_modules/.bin', name)

const checks = [
  { name: 'types of lib, and build', command: [process.execPath, 'scripts/build.mjs', '--ts'] },
  { name: 'types of tests', command: [bin('tsc'), '--noEmit', '-p', 'test/tsconfig.json'] },
  {
    name: 'format and lint',
    command: [bin('biome'), 'ci', '--max-diagnostics=20', `--colors=${process.stdout.isTTY ? 'force' : 'off'}`],
  },
  { name: 'layers', command: [process.execPath, 'scripts/check_layers.mjs'] },
  { name: 'sizes and names', command: [process.execPath, 'scripts/check_sizes.mjs'] },
  // Says so where there is no clang-format, which is no fault.
  { name: 'native format', command: [process.execPath, 'scripts/check_native_format.mjs'], says: true },
  { name: 'docs/ops.md', command: [process.execPath, 'scripts/op_docs.mjs', '--check'] },
]

if (!existsSync(bin('tsc'))) {
  console.error('the development tools are not installed: run `npm ci`')
  process.exit(1)
}

const failed = []
for (const { name, command, says } of checks) {
  const started = performance.now()
  const [program, ...words] = command
  const { status, stdout, stderr, error } = spawnSync(program, words, { cwd: root, encoding: 'utf8' })
  const seconds = ((performance.now() - started) / 1000).toFixed(1)
  const passed = status === 0
  console.log(`${passed ? 'ok  ' : 'FAIL'} ${name} (${seconds} s)`)
  if (passed) {
    if (says && !stdout.includes(': ok')) console.log(`     ${stdout.trim()}`)
    continue
  }
  failed.push(name)
  const output = `${error ? `${error.message}\n` : ''}${stdout ?? ''}${stderr ?? ''}`.trimEnd()
  console.log(output.replace(/^/gm, '     '))
}
if (failed.length > 0) {
  console.log(`\n${failed.length} of ${checks.length} checks failed: ${failed.join(', ')}`)
  process.exit(1)
}
