// What a completion that is made to hurt costs a verifier, in processor time: every verifier, and every instruction of
// `ifeval` by itself, on texts of one repeated piece and on text without repetition, as long as the verifier reads. A
// line around them makes the eight readings of an instruction differ. After `npm run build`:
//   node bench/hostile_verifiers.mjs [name of a verifier or an instruction, or a part of it]
import { loadavg } from 'node:os'
import { findVerifier, guardedVerify, Random, VERIFIERS } from '../dist/index.js'
import { INSTRUCTION_IDS } from '../dist/verify/ifeval.js'
import { PAPER_FUNCTIONS } from '../dist/verify/ifeval_paper.js'

const [ROUNDS, LONGEST, LONGEST_ANSWER] = [3, 2 ** 18, 2 ** 16]
const PIECES = [
  ...'a9 \n.{}([<*-$"\'`\\,:?!#%/|_',
  ...['. ', 'a. ', 'A. ', 'Mr. ', 'word ', 'Word. ', 'A. B? C! ', 'a.b.c.', '... ', '. . . ', '--', '? ', '!"', '.\u201d'],
  ...['a.\n', 'a\n', '- a\n', '* a\n', '*a* ', '**a** ', '*\n', '\n\n', '***', '******', ' *** ', '```json\n', 'a-', '.-'],
  ...['[a', '[a]', '<<a\n', '<<a>>\n', '{"a":', '[1,', '[]', '{}', '\\boxed{', '\\frac{', '#### ', '$x$ ', '1,2', '1/', '12,'],
  ...['a b a ', '(a+)+', "a'", "a's ", "don't ", 'cannot ', '10:30 ', 'ph.d. ', 'U.S. He ', 'p.s. ', 'SECTION 1 ', '</think>'],
  ...['\ud800', '\udc00\ud800', '\ufffd', '\0', '\u{1f600}', '\u{1f600} ', 'e\u0301', '\u0301', '\u0915\u094d\u0937 ', '\u4e2d', '\u3042\u3002'],
  ...['\u00e9 ', '\u0130', '\u00df', '\u0391\u03a3 ', 'a\u2028', '\u00a0', 'a\u3000'],
]
const random = new Random(1)
const word = () => Array.from({ length: random.integer(1, 9) }, () => random.choice('etaoinshrdlu')).join('')
const many = (count, make) => Array.from({ length: count }, make).join('')
const VARIED = {
  'words without end': many(4e4, () => `${word()} `),
  'words with capitals': many(4e4, () => `${word()} ${word().toUpperCase()} `),
  'short sentences': many(4e4, () => `${word()} ${word()}. `),
  'lines of sentences': many(4e4, () => `${word()} ${word()}.\n`),
  'quoted sentences': many(4e4, () => `"${word()}, '${word()}'." `),
  'abbreviations of all kinds': many(4e4, () => `${word()}.${word()}. `),
  'one word': many(4e4, word),
}
/** Every argument that some instruction asks for; such that it neither follows nor fails at once. */
const ARGUMENTS = {
  ...{ keywords: ['a', 'qq'], keyword: 'a', keyword1: 'a', keyword2: 'e', forbidden_words: ['qq', '(a+)+b'] },
  ...{ relation: 'at least', let_relation: 'at least', capital_relation: 'at least', letter: 'a', let_frequency: 1e6 },
  ...{ frequency: 1e6, num_words: 1e6, num_sentences: 1e6, capital_frequency: 1e6, num_placeholders: 1e6, N: 1e6 },
  ...{ num_bullets: 1e6, num_highlights: 1e6, num_sections: 1e6, num_paragraphs: 3, nth_paragraph: 1 },
  ...{ section_spliter: 'a', postscript_marker: 'P.S.', first_word: 'a', last_word: 'a', language: 'sw' },
  ...{ prompt_to_repeat: 'a b', end_phrase: 'a b', phrase: 'a b a', small_n: 1e6, n_start: 0, n_end: 2, n: 1e6, m: 1 },
  ...{ n_sent: 1, n_words: 1 },
}
const PAPER_ARGUMENTS = {
  ...{ keyword_list: ['a', 'qq'], word: 'a', forbidden_words: ['qq'], letter: 'a', N: 3, quantifier: 'around' },
  ...{ language: 'sw', i: 1, first_word: 'a', postscript_marker: 'P.S.', options: ['qq'], section_splitter: 'a' },
  ...{ original_prompt: 'a b', end_phrase: 'a b' },
}
const CONSTRAINTS = [
  ...['caps', 'lower', 'nocomma', 'quote', 'title', 'ps'].map((kind) => ({ kind })),
  ...['end', 'start'].map((kind) => ({ kind, phrase: 'a b' })),
  ...['bullets', 'nsent'].map((kind) => ({ kind, count: 3 })),
  ...[{ kind: 'kw', word: 'a', count: 3 }, { kind: 'avoid', word: 'qq' }],
]
const TRUTHS = {
  math: ['\\frac{1}{2}', '9^{9^9}'],
  string_f1: [['hello world', 'a']],
  multiple_choice: ['B'],
  max_length: [100],
  up_to_max_length: [100],
  problem_answer: [42],
  instruction_constraints: [{ entity: 'Mara', distinctSentences: true, constraints: CONSTRAINTS }],
  ifeval_paper: Object.keys(PAPER_FUNCTIONS).map((func_name) => ({ func_name, ...PAPER_ARGUMENTS })),
}

/** [name, verifier, row, longest text] of everything that is measured. */
const cases = VERIFIERS.flatMap(({ name }) => {
  if (name !== 'ifeval') {
    const limit = name === 'ifeval_paper' ? LONGEST_ANSWER : LONGEST
    return (TRUTHS[name] ?? ['1/2']).map((groundTruth) => {
      const part = groundTruth.func_name ?? (TRUTHS[name]?.length > 1 ? String(groundTruth) : '')
      return [`${name} ${part}`.trim(), name, { groundTruth }, limit]
    })
  }
  return INSTRUCTION_IDS.map((id) => {
    const row = { instruction_id_list: [id], kwargs: [ARGUMENTS] }
    return [`ifeval ${id}`, name, { row }, LONGEST_ANSWER]
  })
})

function completionOf(body, limit) {
  const [before, after] = ['x * x\n', '\nx * x']
  return before + body.slice(0, limit - before.length - after.length) + after
}

function milliseconds(verifier, input) {
  let least = Number.POSITIVE_INFINITY
  for (let i = 0; i < ROUNDS; i++) {
    const begin = process.cpuUsage()
    const { reason } = guardedVerify(verifier, input)
    const { user, system } = process.cpuUsage(begin)
    if (reason.includes('failed:')) throw new Error(`${verifier.name}: ${reason}`)
    least = Math.min(least, (user + system) / 1000)
  }
  return least
}

console.log(`load ${loadavg()[0].toFixed(1)}, Node ${process.version}; milliseconds, least of ${ROUNDS}`)
const wanted = process.argv[2] ?? ''
const texts = [...PIECES.map((piece) => [JSON.stringify(piece), piece.repeat(LONGEST / piece.length)]), ...Object.entries(VARIED)]
const worst = []
for (const [name, verifierName, row, limit] of cases) {
  if (!name.includes(wanted)) continue
  const verifier = findVerifier(verifierName)
  const times = texts.map(([text, body]) => [milliseconds(verifier, { completion: completionOf(body, limit), ...row }), text])
  times.sort((a, b) => b[0] - a[0])
  worst.push([times[0][0], name, times.slice(0, 4)])
}
worst.sort((a, b) => b[0] - a[0])
for (const [, name, times] of worst) {
  console.log(`${name.padEnd(52)} ${times.map(([ms, text]) => `${ms.toFixed(1)} ${text}`).join('   ')}`)
}
