// The results of scripts/gpu_check in at most 80 lines: the machine, the parts, what was wrong, what was fast.
//   node scripts/gpu_summary.mjs FOLDER MODE
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'

const MOST_LINES = 80
const MOST_FAULTS = 12
const [folder, mode] = process.argv.slice(2)

/** The lines of a file that are JSON: a part that was stopped may have left half a line. */
function records(name) {
  const path = join(folder, `${name}.jsonl`)
  if (!existsSync(path)) return []
  return readFileSync(path, 'utf8')
    .split('\n')
    .flatMap((line) => {
      try {
        return line.startsWith('{') ? [JSON.parse(line)] : []
      } catch {
        return []
      }
    })
}

const names = readdirSync(folder)
  .filter((file) => file.endsWith('.jsonl'))
  .map((file) => basename(file, '.jsonl'))
const short = (value) =>
  value >= 100 ? Math.round(value).toLocaleString('en-US') : Number(value.toPrecision(3)).toString()
const percent = (share) => `${Math.round(100 * share)} %`

function machineLines() {
  const [machine] = records('machine')
  const [doctor] = records('doctor')
  const gpu = machine?.gpus[0]
  const name = gpu ? `${gpu.name}, driver ${gpu.driver_version}, ${gpu['memory.total']}` : 'no NVIDIA GPU'
  const torch = machine?.packages.torch ? `torch ${machine.packages.torch}` : 'no PyTorch'
  const first = `${name}; ${machine?.processor ?? '?'}, ${machine?.cores ?? '?'} cores; ${torch}; node ${process.version}`
  if (!doctor) return [first, 'doctor: no answer']
  const { available, reason, devices, findings } = doctor.cuda
  const opened = available
    ? `device cuda: ${devices.map((device) => device.name).join(', ')}`
    : `no device cuda: ${reason}`
  return [first, opened, ...findings.map((finding) => `  ${finding.name}: ${finding.text}`)]
}

function partLines() {
  const rows = readFileSync(join(folder, 'parts.tsv'), 'utf8').trim().split('\n')
  const cells = rows.filter(Boolean).map((row) => {
    const [name, status, seconds] = row.split('\t')
    return `${name} ${status} ${seconds} s`
  })
  const lines = []
  for (let i = 0; i < cells.length; i += 4) lines.push(`  ${cells.slice(i, i + 4).join('; ')}`)
  return ['parts', ...lines]
}

function checkLines() {
  return names
    .filter((name) => name.startsWith('check-'))
    .flatMap((name) => {
      const results = records(name).filter(({ type }) => type === 'check')
      const wrong = results.filter(({ faults, repeats }) => faults.length > 0 || !repeats)
      const right = results.filter((result) => !wrong.includes(result) && result.worst !== undefined)
      const worst = right.sort((a, b) => b.worst - a.worst)[0]
      const nearest = worst ? `, nearest to the limit: ${worst.op} ${worst.dtype} ${worst.worst.toFixed(2)}` : ''
      const head = `${name}: ${results.length} checks, ${wrong.length} failed${nearest}`
      const shown = wrong
        .slice(0, MOST_FAULTS)
        .map(({ op, dtype, faults }) => `  ${op} ${dtype}: ${faults[0]}`.slice(0, 150))
      const rest =
        wrong.length > MOST_FAULTS
          ? [
              `  ${wrong
                .slice(MOST_FAULTS)
                .map(({ op }) => op)
                .join(', ')}`.slice(0, 150),
            ]
          : []
      return [head, ...shown, ...rest]
    })
}

function kernelLine({ op, sample, medianSeconds, gbps, gflops, shareOfFloor, rivals }) {
  const times = Object.entries(rivals).map(
    ([name, { medianSeconds: theirs }]) => `${name} ${short(theirs / medianSeconds)}x`,
  )
  const rate = gflops === undefined ? `${short(gbps)} GB/s` : `${short(gflops / 1000)} TFLOP/s`
  const cells = [op.padEnd(24), sample.slice(0, 44).padEnd(44), `${short(medianSeconds * 1e6)} us`.padStart(11)]
  return `  ${[...cells, rate.padStart(14), percent(shareOfFloor).padStart(6), times.join(' ')].join(' ')}`.trimEnd()
}

/** The longest call of each op: the rest is in the files. */
function kernelLines(room) {
  const lines = []
  for (const name of names.filter((one) => one.startsWith('kernels-'))) {
    const [head, ...rows] = records(name)
    if (!head?.roofs) continue
    const { gflops, gbps, product } = head.roofs
    const longest = new Map()
    const measured = rows.filter(({ type }) => type === 'kernel')
    for (const row of measured) if (!(longest.get(row.op)?.medianSeconds > row.medianSeconds)) longest.set(row.op, row)
    lines.push(
      `${name}: peak ${short(gflops / 1000)} TFLOP/s (${product}), ${short(gbps)} GB/s; time, rate, share of the floor, rivals / ours`,
    )
    lines.push(...[...longest.values()].map(kernelLine))
    const failed = rows.filter(({ type }) => type === 'failed')
    lines.push(...failed.map(({ op, sample, reason }) => `  ${op} ${sample} failed: ${reason}`.slice(0, 150)))
  }
  return lines.slice(0, Math.max(0, room))
}

function trainingLines() {
  return names.flatMap((name) => {
    if (name.startsWith('step-')) {
      return records(name).map((row) => {
        const peer = row.peer?.tokensPerSecond
        const theirs = peer ? `; PyTorch ${short(peer)}, ${short(row.tokensPerSecond / peer)} x` : ''
        const missing = row.peer?.absent ? `; ${row.peer.absent}`.slice(0, 80) : ''
        const memory = `${short(row.deviceMiB / 1024)} GiB`
        return `${name}: ${short(row.tokensPerSecond)} tokens/s, ${short(row.stepSeconds * 1000)} ms, ${memory}${theirs}${missing}`
      })
    }
    if (name.startsWith('rl-')) {
      return records(name).map((row) => {
        const parts = ['generate', 'score', 'train'].map((part) => `${part} ${short(row[part])} s`).join(', ')
        return `${name}: ${short(row.answersPerSecond)} answers/s of ${row.newTokens} tokens (${parts})`
      })
    }
    if (!name.startsWith('generate-')) return []
    return records(name).map((row) => {
      const theirs = row.peer?.tokensPerSecond ? `; PyTorch ${short(row.peer.tokensPerSecond)} tokens/s` : ''
      return `${name} batch ${row.batch}: ${short(row.decodeTokensPerSecond)} tokens/s decoding, ${short(row.stepMs)} ms a step${theirs}`
    })
  })
}

/** The run of the recipe: its gates, and the losses of the same steps on both devices. */
function recipeLines() {
  const lossesOf = (name) =>
    new Map(records(name).flatMap(({ type, step, loss }) => (type === 'step' ? [[step, loss]] : [])))
  const [cpu, cuda] = [lossesOf('curve-cpu'), lossesOf('curve-cuda')]
  const both = [...cpu.keys()].filter((step) => cuda.has(step))
  const off = both.map((step) => Math.abs(cuda.get(step) / cpu.get(step) - 1))
  const lines =
    both.length > 0
      ? [
          `losses of ${both.length} steps: CUDA off the CPU by at most ${Math.max(...off).toExponential(1)} of the loss, in the first by ${off[0].toExponential(1)}`,
        ]
      : []
  const gates = records('recipe-cuda').filter(({ type }) => type === 'gate')
  const done = records('recipe-cuda').find(({ type }) => type === 'done')
  if (gates.length > 0) {
    const missed = gates.filter(({ passed }) => !passed).map(({ stage, name }) => `${stage} ${name}`)
    const end = done ? `done in ${short(done.seconds)} s` : 'not to its end'
    lines.push(
      `recipe on CUDA: ${end}, ${gates.length - missed.length} of ${gates.length} gates passed ${missed.join('; ')}`.trim(),
    )
  }
  return lines
}

const lines = [
  ...machineLines(),
  `gpu_check ${mode}, ${new Date().toISOString()}`,
  ...partLines(),
  ...checkLines(),
  ...trainingLines(),
  ...recipeLines(),
]
lines.push(...kernelLines(MOST_LINES - lines.length))
console.log(lines.slice(0, MOST_LINES).join('\n'))
