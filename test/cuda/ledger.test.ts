// The ledger of the CUDA kernels: its table speaks of every kernel file. The full tests compile all kernels again and
// compare, which takes minutes.
import { spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'

const root = join(import.meta.dirname, '../..')
const table = readFileSync(join(root, 'docs/cuda_ledger.md'), 'utf8')
const rows = table.split('\n').filter((line) => line.startsWith('| `'))

describe('the CUDA ledger', () => {
  it('has rows for every kernel file, for each architecture', () => {
    for (const folder of ['cuda', 'kernels']) {
      for (const file of readdirSync(join(root, 'native', folder)).filter((name) => name.endsWith('.cu'))) {
        const holdsKernels = readFileSync(join(root, 'native', folder, file), 'utf8').includes('__global__')
        expect(table.includes(`## ${folder}/${file}\n`), `${folder}/${file}`).toBe(holdsKernels)
      }
    }
    for (const arch of ['sm_80', 'sm_90a']) expect(rows.some((row) => row.includes(`| ${arch} |`))).toBe(true)
  })

  it('knows of no more than 255 registers and 48 KiB of static shared memory', () => {
    expect(rows.length).toBeGreaterThan(200)
    for (const row of rows) {
      const [registers, shared] = row.split('|').slice(3, 5).map(Number)
      expect(registers, row).toBeLessThanOrEqual(255)
      expect(shared, row).toBeLessThanOrEqual(48 << 10)
    }
  })

  // The build assembles one PTX, that of the oldest architecture, for all: code for newer ones would be left out.
  it('speaks of kernels that are the same for every architecture', () => {
    for (const folder of ['cuda', 'kernels']) {
      for (const file of readdirSync(join(root, 'native', folder))) {
        const conditions = readFileSync(join(root, 'native', folder, file), 'utf8').match(/.*__CUDA_ARCH\w*.*/g) ?? []
        // Files that include chain.h are compiled for 9.0 apart.
        const wanted = file === 'chain.h' ? ' && __CUDA_ARCH__ >= 900' : ''
        for (const line of conditions) expect(line, `${folder}/${file}`).toBe(`#if defined(__CUDA_ARCH__)${wanted}`)
      }
    }
  })

  it.runIf(process.env.CARAVAN_TEST_FULL === '1')(
    'is what nvcc says',
    async () => {
      const child = spawn(process.execPath, ['scripts/cuda_ledger.mjs', '--check'], { cwd: root })
      let output = ''
      for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (output += data))
      expect(await new Promise((resolve) => child.on('close', resolve)), output).toBe(0)
    },
    1_800_000,
  )
})
