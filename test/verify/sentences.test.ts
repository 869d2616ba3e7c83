// Sentences and words: expected values are those of NLTK 3.8 and of the published rule list, run once on these texts.
import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { looseReadings } from '../../lib/verify/ifeval.js'
import { detectLanguage, knownLanguages } from '../../lib/verify/language_detect.js'
import { countSentences, punktSentences } from '../../lib/verify/punkt_sentences.js'
import { parsePythonLiteral } from '../../lib/verify/python_literal.js'
import { ReadingMemo } from '../../lib/verify/reading_memo.js'
import { splitSentences } from '../../lib/verify/sentence_split.js'
import { tokenizeWords } from '../../lib/verify/word_tokenize.js'
import { listedSentences, treebankTokens } from './published_rules.js'

const LISTED: [text: string, sentences: string[]][] = [
  ['Hi there. How are you? Fine!', ['Hi there.', 'How are you?', 'Fine!']],
  ['Dr. Smith met Mrs. Jones in St. Louis.', ['Dr. Smith met Mrs. Jones in St. Louis.']],
  ['Visit example.com today. It costs 3.50 dollars.', ['Visit example.com today.', 'It costs 3.50 dollars.']],
  ['Wait... what? No.', ['Wait...', 'what?', 'No.']],
  ['He has a Ph.D. in art. She has none.', ['He has a Ph.D. in art.', 'She has none.']],
  ['The U.S. Navy came. The U.S. He left.', ['The U.S. Navy came.', 'The U.S.', 'He left.']],
  ['Acme Inc. grew. Acme Inc. He left.', ['Acme Inc. grew.', 'Acme Inc', 'He left.']],
  ['She said "Stop." Then left.', ['She said "Stop".', 'Then left.']],
  [
    'He asked \u201cWhy?\u201d and \u201cWho.\u201d Then left.',
    ['He asked \u201cWhy?', '\u201d and \u201cWho\u201d.', 'Then left.'],
  ],
  ['One\nTwo. Three', ['One Two.', 'Three']],
  ['', []],
  ['a.b.c. d.e. f.', ['a.b.c. d.e. f.']],
  ['J. R. Smith wrote it.', ['J. R. Smith wrote it.']],
]

const PUNKT: [text: string, sentences: string[]][] = [
  ['Dr. Smith came at 5 p.m. on Jan. 3. He left.', ['Dr. Smith came at 5 p.m. on Jan. 3.', 'He left.']],
  ['It ended at 5 p.m. The rest is known.', ['It ended at 5 p.m.', 'The rest is known.']],
  ['Very bad acting!!! I promise.', ['Very bad acting!!!', 'I promise.']],
  ['(Sent one.) Sent two.', ['(Sent one.)', 'Sent two.']],
  ['He said "Go." She went.', ['He said "Go."', 'She went.']],
  ['Well... maybe. Well... Maybe.', ['Well... maybe.', 'Well... Maybe.']],
  ['J. Bach wrote it. 1. first 2. Second', ['J. Bach wrote it.', '1. first 2.', 'Second']],
  ['It is 3.5 km away', ['It is 3.5 km away']],
  ['  Spaced.   Out.  ', ['  Spaced.', 'Out.']],
  ['no end', ['no end']],
  ['', []],
]

const WORDS: [text: string, words: string[]][] = [
  [
    "They'll save and can't stop, won't they?",
    ['They', "'ll", 'save', 'and', 'ca', "n't", 'stop', ',', 'wo', "n't", 'they', '?'],
  ],
  ['"Good muffins cost $3.88"', ['``', 'Good', 'muffins', 'cost', '$', '3.88', "''"]],
  ['I cannot; gonna go.', ['I', 'can', 'not', ';', 'gon', 'na', 'go', '.']],
  [
    "He said ``hi'' (again) -- or not...",
    ['He', 'said', '``', 'hi', "''", '(', 'again', ')', '--', 'or', 'not', '...'],
  ],
  [
    "It's 50% of [A] {B} <C> at 10:30, for 1,000.",
    ['It', "'s", '50', '%', 'of', '[', 'A', ']', '{', 'B', '}', '<', 'C', '>', 'at', '10:30', ',', 'for', '1,000', '.'],
  ],
  ["'Tis the dog's bone, isn't it.", ["'T", 'is', 'the', 'dog', "'s", 'bone', ',', 'is', "n't", 'it', '.']],
  ['x* and y** #tag @me', ['x', '*', 'and', 'y', '*', '*', '#', 'tag', '@', 'me']],
  ['Hello.")', ['Hello', '.', "''", ')']],
  [
    "don't DON'T d'ye gimme lemme wanna wannabe",
    ['do', "n't", 'DO', "N'T", 'd', "'ye", 'gim', 'me', 'lem', 'me', 'wan', 'na', 'wannabe'],
  ],
  ['a:b, c:1', ['a', ':', 'b', ',', 'c:1']],
]

describe('sentences', () => {
  it.each(LISTED)('by the published rules: %j', (text, sentences) => expect(splitSentences(text)).toEqual(sentences))
  it.each(PUNKT)('by Punkt: %j', (text, sentences) => {
    expect(punktSentences(text).map((sentence) => sentence.text)).toEqual(sentences)
    expect(countSentences(text)).toBe(sentences.length)
  })
})

describe('words', () => {
  it.each(WORDS)('of %j', (text, words) => expect(tokenizeWords(text)).toEqual(words))
})

/** What some rule looks for, and what keeps it from matching. */
const PIECES = [
  ...'\'"`.,:;-?!()[]{}<>*  \n\t1asStdDnNmM&_',
  ...["''", '``', '--', '...', "n't", "N'T", "'ll", "'RE", "'s", "d'ye", "more'n", "'tis", " 'Twas", 'cannot', 'Gimme'],
  ...['wanna', 'gonna', 'lemme', 'gotta', 'word', 'Word', 'A.', 'U.S.', 'Mr.', 'Mrs.', 'He ', 'Mr ', ' Inc. ', 'Co.'],
  ...[
    '3.5',
    '.com',
    'a.b.',
    'Ph.D.',
    ' J. ',
    '\tx. ',
    '."',
    '.\u201d',
    '!"',
    '.)',
    '. ',
    '.\n',
    'p.m.',
    'The ',
    ' he ',
  ],
  ...['\u201c', '\u201d', '\u2018', '\u2019', '\u00ab', '\u00bb', '\u017f', '\u00a0', '\u{1d400}', '\u00e9', '\u0661'],
]

function* randomTexts(count: number): Generator<string> {
  const random = new Random(20)
  for (let i = 0; i < count; i++) {
    const some = i % 3 === 0 ? PIECES : Array.from({ length: 4 }, () => random.choice(PIECES))
    yield Array.from({ length: random.integer(1, 16) }, () => random.choice(some)).join('')
  }
}

/** The first of many texts for which two lists differ, with both; a call of `expect` for each would take seconds. */
function firstDifference(texts: Iterable<string>, lists: (text: string) => [found: unknown[], wanted: unknown[]]) {
  for (const text of texts) {
    const [found, wanted] = lists(text)
    if (JSON.stringify(found) !== JSON.stringify(wanted)) return { text, found, wanted }
  }
  return undefined
}

describe('scans in place of patterns', () => {
  it('find the words that the published patterns find', () => {
    const wantedOf = (text: string) => punktSentences(text).flatMap((sentence) => treebankTokens(sentence.text))
    const lists = (text: string): [unknown[], unknown[]] => [tokenizeWords(text), wantedOf(text)]
    expect(firstDifference(randomTexts(8000), lists)).toBeUndefined()
  })

  it('find the sentences that the published patterns find', () => {
    const lists = (text: string): [unknown[], unknown[]] => [splitSentences(text), listedSentences(text)]
    expect(firstDifference(randomTexts(8000), lists)).toBeUndefined()
  })

  it('find in a reading what they find without the readings before', () => {
    let partCount = 0
    const lists = (text: string): [unknown[], unknown[]] => {
      const [memo, readings] = [new ReadingMemo(), looseReadings(text)]
      const found = readings.map((one) => [
        splitSentences(one, memo),
        countSentences(one, memo),
        tokenizeWords(one, memo),
      ])
      partCount += readings.length - memo.splitTexts.length
      return [found, readings.map((one) => [splitSentences(one), countSentences(one), tokenizeWords(one)])]
    }
    // Where a text begins matters to Punkt, and to the other one what came before it.
    const odd = [
      "\n?)word''. . .",
      '\n?). x',
      'x Co.\nHe Inc. It is',
      'x\nA.B.\nHe is',
      'x\na.b.A.B.\nHe',
      'x.\n) y. z\n',
    ]
    expect(firstDifference([...odd, ...randomTexts(3000)], lists)).toBeUndefined()
    expect(partCount).toBeGreaterThan(500)
  })
})

describe('the language of a text', () => {
  it.each([
    ['en', 'The quick brown fox jumps over the lazy dog.'],
    ['de', 'Der schnelle braune Fuchs springt über den faulen Hund.'],
    ['fr', 'Le renard brun et rapide saute par-dessus le chien paresseux.'],
    ['sw', 'Mbweha mwepesi wa kahawia anaruka juu ya mbwa mvivu.'],
    ['vi', 'Con cáo nâu nhanh nhẹn nhảy qua con chó lười biếng.'],
    ['ru', 'Быстрая коричневая лиса перепрыгивает через ленивую собаку.'],
    ['hi', 'तेज भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।'],
    ['ne', 'छिटो खैरो फ्याउरो अल्छी कुकुरमाथि उफ्रन्छ र भाग्छ।'],
    ['ja', 'すばしっこい茶色の狐はのろまな犬を飛び越える。'],
    ['zh-cn', '敏捷的棕色狐狸跳过了懒狗。这是一个简单的句子。'],
    ['ko', '날쌘 갈색 여우가 게으른 개를 뛰어넘는다.'],
    ['ar', 'الثعلب البني السريع يقفز فوق الكلب الكسول.'],
  ])('%s: %s', (code, text) => expect(detectLanguage(text)).toBe(code))

  it('is unknown without letters', () => {
    for (const text of ['', ' 123 !?', '\u{1f600}\ud800']) expect(detectLanguage(text)).toBeUndefined()
    expect(knownLanguages()).toHaveLength(55)
  })

  it('is not changed by addresses', () => {
    expect(detectLanguage('Siehe https://example.com/the-best-of-the-web-in-english für mehr')).toBe('de')
  })
})

describe('Python literals', () => {
  it('are read', () => {
    expect(parsePythonLiteral(`{'a': [1, -2.5, None, True], "b": ('x\\'y', "\\u00e9"), 'c': {}, }`)).toEqual({
      a: [1, -2.5, null, true],
      b: ["x'y", 'é'],
      c: {},
    })
  })
  it.each(['', '[', '{1: 2}', 'f()', "'a", '[1 2]', '1 2', '['.repeat(100)])('%j is none', (text) => {
    expect(() => parsePythonLiteral(text)).toThrow(SyntaxError)
  })
})
