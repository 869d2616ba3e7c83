// Which chat template a command means: a built-in one by name, a file, or the tokenizer's own.
import { readFile } from 'node:fs/promises'
import { CaravanError, nearestName } from '../base/errors.js'
import { ChatTemplate } from '../text/chat_template.js'
import type { Tokenizer } from '../text/tokenizer.js'
import { builtInTemplates } from '../text/tulu_template.js'

/** The template `name`, or the tokenizer's own without one. ERR_CONFIG for a name that is neither built in nor a
 *  file. */
export async function chosenTemplate(tokenizer: Tokenizer, name?: string): Promise<ChatTemplate> {
  if (name === undefined || builtInTemplates.has(name)) return ChatTemplate.of(tokenizer, name)
  const source = await readFile(name, 'utf8').catch((cause) => {
    const known = [...builtInTemplates.keys()]
    const nearest = nearestName(name, known)
    throw new CaravanError(
      'ERR_CONFIG',
      `--template ${name}: neither a built-in template nor a file that can be read`,
      {
        details: { template: name },
        hint: nearest ? `did you mean "${nearest}"?` : `built in: ${known.join(', ')}`,
        cause,
      },
    )
  })
  return ChatTemplate.of(tokenizer, source)
}
