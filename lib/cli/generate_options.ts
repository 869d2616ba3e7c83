// The options of `caravan generate`.
import type { Command } from 'commander'
import { deviceOption, dtypeOption, type Ended, jsonOption, threadsOption } from './command_options.js'
import { decimal, wholeNumber } from './option_values.js'

export function addGenerateCommand(program: Command, ended: Ended): void {
  program
    .command('generate')
    .description('Continue prompts: sampling on the weights and kernels of training.')
    .requiredOption('--model <dir>', 'Hugging Face model folder')
    .requiredOption('--input <file>', 'rows with prompt, messages or input_ids (.jsonl, .json, also .gz)')
    .requiredOption('--output <file>', 'where to write one line a sample')
    .option('--max-tokens <n>', 'most new tokens of a sample', wholeNumber('--max-tokens', 1), 256)
    .option('--temperature <t>', '0: the most probable token', decimal('--temperature', { least: 0, most: 1e4 }), 1)
    .option('--top-k <k>', 'only the k most probable tokens (0: all)', wholeNumber('--top-k', 0), 0)
    .option('--top-p <p>', 'only the most probable tokens of total p', decimal('--top-p', { above: 0, most: 1 }), 1)
    .option('--min-p <p>', 'only tokens of p times the largest', decimal('--min-p', { least: 0, most: 1 }), 0)
    .option(
      '--repetition-penalty <r>',
      'divides the logits of tokens that came before (1: off)',
      decimal('--repetition-penalty', { least: 0.01, most: 100 }),
      1,
    )
    .option('--n <k>', 'samples of each prompt', wholeNumber('--n', 1), 1)
    .option('--seed <n>', 'seed of all samples', wholeNumber('--seed', 0), 0)
    .option('--stop <texts...>', 'texts that end a sample; they are left out of it')
    .option('--slots <n>', 'samples in work at a time (results do not depend on it)', wholeNumber('--slots', 1), 64)
    .option('--template <name>', 'chat template for messages: built in, or a file (default: the model folder has one)')
    .option('--quiet', 'print nothing but errors')
    .addOption(jsonOption('print the summary as JSON'))
    .addOption(dtypeOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addHelpText(
      'after',
      `
Examples:
  $ caravan generate --model DIR --input prompts.jsonl --output out.jsonl --n 4 --top-p 0.95
  $ echo '{"prompt":"Once"}' > one.jsonl && caravan generate --model DIR --input one.jsonl --output out.jsonl
  $ caravan generate --model DIR --input chat.jsonl --output out.jsonl --temperature 0 --stop "Question:"

A line: {"index", "sample", "completion", "token_ids", "logprobs", "finish_reason"}, in the order of the rows.`,
    )
    .action(async (flags) => ended(await (await import('./generate.js')).generateFile(flags)))
}
