import { defineConfig } from 'vitest/config'

// Tests that measure how late a timer is need the machine to themselves: they run after all others, one at a time.
const timed = [
  'test/train/event_loop.test.ts',
  'test/host/host.test.ts',
  'test/examples/train_in_service.test.ts',
  'test/text/bpe_trainer.test.ts',
]

const common = { pool: 'forks', testTimeout: 60_000 } as const

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          ...common,
          name: 'tests',
          include: ['test/**/*.test.ts'],
          exclude: timed,
          maxWorkers: 2,
          sequence: { groupOrder: 0 },
        },
      },
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
