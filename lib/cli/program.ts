// All commands and their options. The code of a command is imported when it runs, so that --help needs no engine.
import { Command } from 'commander'
import { addBenchCommand } from './bench_options.js'
import { deviceOption, dtypeOption, type Ended, jsonOption, threadsOption } from './command_options.js'
import { addEvalCommand } from './eval_options.js'
import { addGenerateCommand } from './generate_options.js'
import { addInspectCommand } from './inspect_options.js'
import { byteSize, collectAssignment, commaList, pairs, wholeNumber } from './option_values.js'
import { packageVersion } from './package_version.js'

/** The program; errors are thrown (CommanderError, CaravanError), never printed. */
export function createProgram(ended: Ended): Command {
  const program = new Command('caravan')
  program
    .description('Post-training of language models in Node.js: fine-tuning, preference tuning, reward models.')
    .version(packageVersion(), '-v, --version', 'print the version')
    .helpOption('-h, --help', 'show this help')
    .helpCommand('help [command]', 'show the help of a command')
    .configureOutput({ writeErr: () => {}, outputError: () => {} })
    .exitOverride()
    .showSuggestionAfterError()
    .addHelpText(
      'after',
      `
Examples:
  $ caravan train                                  the whole Tulu 3 pipeline at pocket size, on this machine
  $ caravan train --scale 8b --model DIR --data chat.jsonl --dry-run
  $ caravan inspect --data chat.jsonl --model DIR  which tokens would be trained
  $ caravan generate --model DIR --input prompts.jsonl --output out.jsonl
  $ caravan doctor                                 what this machine can do

Exit codes: 0 done, 1 the run failed, 2 the command line is wrong, 130 stopped by Ctrl-C after saving.`,
    )
  addTrainCommand(program, ended)
  addGenerateCommand(program, ended)
  addScoreCommand(program, ended)
  addEvalCommand(program, ended)
  addMergeLoraCommand(program, ended)
  addVerifyCommand(program, ended)
  addInspectCommand(program, ended)
  addDoctorCommand(program, ended)
  addBenchCommand(program, ended)
  return program
}

function addTrainCommand(program: Command, ended: Ended): void {
  program
    .command('train')
    .description('Run a recipe: train a model, judge it, save it.')
    .option('--recipe <name>', 'which recipe', 'tulu3')
    .option('--scale <name>', 'size of the recipe: pocket, 8b, 70b, 405b', 'pocket')
    .option('--algorithm <name>', 'of the stage with verifiable rewards: ppo (default), grpo')
    .option('--stage <names>', 'only these stages, separated by commas', commaList('--stage'))
    .option('--model <dir>', 'start from this Hugging Face model folder')
    .option('--data <files...>', 'train on these files or folders (.jsonl, .json, .parquet)')
    .option('--fields <pairs>', 'columns to read, as prompt=question,completion=answer', pairs('--fields'))
    .option('--out <dir>', 'run folder (default: runs/<recipe>-<scale>-<time>)')
    .option('--set <stage.key=value>', 'change a setting; may be given often', collectAssignment('--set'))
    .option('--resume [dir]', 'continue a run: that of the folder, of --out, or the newest')
    .option('--seed <n>', 'seed of everything random', wholeNumber('--seed', 0))
    .option('--memory-limit <size>', 'most memory for tensors, as 8GiB', byteSize('--memory-limit'))
    .option('--dry-run', 'show the plan (sizes, memory, work, settings) and stop')
    .option('--quiet', 'print warnings and the result only')
    .addOption(jsonOption('print events as JSON, one a line'))
    .addOption(dtypeOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addHelpText(
      'after',
      `
Examples:
  $ caravan train                                       pocket size: minutes on two cores
  $ caravan train --stage sft --model DIR --data chat.jsonl --scale 8b --set sft.lr=1e-5
  $ caravan train --data rows.jsonl --fields prompt=question,completion=answer --model DIR --stage sft
  $ caravan train --dry-run --json                      the plan for a program
  $ caravan train --set sft.activationCheckpointing=selective   less memory, same bits (none, selective, full)
  $ caravan train --resume runs/tulu3-pocket-20250101   after Ctrl-C or a crash

Ctrl-C finishes the step, saves a checkpoint and exits with 130; a second Ctrl-C exits at once.`,
    )
    .action(async (flags) => ended(await (await import('./train.js')).train(flags)))
}

function addScoreCommand(program: Command, ended: Ended): void {
  program
    .command('score')
    .description(
      'Log-probabilities, in nats, of every token of given texts under a model; or the scores of a reward model.',
    )
    .requiredOption('--model <dir>', 'Hugging Face model folder')
    .requiredOption('--input <file>', 'rows with input_ids, text or messages (.jsonl, .json, also .gz)')
    .requiredOption('--output <file>', 'where to write one line a row: {"tokens", "logprobs", "sum"}')
    .option('--reward', 'DIR holds a reward model: write {"tokens", "score"}, the score at the last token')
    .option('--template <name>', 'chat template for messages: built in, or a file (default: the model folder has one)')
    .option('--batch-tokens <n>', 'tokens that go through the model at once', wholeNumber('--batch-tokens', 1), 4096)
    .option('--quiet', 'print nothing but errors')
    .addOption(jsonOption('print the summary as JSON'))
    .addOption(dtypeOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addHelpText(
      'after',
      `
Examples:
  $ caravan score --model DIR --input texts.jsonl --output scores.jsonl
  $ echo '{"input_ids":[1,2,3]}' > ids.jsonl && caravan score --model DIR --input ids.jsonl --output out.jsonl
  $ caravan score --reward --model RUN/reward_model --input chats.jsonl --output scores.jsonl

The first token of a row has no log-probability: it is null.`,
    )
    .action(async (flags) => ended(await (await import('./score.js')).score(flags)))
}

function addMergeLoraCommand(program: Command, ended: Ended): void {
  program
    .command('merge-lora')
    .description('Merge a LoRA adapter (PEFT format) into its base model.')
    .requiredOption('--model <dir>', 'Hugging Face folder of the base model')
    .requiredOption('--adapter <dir>', 'folder with adapter_config.json and adapter_model.safetensors')
    .requiredOption('--out <dir>', 'folder for the merged model; must not exist, or be empty')
    .option('--memory-limit <size>', 'most memory for tensors, as 8GiB', byteSize('--memory-limit'))
    .option('--quiet', 'print nothing but errors')
    .addOption(jsonOption('print the summary as JSON'))
    .addOption(dtypeOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .addHelpText(
      'after',
      `
Examples:
  $ caravan merge-lora --model BASE --adapter runs/mine/sft/adapter --out merged
  $ caravan merge-lora --model BASE --adapter DIR --out merged --dtype fp32   no rounding at all

The tokenizer files are those of the base. Weights are summed in f32 and rounded once.`,
    )
    .action(async (flags) => ended(await (await import('./merge_lora.js')).mergeLora(flags)))
}

function addVerifyCommand(program: Command, ended: Ended): void {
  program
    .command('verify')
    .description('Score completions by rules: right numbers, right formulas, followed instructions.')
    .requiredOption('--verifier <name>', 'gsm8k, math, ifeval, ..., or a module of yours (docs/verifiers.md)')
    .requiredOption('--input <file>', 'rows with completion and ground_truth (.jsonl, .json, also .gz)')
    .requiredOption('--output <file>', 'where to write one line a row: {"score", "reason"}')
    .option('--quiet', 'print nothing but errors')
    .addOption(jsonOption('print the summary as JSON'))
    .addHelpText(
      'after',
      `
Examples:
  $ caravan verify --verifier gsm8k --input completions.jsonl --output verdicts.jsonl
  $ caravan verify --verifier ifeval --input answers.jsonl --output verdicts.jsonl --json
  $ caravan verify --verifier ./brief.mjs --input rows.jsonl --output verdicts.jsonl

Rows for ifeval have completion, instruction_id_list and kwargs; their verdicts have strict and loose, too.`,
    )
    .action(async (flags) => ended(await (await import('./verify.js')).verify(flags)))
}

function addDoctorCommand(program: Command, ended: Ended): void {
  program
    .command('doctor')
    .description('What this machine and this build can do, and what is missing.')
    .addOption(threadsOption())
    .addOption(jsonOption('print as JSON'))
    .addHelpText('after', '\nExamples:\n  $ caravan doctor\n  $ caravan doctor --json | jq .peak')
    .action(async (flags) => ended(await (await import('./doctor.js')).doctor(flags)))
}
