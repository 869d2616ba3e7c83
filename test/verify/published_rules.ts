// The rules for words and sentences as they are published: lists of patterns, each of which writes the text anew. Slow,
// and the measure of the scans in lib/verify.

const SPACE = '[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]'
const SPACES = new RegExp(`${SPACE}+`, 'u')
const W = '[\\p{L}\\p{N}_]'

/** NLTK's `NLTKWordTokenizer.tokenize` (3.8) of one sentence. */
const TREEBANK: readonly [RegExp, string][] = [
  [/([\u00ab\u201c\u2018\u201e]|`+)/gu, ' $1 '],
  [/^"/gu, '``'],
  [/(``)/gu, ' $1 '],
  [/([ ([{<])("|'{2})/gu, '$1 `` '],
  [new RegExp(`(')(?!(?:re|ve|ll|[mtsdn])(?!${W}))(${W})(?!${W})`, 'giu'), '$1 $2'],
  [new RegExp(`([^.])(\\.)([\\]})>"'\u00bb\u201d\u2019 ]*)${SPACE}*$`, 'u'), '$1 $2 $3 '],
  [/([:,])([^\p{Nd}])/gu, ' $1 $2'],
  [/([:,])(?=\n?$)/gu, ' $1 '],
  [/\.{2,}/gu, ' $& '],
  [/[;@#$%&]/gu, ' $& '],
  [new RegExp(`([^.])(\\.)([\\]})>"']*)${SPACE}*$`, 'u'), '$1 $2 $3 '],
  [/[?!]/gu, ' $& '],
  [/([^'])' /gu, "$1 ' "],
  [/[*]/gu, ' $& '],
  [/[\][(){}<>]/gu, ' $& '],
  [/--/gu, ' -- '],
  [/^|$/gu, ' '],
  [/([\u00bb\u201d\u2019])/gu, ' $1 '],
  [/''/gu, " '' "],
  [/"/gu, " '' "],
  [/([^' ])('[sS]|'[mM]|'[dD]|') /gu, '$1 $2 '],
  [/([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) /gu, '$1 $2 '],
  [new RegExp(`(?<!${W})(can)(not)(?!${W})`, 'giu'), ' $1 $2 '],
  [new RegExp(`(?<!${W})(d)('ye)(?!${W})`, 'giu'), ' $1 $2 '],
  [new RegExp(`(?<!${W})(gim|lem)(me)(?!${W})`, 'giu'), ' $1 $2 '],
  [new RegExp(`(?<!${W})(gon)(na)(?!${W})`, 'giu'), ' $1 $2 '],
  [new RegExp(`(?<!${W})(got)(ta)(?!${W})`, 'giu'), ' $1 $2 '],
  [new RegExp(`(?<!${W})(more)('n)(?!${W})`, 'giu'), ' $1 $2 '],
  [new RegExp(`(?<!${W})(wan)(na)(?=${SPACE})`, 'giu'), ' $1 $2 '],
  [new RegExp(` ('t)(is|was)(?!${W})`, 'giu'), ' $1 $2 '],
]

export function treebankTokens(sentence: string): string[] {
  let text = sentence
  for (const [pattern, replacement] of TREEBANK) text = text.replace(pattern, replacement)
  return text.split(SPACES).filter((token) => token !== '')
}

const STARTERS =
  '(Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|He\\s|She\\s|It\\s|They\\s|Their\\s|Our\\s|We\\s|But\\s|However\\s|That\\s|This\\s|' +
  'Wherever)'

/** `split_into_sentences` of IFEvalG. */
const SENTENCES: readonly [RegExp, string | ((found: string) => string)][] = [
  [/\n/gu, ' '],
  [/(Mr|St|Mrs|Ms|Dr)[.]/gu, '$1<prd>'],
  [/[.](com|net|org|io|gov|edu|me)/gu, '<prd>$1'],
  [/([0-9])[.]([0-9])/gu, '$1<prd>$2'],
  [/\.{2,}/gu, (dots) => `${'<prd>'.repeat(dots.length)}<stop>`],
  [/Ph\.D\./gu, 'Ph<prd>D<prd>'],
  [/\s([A-Za-z])[.] /gu, ' $1<prd> '],
  [new RegExp(`([A-Z][.][A-Z][.](?:[A-Z][.])?) ${STARTERS}`, 'gu'), '$1<stop> $2'],
  [/([A-Za-z])[.]([A-Za-z])[.]([A-Za-z])[.]/gu, '$1<prd>$2<prd>$3<prd>'],
  [/([A-Za-z])[.]([A-Za-z])[.]/gu, '$1<prd>$2<prd>'],
  [new RegExp(` (Inc|Ltd|Jr|Sr|Co)[.] ${STARTERS}`, 'gu'), ' $1<stop> $2'],
  [/ (Inc|Ltd|Jr|Sr|Co)[.]/gu, ' $1<prd>'],
  [/ ([A-Za-z])[.]/gu, ' $1<prd>'],
  [/\.\u201d/gu, '\u201d.'],
  [/\."/gu, '".'],
  [/!"/gu, '"!'],
  [/\?"/gu, '"?'],
  [/[.?!]/gu, '$&<stop>'],
  [/<prd>/gu, '.'],
]

export function listedSentences(text: string): string[] {
  let marked = ` ${text}  `
  for (const [pattern, replacement] of SENTENCES) marked = marked.replace(pattern, replacement as string)
  const sentences = marked.split('<stop>').map((sentence) => sentence.trim())
  if (sentences.at(-1) === '') sentences.pop()
  return sentences
}
