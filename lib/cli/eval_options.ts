// The options of `caravan eval`.
import type { Command } from 'commander'
import { deviceOption, dtypeOption, type Ended, jsonOption, threadsOption } from './command_options.js'
import { commaList, decimal, oneOf, wholeNumber } from './option_values.js'

// Written out here: the code of a command is imported only when it runs.
const FORMATS = ['plain', 'chat', 'turns'] as const
const FORMULATIONS = ['mcf', 'cf'] as const

export function addEvalCommand(program: Command, ended: Ended): void {
  const command = program
    .command('eval')
    .description('Evaluate a model: gsm8k, math, ifeval, mmlu, arc_easy, arc_challenge, hellaswag, tasks of your own.')
    .requiredOption('--model <dir>', 'Hugging Face model folder')
  addTaskOptions(command)
  addAnswerOptions(command)
  command
    .option('--quiet', 'print nothing but errors')
    .addOption(jsonOption('print all numbers and settings as JSON'))
    .addOption(dtypeOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addHelpText(
      'after',
      `
Examples:
  $ caravan eval --model DIR --tasks gsm8k,ifeval --data DATA --output results.json
  $ caravan eval --model DIR --tasks gsm8k --data DATA --samples 8 --temperature 0.6 --top-p 0.95
  $ caravan eval --model DIR --tasks mmlu,arc_easy --data DATA --limit 100 --samples-output samples.jsonl
  $ caravan eval --model DIR --tasks path/to/task.json

Ctrl-C ends it with 130 and writes nothing.`,
    )
    .action(async (flags) => ended(await (await import('./eval.js')).evaluateModel(flags)))
}

function addTaskOptions(command: Command): void {
  command
    .requiredOption('--tasks <names>', 'tasks and task files (.json), separated by commas', commaList('--tasks'))
    .option('--data <dir>', 'folder with the data: DIR/gsm8k/test.jsonl and so on; or the file of one task')
    .option('--output <file>', 'where to write all numbers and settings as JSON')
    .option('--samples-output <file>', 'where to write one line for every answer: prompt, answer, verdict')
    .option('--limit <n>', 'only the first n rows of each task (and subject)', wholeNumber('--limit', 1))
    .option('--shots <n>', 'examples before a question (default: the task has its own)', wholeNumber('--shots', 0))
    .option('--formulation <name>', 'of choices: mcf or cf; default both', oneOf('--formulation', FORMULATIONS))
    .option(
      '--batch-tokens <n>',
      'rows of a pass (results do not depend on it)',
      wholeNumber('--batch-tokens', 1),
      4096,
    )
}

function addAnswerOptions(command: Command): void {
  command
    .option('--format <form>', 'plain, chat or turns (default: turns with a template)', oneOf('--format', FORMATS))
    .option('--template <name>', 'chat template: built in, or a file (default: the model folder has one)')
    .option('--samples <n>', 'answers to each prompt, for pass@k and maj@n', wholeNumber('--samples', 1), 1)
    .option('--temperature <t>', '0: the most probable token', decimal('--temperature', { least: 0, most: 1e4 }), 0)
    .option('--top-p <p>', 'only the most probable tokens of total p', decimal('--top-p', { above: 0, most: 1 }), 1)
    .option('--max-tokens <n>', 'most new tokens (default: the task has its own)', wholeNumber('--max-tokens', 1))
    .option('--seed <n>', 'seed of all answers', wholeNumber('--seed', 0), 0)
    .option('--slots <n>', 'answers in work at a time (results do not depend on it)', wholeNumber('--slots', 1), 64)
}
