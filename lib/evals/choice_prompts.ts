// Questions with choices as text, in the two formulations of OLMES (Gu et al. 2024, 3.1): lettered (the space before a
// letter gives it the token that it has as an answer), and cloze.
import { letterOf } from './choice_tasks.js'
import type { ChoiceQuestion, ChoiceTask, Formulation } from './task.js'

/** What the score of a choice without its question is conditioned on (`uncond`). */
export const UNCONDITIONAL_PROMPT = 'Answer:'

/** A question without an answer. */
export function questionText(task: ChoiceTask, { question, choices }: ChoiceQuestion, formulation: Formulation) {
  const prefix = task.prefix[formulation]
  const ending = task.answerPrefix[formulation]
  const list = choices.map((choice, i) => ` ${letterOf(i)}. ${choice}`).join('\n')
  const lines = [
    `${prefix}${question}`,
    ...(formulation === 'mcf' ? [`${task.choicesPrefix}${list}`] : []),
    ...(ending === undefined ? [] : [ending]),
  ]
  return cleaned(task, lines.join('\n'))
}

/** What is scored for each choice: its letter, or its text; a space before it. */
export function continuations(task: ChoiceTask, { choices }: ChoiceQuestion, formulation: Formulation): string[] {
  return choices.map((choice, i) => ` ${formulation === 'mcf' ? letterOf(i) : cleaned(task, choice)}`)
}

/** Description, examples with their answers and the question, a blank line between them. */
export function choicePrompt(
  task: ChoiceTask,
  question: ChoiceQuestion,
  { formulation, shots }: { formulation: Formulation; shots: readonly ChoiceQuestion[] },
): string {
  const examples = shots.map((shot) => {
    return questionText(task, shot, formulation) + continuations(task, shot, formulation)[shot.answer]!
  })
  const description = task.description === undefined ? [] : [task.description(question.subject)]
  return [...description, ...examples, questionText(task, question, formulation)].join('\n\n')
}

function cleaned(task: ChoiceTask, text: string): string {
  return task.clean === undefined ? text : task.clean(text)
}
