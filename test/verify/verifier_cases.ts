// What the tests of verifiers share: golden rows, real data where it is there, and completions made to hurt.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { MAX_COMPLETION_LENGTH } from '../../lib/verify/verifier.js'

/** Rows of test/golden/verifiers/<name>.json. */
export function goldenRows(name: 'tulu3_verifiers'): { [key: string]: unknown[][] }
export function goldenRows(name: 'ifevalg'): unknown[][]
export function goldenRows(name: string): unknown {
  return JSON.parse(readFileSync(new URL(`../golden/verifiers/${name}.json`, import.meta.url), 'utf8'))
}

/** A file of the optional folder of real data beside the repository; it may be absent. */
export function realData(path: string): string {
  return fileURLToPath(new URL(`../../../shared/data/${path}`, import.meta.url))
}

/** Long enough for quadratic time to take seconds. */
const LONG = 2 ** 16

/** As long as any completion that is read. */
const LONGEST = MAX_COMPLETION_LENGTH

/** Completions that no verifier may choke on. */
export const HOSTILE: [name: string, completion: string][] = [
  ['nothing', ''],
  ['white space', ' '.repeat(LONG)],
  ['new lines', '\n'.repeat(LONG)],
  ['one letter', 'a'.repeat(LONG)],
  ['one digit', '9'.repeat(LONG)],
  ['one zero', '0'.repeat(LONG)],
  ['full stops', '.'.repeat(LONG)],
  ['spaced full stops', '. '.repeat(LONG / 2)],
  ['a full stop before white space', `a.${' '.repeat(LONG - 3)}x`],
  ['opening braces', '{'.repeat(LONG)],
  ['closing braces', '}'.repeat(LONG)],
  ['parentheses', '('.repeat(LONG)],
  ['brackets', '['.repeat(LONG)],
  ['angles', '<'.repeat(LONG)],
  ['asterisks', '*'.repeat(LONG)],
  ['dashes', '-'.repeat(LONG)],
  ['dollars', '$'.repeat(LONG)],
  ['quotes', '"'.repeat(LONG)],
  ['apostrophes', "'".repeat(LONG)],
  ['backslashes', '\\'.repeat(LONG)],
  ['commas', ','.repeat(LONG)],
  ['grouped digits', '1,2'.repeat(LONG / 3)],
  ['pairs of digits', '12,'.repeat(LONG / 3)],
  ['slashes', '1/'.repeat(LONG / 2)],
  ['minus signs', '- '.repeat(LONG / 2)],
  ['initials', 'A. '.repeat(LONG / 4)],
  ['abbreviations', 'Mr. Dr. '.repeat(LONG / 8)],
  ['stars on lines', '*\n'.repeat(LONG / 2)],
  ['markers', '#### '.repeat(LONG / 5)],
  ['boxes', '\\boxed{'.repeat(LONG / 8)],
  ['boxes with spaces', '\\boxed '.repeat(LONG / 8)],
  ['fractions', `\\boxed{${'\\frac{1}{'.repeat(1e4)}`],
  ['closed fractions', `\\boxed{${'\\frac{1}{'.repeat(5e3)}2${'}'.repeat(5e3)}}`],
  ['roots', `\\boxed{${'\\sqrt'.repeat(2e4)}}`],
  ['a tower of powers', '\\boxed{9^9^9}'],
  ['a high tower of powers', `\\boxed{${'9^{'.repeat(5e3)}9${'}'.repeat(5e3)}}`],
  ['a wide power', '\\boxed{(1+x)^{999999999}}'],
  ['a factorial', '\\boxed{99999999999!}'],
  ['factorials', `\\boxed{9${'!'.repeat(1e4)}}`],
  ['a sum', `\\boxed{${'x+'.repeat(2e4)}x}`],
  ['a product', `\\boxed{${'(x+1)'.repeat(5e3)}}`],
  ['minerva bait', 'Final Answer: The final answer is '.repeat(LONG / 40)],
  ['think tags', '<think>'.repeat(LONG / 8)],
  ['closing think tags', '</think>'.repeat(LONG / 8)],
  ['answer tags', '<answer>'.repeat(LONG / 8)],
  ['placeholders', '[a'.repeat(LONG / 2)],
  ['titles', '<<a\n'.repeat(LONG / 4)],
  ['lone surrogates', '\ud800'.repeat(LONG)],
  ['low surrogates', `\udc00 \\boxed{\udc00} ${'\udfff '.repeat(1000)}`],
  ['bytes that were no UTF-8', '\ufffd'.repeat(LONG)],
  ['NUL', '\0'.repeat(LONG)],
  ['combining marks', `e${'\u0301'.repeat(LONG - 1)}`],
  ['Devanagari', '\u0915\u094d\u0937 '.repeat(LONG / 4)],
  ['emoji', '\u{1f600}'.repeat(LONG / 2)],
  ['nested JSON', '['.repeat(LONG / 2) + ']'.repeat(LONG / 2)],
  ['the longest of one letter', 'a'.repeat(LONGEST)],
  ['the longest of one digit', '9'.repeat(LONGEST)],
  ['the longest of white space', ' '.repeat(LONGEST)],
  ['longer than any that is read', 'a'.repeat(2 ** 20)],
  ['a hundred thousand lines', 'a\n'.repeat(1e5)],
  ['a hundred thousand lists', '- a\n'.repeat(LONGEST / 4)],
  ['a hundred thousand braces', '{'.repeat(1e5) + '}'.repeat(1e5)],
  ['a hundred thousand braces in a box', `\\boxed${'{'.repeat(1e5)}1${'}'.repeat(1e5)}`],
  ['parentheses in a box', `\\boxed{${'('.repeat(1e5)}1${')'.repeat(1e5)}}`],
  ['fractions of fractions', `\\boxed{${'\\frac{'.repeat(3e4)}`],
  ['fractions in numerators', `\\boxed{${'\\frac{'.repeat(1e4)}1${'}{2}'.repeat(1e4)}}`],
  ['a decimal without end', `\\boxed{0.${'3'.repeat(1e5)}}`],
  ['an integer without end', `\\boxed{${'7'.repeat(1e5)}}`],
  ['a fraction without end', `\\boxed{\\frac{${'7'.repeat(5e4)}}{${'3'.repeat(5e4)}}}`],
  ['an exponent without end', `\\boxed{2^{${'9'.repeat(1e5)}}}`],
  ['a product without end', `\\boxed{${'99999999\\cdot '.repeat(1e4)}9}`],
  ['a matrix without end', `\\boxed{\\begin{pmatrix}${'1 & 2 \\\\ '.repeat(1e4)}\\end{pmatrix}}`],
  ['a list without end', `\\boxed{${'1,'.repeat(5e4)}1}`],
  ['minus signs in a box', `\\boxed{${'-'.repeat(1e5)}1}`],
  ['the answer is', 'the answer is '.repeat(LONGEST / 16)],
  ['formulas', '$x$ '.repeat(LONGEST / 4)],
  ['bold', '**a** '.repeat(LONGEST / 8)],
  ['full stops and capitals', 'A. B? C! '.repeat(LONGEST / 16)],
  ['code fences', '```json\n'.repeat(LONGEST / 8)],
  ['NULs between digits', '1\0'.repeat(LONGEST / 2)],
  ['broken pairs', '\udc00\ud800'.repeat(LONGEST / 4)],
  ['one word of many letters', `${'ab'.repeat(LONGEST / 4)}!`],
  ['alternation bait', `${'(a|a)*'.repeat(1000)}${'a'.repeat(5000)}!`],
  ['dotted words', 'a.b.c.'.repeat(LONGEST / 8)],
  ['colons and times', '10:30 '.repeat(LONGEST / 8)],
  ['regular expression bait', `${'(a+)+'.repeat(1000)}${'a'.repeat(1000)}!`],
]
