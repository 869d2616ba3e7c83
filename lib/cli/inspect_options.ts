// The options of `caravan inspect`.
import type { Command } from 'commander'
import { type Ended, jsonOption } from './command_options.js'
import { oneOf, pairs, wholeNumber } from './option_values.js'

export function addInspectCommand(program: Command, ended: Ended): void {
  program
    .command('inspect')
    .description('Show what training would see: the tokens of each row, and which of them are trained.')
    .requiredOption('--data <files...>', 'data files or folders (.jsonl, .json, .parquet)')
    .option('--model <dir>', 'model folder whose tokenizer and template are used')
    .option('--tokenizer <dir>', 'folder with tokenizer.json, instead of --model')
    .option('--template <name>', "chat template: built in, or a file (default: the tokenizer's own)")
    .option('--fields <pairs>', 'columns to read, as prompt=question,completion=answer', pairs('--fields'))
    .option('--rows <n>', 'rows to show; statistics are of all rows', wholeNumber('--rows', 0), 3)
    .option('--max-tokens <n>', 'longest row; what is longer is cut', wholeNumber('--max-tokens', 1))
    .option('--train-on <turns>', 'all assistant turns, or the last one', oneOf('--train-on', ['all', 'last']), 'all')
    .addOption(jsonOption('print rows and statistics as JSON, one a line'))
    .addHelpText(
      'after',
      `
Examples:
  $ caravan inspect --data chat.jsonl --model DIR --rows 5
  $ caravan inspect --data rows.parquet --tokenizer DIR --template tulu --fields prompt=question,completion=answer

Exits with 1 when no row trains an end of turn: a model trained on that never learns to stop.`,
    )
    .action(async (flags) => ended(await (await import('./inspect.js')).inspect(flags)))
}
