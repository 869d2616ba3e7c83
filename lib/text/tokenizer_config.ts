// tokenizer_config.json, special_tokens_map.json and chat_template.jinja: the special tokens by role and the chat
// template. Of the configuration only the keys read here have any effect; none of them selects code or a path.
import { CaravanError } from '../base/errors.js'

export interface TokenizerConfig {
  bosToken: string | undefined
  eosToken: string | undefined
  padToken: string | undefined
  chatTemplate: string | undefined
}

type Json = Record<string, unknown>

/** Reads the configuration from file contents by name. Throws ERR_TOKENIZER naming the file and the field. */
export function parseTokenizerConfig(
  files: ReadonlyMap<string, Buffer>,
  path: (name: string) => string,
): TokenizerConfig {
  const config = parseObject(files, 'tokenizer_config.json', path)
  const special = parseObject(files, 'special_tokens_map.json', path)
  const token = (field: string): string | undefined =>
    tokenContent(config[field], field, path('tokenizer_config.json')) ??
    tokenContent(special[field], field, path('special_tokens_map.json'))
  return {
    bosToken: token('bos_token'),
    eosToken: token('eos_token'),
    padToken: token('pad_token'),
    chatTemplate:
      files.get('chat_template.jinja')?.toString('utf8') ??
      templateText(config.chat_template, path('tokenizer_config.json')),
  }
}

function parseObject(files: ReadonlyMap<string, Buffer>, name: string, path: (name: string) => string): Json {
  const bytes = files.get(name)
  if (bytes === undefined) return {}
  let value: unknown
  try {
    value = JSON.parse(bytes.toString('utf8'))
  } catch (cause) {
    throw new CaravanError('ERR_TOKENIZER', `${path(name)}: not JSON: ${(cause as Error).message}`, {
      details: { file: path(name) },
      cause,
    })
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Json
  throw new CaravanError('ERR_TOKENIZER', `${path(name)}: expected a JSON object`, { details: { file: path(name) } })
}

function tokenContent(value: unknown, field: string, file: string): string | undefined {
  if (value === undefined || value === null) return undefined
  if (typeof value === 'string') return value
  if (typeof value === 'object' && typeof (value as Json).content === 'string') return (value as Json).content as string
  throw new CaravanError('ERR_TOKENIZER', `${file}: ${field} must be a string or an object with a string content`, {
    details: { file, path: field },
  })
}

/** A template is a string, or a list of named ones of which `default` is meant. */
function templateText(value: unknown, file: string): string | undefined {
  if (value === undefined || value === null) return undefined
  if (typeof value === 'string') return value
  const named = Array.isArray(value) ? (value as (Json | null)[]) : []
  const chosen = named.find((entry) => entry?.name === 'default') ?? (named.length === 1 ? named[0] : undefined)
  if (typeof chosen?.template === 'string') return chosen.template
  throw new CaravanError(
    'ERR_TOKENIZER',
    `${file}: chat_template must be a string or a list of {name, template} with one named default`,
    { details: { file, path: 'chat_template' } },
  )
}
