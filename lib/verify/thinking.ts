// What a model says before its answer: reasoning up to `</think>` and the tags of an answer.

const TURN = '<|assistant|>'
const THOUGHT_END = '</think>'
const ANSWER_TAG = /<\/?answer>/g

/** The text after the last `</think>`, without turn marker and answer tags; text with none of these is unchanged. */
export function withoutThinking(completion: string): string {
  const turnless = completion.replaceAll(TURN, '')
  const thought = turnless.lastIndexOf(THOUGHT_END)
  const answer = thought < 0 ? turnless : turnless.slice(thought + THOUGHT_END.length)
  const tagless = answer.replace(ANSWER_TAG, '')
  return tagless.length === completion.length ? completion : tagless.trim()
}
