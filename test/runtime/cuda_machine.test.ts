// The module for GPUs and the machine around it: libraries that are looked for at run time, and the names that a
// profiler sees. Where there is no module to open (CARAVAN_TEST_DEVICE=cuda names one) there is nothing to test.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { deviceUnderTest } from '../device_under_test.js'
import { runChild } from './child_process.js'

const folder = mkdtempSync(join(tmpdir(), 'caravan-cuda-machine-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** Compiles a shared library. */
function library(path: string, source: string, options: readonly string[] = []): string {
  mkdirSync(dirname(path), { recursive: true })
  const file = join(folder, 'source.cc')
  writeFileSync(file, source)
  const words = ['-shared', '-fPIC', '-o', path, ...options, file]
  const { status, stderr } = spawnSync(process.env.CXX ?? 'g++', words, { encoding: 'utf8' })
  expect(status, stderr).toBe(0)
  return path
}

/** An NCCL that knows its version and nothing else. */
const nccl = (path: string, code: number): string =>
  library(path, `extern "C" int ncclGetVersion(int* version) { return *version = ${code}, 0; }`)

/** The variables that name places, none of them set but `set`. */
function machine(set: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const nowhere = { CARAVAN_CUDA_LIBS: '', CUDA_HOME: '', CUDA_PATH: '', VIRTUAL_ENV: '', CONDA_PREFIX: '' }
  return { ...nowhere, HOME: folder, ...set }
}

async function findings(set: NodeJS.ProcessEnv): Promise<{ [name: string]: string }> {
  const { stdout, stderr } = await runChild('runtime/children/findings.mjs', [], { env: machine(set) })
  expect(stderr).toBe('')
  return JSON.parse(stdout) as { [name: string]: string }
}

/** Whether the libraries are installed here for all, where no variable hides them. */
async function areInstalled(): Promise<boolean> {
  const { NCCL, cuBLASLt } = await findings({ HOME: join(folder, 'nobody') })
  return !NCCL!.startsWith('not found') || !cuBLASLt!.startsWith('not found')
}

const packages = 'lib/python3.11/site-packages/nvidia'

describe.runIf(deviceUnderTest.kind === 'cuda')('libraries of NVIDIA', () => {
  beforeEach(async ({ skip }) => {
    skip(await areInstalled(), 'NCCL or cuBLASLt is installed on this machine')
  })

  /** By the variable that leads there, in the order of the search. */
  const places: [variable: string, value: string, file: string, code: number, version: string][] = [
    ['CARAVAN_CUDA_LIBS', `${folder}/no:${folder}/own`, 'own/libnccl.so.2', 22703, '2.27.3'],
    ['LD_LIBRARY_PATH', `${folder}/system`, 'system/libnccl.so.2', 21805, '2.18.5'],
    ['CUDA_HOME', `${folder}/toolkit`, 'toolkit/lib64/libnccl.so.2', 2708, '2.7.8'],
    ['VIRTUAL_ENV', `${folder}/venv`, `venv/${packages}/nccl/lib/libnccl.so.2`, 22304, '2.23.4'],
    ['CONDA_PREFIX', `${folder}/conda`, `conda/${packages}/nccl/lib/libnccl.so.2`, 22005, '2.20.5'],
    ['HOME', folder, `.local/${packages}/nccl/lib/libnccl.so.2`, 21000, '2.10.0'],
  ]

  it('NCCL is found wherever it may lie, the nearest place first, and says its version', async () => {
    for (let i = places.length - 1; i >= 0; i--) {
      const [, , file, code, version] = places[i]!
      const path = nccl(join(folder, file), code)
      const set = Object.fromEntries(places.slice(i).map(([variable, value]) => [variable, value]))
      expect(await findings(set)).toMatchObject({ NCCL: `${version}, ${path}` })
    }
  }, 60_000)

  it('that are missing are said to be, with what to install', async () => {
    const found = await findings({ HOME: join(folder, 'nobody') })
    expect(found.NCCL).toMatch(/^not found \(install the package libnccl2 or `pip install nvidia-nccl-cu13`, or name /)
    expect(found.cuBLASLt).toMatch(/^not found \(install the CUDA toolkit .*; own matrix products are used$/)
  })

  it('that are there and do not load are said to be broken', async () => {
    const broken = join(folder, 'broken')
    mkdirSync(broken)
    writeFileSync(join(broken, 'libnccl.so.2'), 'no library')
    const found = await findings({ HOME: join(folder, 'nobody'), CARAVAN_CUDA_LIBS: broken })
    expect(found.NCCL).toMatch(/^does not load: .*broken\/libnccl\.so\.2.*CARAVAN_CUDA_LIBS\)$/)
  })

  it('cuBLASLt 13 is taken before 12, wherever they lie, unless own products are asked for', async () => {
    const newer = library(join(folder, `blas/venv/${packages}/cu13/lib/libcublasLt.so.13`), '')
    const older = library(join(folder, 'blas/toolkit/lib64/libcublasLt.so.12'), '')
    const toolkit = { CUDA_HOME: join(folder, 'blas/toolkit') }
    const both = { ...toolkit, VIRTUAL_ENV: join(folder, 'blas/venv') }
    expect((await findings(toolkit)).cuBLASLt).toBe(older)
    expect((await findings(both)).cuBLASLt).toBe(newer)
    expect((await findings({ ...both, CARAVAN_CUDA_GEMM: 'own' })).cuBLASLt).toMatch(/^not asked for/)
  })
})

/** Where the header of NVTX lies; undefined without the CUDA toolkit. */
const toolkit = [process.env.CUDA_HOME, process.env.CUDA_PATH, '/usr/local/cuda'].find(
  (home) => home && existsSync(join(home, 'include/nvtx3/nvToolsExt.h')),
)

describe.runIf(deviceUnderTest.kind === 'cuda' && toolkit)('names for a profiler', () => {
  const listener = join(folder, 'listener.so')
  beforeAll(() => {
    library(listener, readFileSync(join(import.meta.dirname, 'nvtx_listener.cc'), 'utf8'), [`-I${toolkit}/include`])
  })

  /** What the profiler was told. */
  async function told(set: NodeJS.ProcessEnv): Promise<string[]> {
    const log = join(folder, 'ranges.txt')
    rmSync(log, { force: true })
    const env = { NVTX_INJECTION64_PATH: listener, NVTX_TEST_LOG: log, ...set }
    const { code, stdout, stderr } = await runChild('runtime/children/ranges.mjs', [], { env })
    expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: '[3,6]\n', stderr: '' })
    return existsSync(log) ? readFileSync(log, 'utf8').trim().split('\n') : []
  }

  it('are those of ops, plans and phases, one within the other', async () => {
    const lines = await told({ CARAVAN_NVTX: '' })
    expect(lines[0]).toBe('domain caravan')
    // By depth. The plan is recorded when it runs for the second time.
    let depth = 0
    const seen = lines.slice(1).map((line) => (line === 'end' ? `${--depth}` : `${depth++} ${line.slice(6)}`))
    expect(depth).toBe(0)
    expect(seen.filter((one) => one.includes(' '))).toEqual([
      ...['0 upload', '0 add', '0 plan 1', '1 add'],
      ...['0 step 7 forward', '1 add', '0 read'],
    ])
  })

  it('are not given where nobody looks, or where they are not wanted', async () => {
    expect(await told({ CARAVAN_NVTX: '0' })).toEqual([])
    expect(await told({ CARAVAN_NVTX: '1', NVTX_INJECTION64_PATH: '' })).toEqual([])
    expect((await findings({ NVTX_INJECTION64_PATH: '' })).NVTX).toMatch(/^off; CARAVAN_NVTX=1/)
    expect((await findings({ CARAVAN_NVTX: '1' })).NVTX).toBe('ranges are named')
  })
})
