import { describe, expect, it } from 'vitest'
import {
  CONSTRAINT_KINDS,
  containsPhrase,
  type InstructionConstraint,
  sentencesOf,
  verifyInstruction,
  wordsOf,
} from '../../lib/verify/instruction_constraints.js'

const accept = (answer: string, ...constraints: InstructionConstraint[]) =>
  verifyInstruction(answer, { entity: 'Windle', constraints }).score

type Case = [constraint: InstructionConstraint, passing: string[], failing: string[]]

const CASES: Case[] = [
  [
    { kind: 'caps' },
    ['WINDLE SELLS ROPE DAILY.', 'WINDLE, IN 3 WORDS: ROPE!'],
    ['WINDLE SELLS ROPE DAILy.', 'windle sells rope daily.'],
  ],
  [
    { kind: 'lower' },
    ['windle sells rope daily.', '- windle sells 5 ropes'],
    ['Windle sells rope daily.', 'windle sells rope dailY'],
  ],
  [{ kind: 'nocomma' }, ['Windle sells rope daily.'], ['Windle, they say, sells rope.', 'Windle sells rope daily,']],
  [
    { kind: 'end', phrase: 'That is all.' },
    ['Windle sells rope. That is all.', 'WINDLE SELLS ROPE. THAT IS ALL.', '"Windle sells rope. That is all."  '],
    ['That is all. Windle sells rope.', 'Windle sells rope. That is all', 'Windle sells rope. That is all. Really.'],
  ],
  [
    { kind: 'start', phrase: 'In short' },
    ['In short, Windle sells rope.', '"IN SHORT, WINDLE SELLS ROPE."', '  in short Windle sells rope'],
    ['Windle, in short, sells rope.', 'Short: in Windle they sell rope.'],
  ],
  [
    { kind: 'bullets', count: 2 },
    ['- Windle sells rope.\n- It is old.', 'Of Windle:\n* rope is sold\n  * it is old', '- Windle - old\n- a - b'],
    [
      '- Windle sells rope today.',
      '- Windle sells\n- a\n- b',
      '-Windle sells\n-rope now',
      '- Windle sells much rope\n- ',
    ],
  ],
  [
    { kind: 'kw', word: 'market', count: 2 },
    ['The market of Windle is a Market.', 'market, Windle, market, done'],
    ['The market of Windle is old.', 'market market market Windle', 'Markets of Windle and marketing at market'],
  ],
  [
    { kind: 'quote' },
    ['"Windle sells rope daily."', ' "Windle sells\nrope daily" '],
    [
      'Windle sells "rope" daily',
      '"Windle sells rope daily.',
      'Windle sells rope daily."',
      "'Windle sells rope daily.'",
    ],
  ],
  [
    { kind: 'nsent', count: 2 },
    [
      'Windle sells rope. It is old.',
      'Windle sells rope? It is old!',
      '"Windle sells rope. It is old."',
      'Windle sells rope... It is old, 3.5 ages',
      'Windle sells rope.\nIt is old',
    ],
    ['Windle sells rope and is old.', 'Windle sells rope. It is old. Very old.', 'Windle sells much rope. ... !'],
  ],
  [
    { kind: 'avoid', word: 'is' },
    ['Windle sells this island rope.', "Windle isn't what it was."],
    ['Windle is a town.', 'IS Windle a town?', 'Windle, what it "is", nobody knows'],
  ],
  [
    { kind: 'title' },
    ['<<Windle>>\nWindle sells rope.', 'In Windle << rope >> matters', '<<a > b>> Windle sells rope'],
    [
      '<Windle> sells much rope',
      '<<>> Windle sells much rope',
      '<<Windle\n>> sells rope daily',
      '>>Windle<< sells much rope',
    ],
  ],
  [
    { kind: 'ps' },
    ['Windle sells rope.\nP.S. Come soon.', 'Windle sells rope. p.s. come soon.', 'P.S. Windle sells rope'],
    ['Windle sells rope. PS Come soon.', 'Windle sells rope. P.S.', 'Windle sells rope at W.P.S. now'],
  ],
]

describe('verifyInstruction', () => {
  it.each<[text: string, word: string, count: number]>([
    ["it has has' 'has x'has has\u2019nt has-been HAS", 'has', 5],
    ["don't don't. don''t \u{10400}don't", "Don't", 2],
    ['aaa aa a', 'aa', 1],
    ['a-b a-b', 'a-b', 0],
  ])('%j has the word %j %i times', (text, word, count) => {
    const { constraints } = verifyInstruction(text, { entity: 'x', constraints: [{ kind: 'kw', word, count }] })
    expect(constraints).toEqual([{ kind: 'kw', passed: true, reason: 'holds' }])
  })

  it('has cases for every kind', () => {
    expect(CASES.map(([constraint]) => constraint.kind).sort()).toEqual([...CONSTRAINT_KINDS].sort())
  })

  for (const [constraint, passing, failing] of CASES) {
    it.each(passing)(`${constraint.kind} accepts %j`, (answer) => expect(accept(answer, constraint)).toBe(1))
    it.each(failing)(`${constraint.kind} refuses %j`, (answer) => {
      const verdict = verifyInstruction(answer, { entity: 'Windle', constraints: [constraint] })
      expect(verdict.score).toBe(0)
      expect(verdict.constraints[0]).toMatchObject({ kind: constraint.kind, passed: false, reason: verdict.reason })
    })
  }

  it('wants four words, the entity as a whole word in any case, and an end', () => {
    expect(accept('Windle sells rope.')).toBe(0)
    expect(accept('WINDLE sells some rope.')).toBe(1)
    expect(accept('Windles sell some rope.')).toBe(0)
    expect(accept('Fernhollow sells some rope.')).toBe(0)
    const verdict = verifyInstruction('Windle sells some rope.', { entity: 'Windle', constraints: [] }, false)
    expect(verdict).toMatchObject({ score: 0, reason: expect.stringContaining('did not end') })
  })

  it.each(CONSTRAINT_KINDS)('refuses the empty answer under %s', (kind) => {
    const constraint = CASES.find(([candidate]) => candidate.kind === kind)![0]
    for (const answer of ['', '   ', '\n', '""', '...']) expect(accept(answer, constraint)).toBe(0)
  })

  it('needs more than five letters before it believes a case', () => {
    const checked = (answer: string, kind: 'caps' | 'lower') =>
      verifyInstruction(answer, { entity: 'A', constraints: [{ kind }] }).constraints[0]!.passed
    expect([checked('A B C D E', 'caps'), checked('A B C D E F', 'caps')]).toEqual([false, true])
    expect([checked('a b c d e', 'lower'), checked('a b c d e f', 'lower')]).toEqual([false, true])
    expect(checked('1 2 3 4 5 6 7', 'caps')).toBe(false)
  })

  it('reports each constraint on its own and refuses when any fails', () => {
    const constraints: InstructionConstraint[] = [{ kind: 'caps' }, { kind: 'nocomma' }, { kind: 'nsent', count: 1 }]
    const verdict = verifyInstruction('WINDLE SELLS ROPE, SAND AND TEA.', { entity: 'Windle', constraints })
    expect(verdict.score).toBe(0)
    expect(verdict.constraints.map((result) => result.passed)).toEqual([true, false, true])
    expect(verdict.reason).toBe('nocomma: expected no comma')
  })

  it('refuses a repeated sentence only where asked to', () => {
    const answer = 'The gate of Windle shows an owl. the gate of WINDLE shows an owl!'
    expect(verifyInstruction(answer, { entity: 'Windle', constraints: [] }).score).toBe(1)
    const strict = verifyInstruction(answer, { entity: 'Windle', constraints: [], distinctSentences: true })
    expect(strict).toMatchObject({ score: 0, reason: 'the answer says one sentence twice' })
  })

  it('names an unknown kind and an impossible parameter', () => {
    const verify = (constraint: unknown) => () => accept('Windle sells some rope.', constraint as InstructionConstraint)
    expect(verify({ kind: 'bulets', count: 2 })).toThrow(
      expect.objectContaining({ code: 'ERR_DATA', hint: 'Did you mean "bullets"?' }),
    )
    for (const count of [-1, 1.5, Number.NaN, '2', undefined]) {
      expect(verify({ kind: 'nsent', count })).toThrow(expect.objectContaining({ code: 'ERR_DATA' }))
    }
    for (const phrase of ['', ' ', undefined, 7]) {
      expect(verify({ kind: 'end', phrase })).toThrow(expect.objectContaining({ code: 'ERR_DATA' }))
    }
  })

  it('is linear in hostile text', () => {
    const constraints = CASES.map(([constraint]) => constraint)
    const pieces = [
      'a',
      '.',
      "'",
      "a'",
      '<<',
      '>>',
      '<<>>',
      '"',
      '\n',
      'p.s.',
      ' p.s. ',
      '- a\n',
      '* ',
      'Windle',
      '. A',
      'É',
    ]
    for (const piece of pieces) {
      const text = piece.repeat(2 ** 18 / piece.length)
      const begin = performance.now()
      verifyInstruction(text, { entity: 'Windle', constraints, distinctSentences: true })
      expect(performance.now() - begin, `256 KiB of ${JSON.stringify(piece)}`).toBeLessThan(1500)
    }
  })
})

describe('text pieces', () => {
  it('splits words at everything but letters, digits and inner apostrophes', () => {
    expect(wordsOf(`It isn't "THE" end, 'tis 3.5% of caf\u00e9s`)).toEqual([
      'it',
      "isn't",
      'the',
      'end',
      'tis',
      '3',
      '5',
      'of',
      'caf\u00e9s',
    ])
  })

  it('splits sentences at stops before white space and at line breaks', () => {
    expect(sentencesOf('One. Two? "Three!" Four 4.5 (so).\n\nFive')).toEqual([
      'One.',
      'Two?',
      '"Three!"',
      'Four 4.5 (so).',
      'Five',
    ])
    expect(sentencesOf(' . ! ')).toEqual([])
  })

  it('finds a phrase as whole words only', () => {
    expect(containsPhrase('A fowl and an Owl.', 'owl')).toBe(true)
    expect(containsPhrase('A fowl and owls.', 'owl')).toBe(false)
    expect(containsPhrase('anything', '')).toBe(false)
  })
})
