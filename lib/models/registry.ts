// The families that can be loaded, and which of them a config.json belongs to.
import { CaravanError, nearestName } from '../base/errors.js'
import type { ConfigReader } from './config_reader.js'
import type { DecoderConfig } from './decoder_config.js'
import type { Family } from './family.js'
import { llama } from './llama.js'
import { mistral } from './mistral.js'
import { olmo } from './olmo.js'
import { olmo2 } from './olmo2.js'
import { qwen2 } from './qwen2.js'
import { qwen3 } from './qwen3.js'

export const families: readonly Family[] = [llama, qwen2, qwen3, mistral, olmo, olmo2]

/** What sits on the decoder: a language model head, or a scalar score. */
export type Task = 'CausalLM' | 'SequenceClassification'

/** The family called `name`. ERR_MODEL lists the known ones. */
export function familyNamed(name: string): Family {
  const family = families.find((candidate) => candidate.name === name)
  if (family) return family
  const known = families.map((candidate) => candidate.name)
  throw new CaravanError('ERR_MODEL', `unknown model family '${name}'; known: ${known.join(', ')}`, {
    details: { family: name, known },
    hint: suggestion(name, known),
  })
}

/** Class name in transformers of a family with `task` on top. */
export function architectureName(family: Family, task: Task): string {
  return family.architecture.replace(/ForCausalLM$/, `For${task}`)
}

/** The family of a config.json by its `architectures`, or by `model_type` where that is absent. ERR_MODEL when it is
 *  not known, when the two disagree, or when it is made for another task. */
export function familyOf(reader: ConfigReader, task: Task): Family {
  const architectures = reader.strings('architectures')
  const type = reader.string('model_type', '')
  const [architecture] = architectures
  if (architecture === undefined) {
    if (type === '') throw reader.fault('architectures', 'a list with the class of the model')
    const family = families.find((candidate) => candidate.name === type)
    if (family) return family
    throw unknown(reader, { key: 'model_type', name: type, known: families.map((candidate) => candidate.name) })
  }
  const family = families.find((candidate) => architectureName(candidate, task) === architecture)
  if (!family) {
    const known = families.map((candidate) => architectureName(candidate, task))
    throw unknown(reader, { key: 'architectures', name: architecture, known })
  }
  if (type !== '' && type !== family.name) {
    throw reader.fault('model_type', `"${family.name}" to match architectures ["${architecture}"]`)
  }
  return family
}

/** Reads the configuration with the rules of its family. */
export function readConfig(reader: ConfigReader, task: Task): { family: Family; config: DecoderConfig } {
  const family = familyOf(reader, task)
  return { family, config: family.read(reader) }
}

function unknown(reader: ConfigReader, found: { key: string; name: string; known: string[] }): CaravanError {
  const { key, name, known } = found
  return new CaravanError(
    'ERR_MODEL',
    `${reader.path}: ${key} must be one of ${known.join(', ')}; got ${JSON.stringify(name)}`,
    { details: { file: reader.path, key, received: name, known }, hint: suggestion(name, known) },
  )
}

function suggestion(name: string, known: string[]): string {
  const nearest = nearestName(name, known)
  return nearest ? `the nearest known is '${nearest}'` : 'this architecture cannot be loaded'
}
