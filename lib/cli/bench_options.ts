// The options of `caravan bench`.
import { type Command, Option } from 'commander'
import { masterForms, momentTypes } from '../optim/adamw.js'
import { checkpointings } from '../tensor/index.js'
import { benchModels } from './bench_shapes.js'
import { deviceOption, dtypeOption, type Ended, jsonOption, threadsOption } from './command_options.js'
import { decimal, oneOf, wholeNumber, wholeNumbers } from './option_values.js'

export function addBenchCommand(program: Command, ended: Ended): void {
  const bench = program
    .command('bench')
    .description(
      'Measure kernels, whole training steps, generation, growth or the start, beside other libraries where they are.',
    )
    .addHelpText(
      'after',
      `
Examples:
  $ caravan bench kernels                 every kernel of the op table
  $ caravan bench kernels rms_norm        one of them
  $ caravan bench kernels --json now.json && caravan bench compare before.json now.json --fail-above 1.10
  $ caravan bench growth --json growth.json && caravan bench page now.json growth.json --output bench.html
  $ caravan bench step --model small --dtype bf16 --json
  $ caravan bench step --method dpo --model small --peer
  $ caravan bench generate --model small --batch 1,8
  $ CARAVAN_PYTHON=.venv/bin/python caravan bench step --model tiny --peer`,
    )
  bench
    .command('kernels [names...]', { isDefault: true })
    .description('time, GB/s and GFLOP/s of the kernels, as shares of the measured peak of this machine')
    .option('--samples <n>', 'measurements of each; the median counts', wholeNumber('--samples', 1), 9)
    .option(
      '--shapes <which>',
      'cpu, gpu or tiny: sizes to measure at (default: those of the device)',
      oneOf('--shapes', ['cpu', 'gpu', 'tiny'] as const),
    )
    .option('--no-peer', 'do not look for other libraries')
    .addOption(dtypeOption().default('fp32'))
    .addOption(deviceOption())
    .addOption(threadsOption())
    .option(
      '--json [file]',
      'print as JSON, one line a kernel; or write one document to this file, for compare and page',
    )
    .action(async (names, flags) => ended(await (await import('./bench_kernels.js')).benchKernels(names, flags)))
  addCheckCommand(bench, ended)
  addReadingCommands(bench, ended)
  addStepCommands(bench, ended)
  addRewardCommands(bench, ended)
  addGrowthCommands(bench, ended)
}

function modelOption(): Option {
  const text = 'tiny, small or base; for a GPU qwen05b, llama1b or llama8b'
  return new Option('--model <size>', text).argParser(oneOf('--model', benchModels)).default('tiny')
}

function addCheckCommand(bench: Command, ended: Ended): void {
  bench
    .command('check [ops...]')
    .description('kernels of a device against the CPU engine in f64, and twice for equal bits')
    .option(
      '--extent <which>',
      "few (the op table's samples), usual (and several tiles) or all (and every odd size)",
      oneOf('--extent', ['few', 'usual', 'all'] as const),
      'usual',
    )
    .option('--seed <n>', 'of the data', wholeNumber('--seed', 0), 1)
    .option('--isolated', 'each op in a process of its own, which a kernel that faults on a GPU does not outlive')
    .addOption(dtypeOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addOption(jsonOption('print as JSON, one line an op'))
    .action(async (ops, flags) => ended(await (await import('./bench_check.js')).benchCheck(ops, flags)))
}

function addStepCommands(bench: Command, ended: Ended): void {
  bench
    .command('step')
    .description('one step of a training method: forward, backward, clipping, AdamW')
    .option('--method <name>', 'sft, or dpo (length-normalised)', oneOf('--method', ['sft', 'dpo'] as const), 'sft')
    .option('--cached-reference', 'dpo: without the pass of the reference model')
    .option(
      '--checkpointing <mode>',
      'activation checkpointing here: none, selective or full',
      oneOf('--checkpointing', checkpointings),
      'none',
    )
    .option('--master <form>', 'what is beside bf16 weights: split (default) or full', oneOf('--master', masterForms))
    .option('--moments <type>', 'of AdamW: f32 (default) or bf16', oneOf('--moments', momentTypes))
    .addOption(modelOption())
    .option('--steps <n>', 'measured steps, after two that are not (default: 20, 8 or 3)', wholeNumber('--steps', 1))
    .option('--batch <n>', 'sequences in a step (default: as suits the model)', wholeNumber('--batch', 1))
    .option('--length <n>', 'tokens in each (default: as suits the model)', wholeNumber('--length', 2))
    .option(
      '--micro-batch <tokens>',
      'computed at a time, whole sequences; gradients are summed over a step (default: 2048, on a GPU 16384)',
      wholeNumber('--micro-batch', 1),
    )
    .option('--peer [script]', 'run PyTorch on the same shapes too (default script: bench/torch_peer.py)')
    .option('--peer-compile', 'let PyTorch compile the model')
    .option('--peer-pure', 'PyTorch with bf16 weights and moments in place of f32 ones under autocast')
    .option('--peer-timeout <seconds>', 'longest run of PyTorch', wholeNumber('--peer-timeout', 1), 600)
    .option('--rounds <n>', 'times that each side runs, in turns', wholeNumber('--rounds', 1), 1)
    .option('--profile', 'time the ops of one more step')
    .addOption(dtypeOption().default('fp32'))
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addOption(jsonOption('print one line of JSON'))
    .action(async (flags) => ended(await (await import('./bench_step.js')).benchStep(flags)))
  bench
    .command('generate')
    .description('generation at temperature 1')
    .addOption(modelOption())
    .option('--batch <sizes>', 'sequences at a time, separated by commas', wholeNumbers('--batch', 1), [1, 8, 32])
    .option('--prompt <n>', 'tokens of a prompt', wholeNumber('--prompt', 1), 32)
    .option('--new-tokens <n>', 'new tokens of each', wholeNumber('--new-tokens', 2), 64)
    .option('--peer [script]', 'run PyTorch on the same shapes too (default script: bench/torch_peer.py)')
    .option('--peer-timeout <seconds>', 'longest run of PyTorch', wholeNumber('--peer-timeout', 1), 600)
    .option('--rounds <n>', 'measured calls of each', wholeNumber('--rounds', 1), 3)
    .option(
      '--warm-up <seconds>',
      'of calls before that are not measured, one at least',
      decimal('--warm-up', { least: 0, most: 600 }),
      2,
    )
    .addOption(dtypeOption().default('fp32'))
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addOption(jsonOption('print as JSON, one line a batch size'))
    .action(async (flags) => ended(await (await import('./bench_generate.js')).benchGenerate(flags)))
}

function addRewardCommands(bench: Command, ended: Ended): void {
  bench
    .command('rl')
    .description('a step of reinforcement learning, and where its time goes')
    .option('--algorithm <name>', 'ppo or grpo', oneOf('--algorithm', ['ppo', 'grpo'] as const), 'grpo')
    .addOption(modelOption())
    .option('--answers <n>', 'answers of a rollout, a multiple of 32', wholeNumber('--answers', 32), 128)
    .option('--new-tokens <n>', 'tokens of an answer', wholeNumber('--new-tokens', 1), 64)
    .addOption(dtypeOption().default('fp32'))
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addOption(jsonOption('print one line of JSON'))
    .action(async (flags) => ended(await (await import('./bench_rl.js')).benchRl(flags)))
  bench
    .command('verify')
    .description('verifiers: completions a second, called directly and through the pool of processes')
    .option('--completions <n>', 'completions of a call', wholeNumber('--completions', 1), 2000)
    .option('--rounds <n>', 'measured calls of each, after one that is not', wholeNumber('--rounds', 1), 5)
    .option('--processes <n>', 'of the pool (default: one for every eight cores)', wholeNumber('--processes', 1))
    .addOption(jsonOption('print as JSON, one line a verifier'))
    .action(async (flags) => ended(await (await import('./bench_verify.js')).benchVerify(flags)))
}

function addReadingCommands(bench: Command, ended: Ended): void {
  bench
    .command('compare <before> <after>')
    .description('two files of bench kernels: ratios, and which differences are more than noise')
    .option(
      '--fail-above <ratio>',
      'exit with 1 when a kernel got slower by more',
      decimal('--fail-above', { least: 1, most: 1000 }),
    )
    .option('--force', 'compare files of different machines, too')
    .addOption(jsonOption('print one line of JSON'))
    .action(async (a, b, flags) => ended(await (await import('./bench_compare.js')).benchCompare(a, b, flags)))
  bench
    .command('page <files...>')
    .description('files of bench kernels, growth and startup as one page: roofline, floors, rivals, growth')
    .requiredOption('--output <file>', 'the page, one HTML file that needs nothing else')
    .action(async (files, flags) => ended(await (await import('./bench_page.js')).benchPage(files, flags)))
}

function addGrowthCommands(bench: Command, ended: Ended): void {
  bench
    .command('growth')
    .description('time and memory against length, vocabulary, depth and threads')
    .option('--seconds <n>', 'about how long it may take; larger sizes are left out', wholeNumber('--seconds', 1), 60)
    .option('--no-peer', 'do not look for other libraries')
    .addOption(dtypeOption().default('fp32'))
    .addOption(threadsOption())
    .option('--json [file]', 'print as JSON; or write the document to this file, for page')
    .action(async (flags) => ended(await (await import('./bench_growth.js')).benchGrowth(flags)))
  bench
    .command('startup')
    .description('time and memory of importing the package, size of the addon, time to the first training step')
    .option('--samples <n>', 'processes of each; the median counts', wholeNumber('--samples', 1), 5)
    .option('--json [file]', 'print as JSON; or write the document to this file, for page')
    .action(async (flags) => ended(await (await import('./bench_startup.js')).benchStartup(flags)))
}
