import { defineConfig } from 'vitest/config'

// Tests of single parts leave nothing behind in their process, so files share it: half a second less for each.
const units = [
  'test/ops.test.ts',
  ...['base', 'data', 'evals', 'losses', 'models', 'nn', 'ops', 'optim', 'tensor', 'text'].map(
    (folder) => `test/${folder}/**/*.test.ts`,
  ),
]

// Tests that measure how late a timer is need the machine to themselves: they run after all others, one at a time.
const timed = [
  'test/train/event_loop.test.ts',
  'test/host/host.test.ts',
  'test/examples/train_in_service.test.ts',
  'test/text/bpe_trainer.test.ts',
]

const common = { pool: 'forks', testTimeout: 60_000 } as const
const together = { ...common, maxWorkers: 2, sequence: { groupOrder: 0 } }

export default defineConfig({
  test: {
    projects: [
      { test: { ...together, name: 'units', include: units, exclude: timed, isolate: false } },
      { test: { ...together, name: 'tests', include: ['test/**/*.test.ts'], exclude: [...units, ...timed] } },
      {
        test: {
          ...common,
          name: 'timed',
          include: timed,
          maxWorkers: 1,
          fileParallelism: false,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
})
