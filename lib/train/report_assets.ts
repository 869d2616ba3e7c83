// Style and script of report.html. Both go into the page; the script is the only one that the page's own content
// security policy lets run, so text of a model cannot become code.

export const reportStyle = `
:root { color-scheme: light dark; --bg: #fdfdfc; --fg: #1c1e21; --soft: #6a6f76; --line: #e3e4e2; --card: #f6f6f4;
  --s0: #2563a8; --s1: #d97706; --s2: #15803d; --bad: #b91c1c; --good: #15803d; }
@media (prefers-color-scheme: dark) { :root { --bg: #16181b; --fg: #e4e5e7; --soft: #989ea6; --line: #2c3035;
  --card: #1d2024; --s0: #6aa9e9; --s1: #f0a040; --s2: #5fc27e; --bad: #f28b82; --good: #6fcf8e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 32px 24px 64px; background: var(--bg); color: var(--fg);
  font: 15px/1.55 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 44px 0 4px; } h3 { font-size: 15px;
  margin: 24px 0 8px; }
p { margin: 0 0 12px; } .soft, .facts, figcaption output, .legend { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 16px;
  margin: 16px 0; }
.plot { margin: 0; padding: 12px 14px 8px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
figcaption { display: flex; gap: 12px; font-weight: 600; font-size: 14px; min-height: 22px; }
figcaption label { font-weight: 400; color: var(--soft); } figcaption input { margin: 0 2px 0 0;
  vertical-align: -1px; }
figcaption output { margin-left: auto; font-weight: 400; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; } svg.log { display: none; }
.plot:has(input:checked) svg.log { display: block; } .plot:has(input:checked) svg.linear { display: none; }
.grid { stroke: var(--line); } .tick { fill: var(--soft); font-size: 11px; } .cursor { stroke: var(--soft);
  stroke-dasharray: 3 3; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .faint { opacity: .35; stroke-width: 1; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); }
.legend { margin: 4px 0 0; font-size: 12px; } .legend span { margin-right: 16px; }
.legend span::before { content: ""; display: inline-block; width: 14px; height: 3px; margin-right: 6px;
  vertical-align: 3px; }
.legend .s0::before { background: var(--s0); } .legend .s1::before { background: var(--s1); }
.legend .s2::before { background: var(--s2); }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
td, th { padding: 3px 18px 3px 0; text-align: left; vertical-align: top; } th { color: var(--soft);
  font-weight: 500; }
td.number, th.number { text-align: right; } .pass { color: var(--good); font-weight: 600; } .fail { color: var(--bad);
  font-weight: 600; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--soft); }
.flag { font-weight: 600; } code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px; }
.sample { margin: 12px 0; padding: 12px 14px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
.sample pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; } .sample .prompt { margin-bottom: 10px;
  font-weight: 600; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 14px; }
.answers.many { grid-template-columns: repeat(auto-fit, minmax(min(100%, 200px), 1fr)); }
.answers h4 { margin: 0 0 2px; font-size: 12px; font-weight: 500; color: var(--soft); }
`

/** Shows the step and the values of all lines nearest to the pointer. */
export const reportScript = `
'use strict'
for (const figure of document.querySelectorAll('.plot')) {
  const series = JSON.parse(figure.dataset.series)
  const output = figure.querySelector('output')
  const [left, right] = [Number(figure.dataset.left), Number(figure.dataset.right)]
  for (const svg of figure.querySelectorAll('svg')) {
    const [x0, x1] = [Number(svg.dataset.x0), Number(svg.dataset.x1)]
    const width = svg.viewBox.baseVal.width
    const cursor = svg.querySelector('.cursor')
    svg.addEventListener('pointermove', (event) => {
      const box = svg.getBoundingClientRect()
      const at = ((event.clientX - box.left) / box.width) * width
      const wanted = x0 + ((at - left) / (width - left - right)) * (x1 - x0)
      const nearest = series.map(({ points }) =>
        points.reduce((a, b) => (Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a)))
      const step = nearest[0][0]
      const x = left + ((step - x0) / (x1 - x0)) * (width - left - right)
      cursor.setAttribute('x1', x)
      cursor.setAttribute('x2', x)
      cursor.setAttribute('visibility', 'visible')
      const values = series.map(({ name }, i) => name + ' ' + Number(nearest[i][1].toPrecision(4)))
      output.textContent = 'step ' + step.toLocaleString('en-US') + ': ' + values.join(', ')
    })
    svg.addEventListener('pointerleave', () => {
      cursor.setAttribute('visibility', 'hidden')
      output.textContent = ''
    })
  }
}
`
