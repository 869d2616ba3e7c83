import { describe, expect, it } from 'vitest'
import { Random } from '../../lib/base/random.js'
import { ChatTemplate } from '../../lib/text/chat_template.js'
import { builtInTemplates, type ChatMessage } from '../../lib/text/tulu_template.js'

const tokens = { bosToken: '<s>', eosToken: '</s>' }
const conversation: ChatMessage[] = [
  { role: 'user', content: 'Hi' },
  { role: 'assistant', content: 'Hello' },
]

describe('built-in templates', () => {
  it('are the published Tulu text', () => {
    // The worked example of the Tulu 3 format, two turns.
    const messages = [...conversation, { role: 'user', content: 'Bye' }, { role: 'assistant', content: 'See you' }]
    const { text, spans } = builtInTemplates.get('tulu')!.render(messages, { bosToken: '', eosToken: '⏹' }, false)
    expect(text).toBe('<|user|>\nHi\n<|assistant|>\nHello⏹\n<|user|>\nBye\n<|assistant|>\nSee you⏹')
    expect(spans!.map(([from, to]) => text.slice(from, to))).toEqual(['Hello⏹', 'See you⏹'])
  })

  it.each([...builtInTemplates.keys()])('%s renders as its Jinja source does', async (name) => {
    const builtIn = builtInTemplates.get(name)!
    const interpreted = new ChatTemplate(`${builtIn.source}{# interpreted #}`, { tokens })
    const compiled = new ChatTemplate(builtIn.source, { tokens })
    const random = new Random(5)
    const words = ['Hi', '', ' spaces ', 'a\nb\n', '<|assistant|>\n', '{{ x }}', '😀', "it's"]
    const roles = name === 'pocket' ? ['user', 'assistant'] : ['system', 'user', 'assistant', 'tool']
    const conversations = Array.from({ length: 200 }, () => {
      return Array.from({ length: random.integer(0, 6) }, () => {
        return { role: random.choice(roles), content: random.choice(words) }
      })
    })
    for (const addGenerationPrompt of [false, true]) {
      const wanted = await interpreted.renderBatch(conversations, { addGenerationPrompt })
      const got = await compiled.renderBatch(conversations, { addGenerationPrompt })
      expect(got.map(({ text }) => text)).toEqual(wanted.map(({ text }) => text))
      if (interpreted.givesSpans) expect(got).toEqual(wanted)
    }
  })
})

describe('roles that a template has no form for', () => {
  const withSystem = [{ role: 'system', content: 'Be kind.' }, ...conversation]

  it('print nothing in the Tulu format', async () => {
    const { text } = await new ChatTemplate('tulu').render([{ role: 'tool', content: 'x' }, ...conversation])
    expect(text).toBe('<|user|>\nHi\n<|assistant|>\nHello')
  })

  it.each([
    ['built in', ''],
    ['interpreted', '{# #}'],
  ])('are an error in the pocket format, %s', async (_kind, suffix) => {
    const template = new ChatTemplate(builtInTemplates.get('pocket')!.source + suffix)
    await expect(template.renderBatch([conversation, withSystem])).rejects.toMatchObject({
      code: 'ERR_TEMPLATE',
      details: { row: 1 },
    })
  })
})

describe('Jinja as transformers runs it', () => {
  const render = async (source: string, variables?: Record<string, unknown>) =>
    (await new ChatTemplate(source, { tokens }).render(conversation, { variables })).text

  it('trims blocks, and strips the indent before them', async () => {
    expect(await render('a\n  {% if true %}\n  b\n  {% endif %}\nc\n')).toBe('a\n  b\nc')
  })

  it('has the variables and functions of chat templates', async () => {
    expect(await render('{{ bos_token }}{{ messages[1].content }}{{ eos_token }}')).toBe('<s>Hello</s>')
    expect(await render('{{ tools | tojson }}', { tools: [{ name: 'f', n: 1 }] })).toBe('[{"name": "f", "n": 1}]')
    expect(await render('{{ strftime_now("%Y") }}')).toBe(String(new Date().getFullYear()))
    expect(await render('{% for i in range(1, 6, 2) %}{{ i }}{% endfor %}')).toBe('135')
    expect(
      await render(
        '{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}',
      ),
    ).toBe('2')
  })

  it('names what the template raises, and the row', async () => {
    const source = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}ok"
    const template = new ChatTemplate(source)
    await expect(template.renderBatch([conversation, [conversation[1]!]])).rejects.toMatchObject({
      code: 'ERR_TEMPLATE',
      message: 'chat template (conversation 1 of 2): it raised: user first',
      details: { row: 1 },
    })
    expect(await template.renderPossible([conversation, [conversation[1]!], conversation])).toEqual([
      'ok',
      undefined,
      'ok',
    ])
  })

  it.each([
    '{% if %}',
    '{{',
    '{% for x in %}',
    '{% endfor %}',
    '{{ "abc }}',
    '{{ x | nofilter }}',
    '{{ nofunction() }}',
  ])('refuses %j', async (source) => {
    await expect(render(source)).rejects.toMatchObject({ code: 'ERR_TEMPLATE' })
  })

  it('refuses messages and variables that are not plain data', async () => {
    const template = new ChatTemplate('x')
    const odd = [{ role: 'user', content: 5 }] as unknown as ChatMessage[]
    await expect(template.render(odd)).rejects.toMatchObject({ code: 'ERR_DATA', details: { row: 0, message: 0 } })
    await expect(template.render(conversation, { variables: { f: () => 1 } })).rejects.toMatchObject({
      code: 'ERR_TEMPLATE',
    })
    expect((await template.render(conversation)).text).toBe('x')
  })
})

describe('generation blocks', () => {
  const spansOf = async (source: string) => {
    const { text, spans } = await new ChatTemplate(source).render(conversation)
    return { text, trained: spans?.map(([from, to]) => text.slice(from, to)) }
  }

  it('give the characters between the tags', async () => {
    const source = '{% for m in messages %}[{% generation %}{{ m.content }}.{% endgeneration %}]{% endfor %}'
    expect(await spansOf(source)).toEqual({ text: '[Hi.][Hello.]', trained: ['Hi.', 'Hello.'] })
  })

  it('keep whitespace as statements do', async () => {
    const plain = 'a\n  {% generation %}\nb\n  {%- endgeneration -%}\n c'
    expect(await spansOf(plain)).toEqual({ text: 'a\nbc', trained: ['b'] })
    expect(await spansOf('a \n{%- generation -%}\n b {% endgeneration %}c')).toEqual({ text: 'ab c', trained: ['b '] })
  })

  it('are not looked for in comments and raw blocks', async () => {
    const source = 'x{# {% generation %} #}'
    expect(new ChatTemplate(source).givesSpans).toBe(false)
    expect((await new ChatTemplate(source).render(conversation)).text).toBe('x')
  })

  it('give no spans where a mark changes the text or is not closed', async () => {
    const filtered = '{% set x %}{% generation %} y {% endgeneration %}{% endset %}{{ x | trim }}'
    expect(await spansOf(filtered)).toEqual({ text: 'y', trained: undefined })
    expect(await spansOf('{% if true %}{% generation %}a{% endif %}')).toEqual({ text: 'a', trained: undefined })
  })
})

const deep = (text: string, count: number) => text.repeat(count)

/** Templates that try to leave the interpreter. Each must print nothing of the host, or be refused. */
const escapes = [
  '{{ messages.constructor }}',
  '{{ messages.constructor.constructor("return process")() }}',
  '{{ "".constructor }}',
  '{{ ""["constructor"]["constructor"]("return process")() }}',
  '{{ ({}).__proto__ }}',
  '{{ {}["__proto__"]["polluted"] }}',
  '{% set ns = namespace() %}{% set ns.__proto__ = {"polluted": 1} %}{{ ns.polluted }}',
  '{{ messages.__class__.__mro__ }}',
  '{{ messages | attr("constructor") }}',
  '{{ range.constructor("return process")() }}',
  '{{ raise_exception.constructor("return 1")() }}',
  '{{ strftime_now.call.constructor("return process")() }}',
  '{{ process }}',
  '{{ globalThis }}',
  '{{ require("fs") }}',
  '{{ import("fs") }}',
  '{{ self }}',
  '{{ this }}',
  '{{ self.__init__.__globals__ }}',
  '{{ cycler.__init__.__globals__.os }}',
  '{{ "%s" | format(process) }}',
  '{{ messages[0].toString.constructor }}',
  '{{ messages[0].hasOwnProperty }}',
  '{% include "/etc/passwd" %}',
  '{% import "/etc/passwd" as x %}{{ x }}',
  '{% extends "/etc/passwd" %}',
]

describe('hostile templates', () => {
  it.each(escapes)('%j reaches nothing', async (source) => {
    const budget = { timeMs: 500 }
    const outcome = await new ChatTemplate(source, { budget }).render(conversation).then(
      ({ text }) => text,
      (error: { code: string }) => error.code,
    )
    expect(outcome === 'ERR_TEMPLATE' || /^(undefined|null|none|None)?$/.test(outcome), outcome).toBe(true)
    expect(({} as Record<string, unknown>).polluted).toBeUndefined()
  })

  const bombs: [string, string][] = [
    ['a long range', '{% set x = range(200000000) %}'],
    [
      'nested loops',
      '{% for i in range(3000) %}{% for j in range(3000) %}{% for k in range(3000) %}{% endfor %}{% endfor %}{% endfor %}',
    ],
    [
      'doubling text',
      `{% set ns = namespace(x="aaaaaaaa") %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}`,
    ],
    [
      'doubling arrays',
      '{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}',
    ],
    [
      'much output',
      '{% for i in range(100000) %}{{ "0123456789" }}0123456789012345678901234567890123456789012345678901234567890123456789{% endfor %}',
    ],
    ['macro recursion', '{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}'],
    ['deep parentheses', `{{ ${deep('(', 20_000)}1${deep(')', 20_000)} }}`],
    ['deep blocks', `${deep('{% if true %}', 20_000)}${deep('{% endif %}', 20_000)}`],
    ['deep filters', `{{ "a"${deep(' | upper', 100_000)} }}`],
    ['huge sort', '{% for i in range(100000) %}{% for x in range(100000) | sort | list %}{% endfor %}{% endfor %}'],
    ['replace growth', `{{ "a"${deep(' | replace("a", "aaaaaaaaaa")', 40)} }}`],
    ['join growth', `{{ range(100000) | join("${'x'.repeat(4096)}") }}`],
  ]

  it.each(bombs)('%s ends in a typed error, and the next template renders', async (_name, source) => {
    const template = new ChatTemplate(source, { budget: { timeMs: 200, outputUnits: 1_000_000 } })
    const failure = await template.render(conversation).then(
      ({ text }) => `rendered ${text.length}`,
      (error: { code: string }) => error.code,
    )
    expect(failure).toBe('ERR_TEMPLATE_BUDGET')
    expect((await new ChatTemplate('{{ bos_token }}ok').render(conversation)).text).toBe('ok')
  })

  it('renders many conversations that take longer together than one budget', async () => {
    const slow = '{% for i in range(30) %}{% for j in range(30) %}{% endfor %}{% endfor %}x'
    const timeMs = 400
    const template = new ChatTemplate(slow, { budget: { timeMs } })
    for (let rows = 50, elapsed = 0; elapsed < 1.2 * timeMs; rows *= 2) {
      const started = performance.now()
      const rendered = await template.renderBatch(Array.from({ length: rows }, () => conversation))
      elapsed = performance.now() - started
      expect(rendered.every(({ text }) => text === 'x')).toBe(true)
    }
  })
})
