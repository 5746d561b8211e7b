"""The report's own style, beside what every page shares (vesselgan.viz.html_page)."""

RULES = """
h2 { font-size: 1.45rem; margin: 52px 0 10px; padding-top: 18px; border-top: 1px solid var(--rule); }
h3 { font-size: 1.08rem; margin: 30px 0 8px; }
.lead { color: var(--soft); }
.note { font-size: 0.86rem; }
.chips { display: flex; flex-wrap: wrap; gap: 8px; margin: 16px 0 0; padding: 0; list-style: none; }
.chips li { background: var(--card); border: 1px solid var(--rule); border-radius: 999px; padding: 3px 13px;
  font-size: 0.88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; width: 100%;
  margin: 12px 0 6px; }
caption { text-align: left; padding-bottom: 8px; font-size: 0.92rem; color: var(--soft); }
caption b, figcaption b { color: var(--ink); }
nav { margin: 22px 0 0; font-size: 0.92rem; }
nav ol { columns: 2; column-gap: 32px; margin: 0; padding: 12px 0 12px 20px; border-top: 1px solid var(--rule);
  border-bottom: 1px solid var(--rule); }
nav a { color: inherit; text-decoration-color: var(--rule); text-underline-offset: 3px; }
thead th { font-weight: 600; text-align: right; padding: 5px 10px; vertical-align: bottom; white-space: nowrap; }
table.wide thead th { white-space: normal; min-width: 6em; padding: 5px 6px; } table.wide td { padding: 8px 6px; }
thead tr:first-child th { border-top: 2px solid var(--ink); }
thead tr th:first-child { text-align: left; padding-left: 0; }
thead tr:first-child th[colspan] { text-align: center; border-bottom: 1px solid var(--rule); }
thead tr:last-child th { border-bottom: 1px solid var(--ink); }
tbody th { text-align: left; font-weight: 600; padding: 8px 14px 8px 0; vertical-align: top;
  min-width: 9em; max-width: 17em; }
tbody th small { font-weight: 400; white-space: nowrap; }
td { text-align: right; padding: 8px 10px; vertical-align: top; white-space: nowrap; }
tbody tr { border-bottom: 1px solid var(--rule); }
tbody tr:last-child { border-bottom: 2px solid var(--ink); }
td small, tbody th small { display: block; font-size: 0.8rem; line-height: 1.5; }
td.edge, th.edge { border-left: 1px solid var(--rule); }
tr.paper { background: var(--faint); }
tr.paper th { padding-left: 10px; }
table.plain { width: auto; } table.plain tbody th { max-width: none; white-space: nowrap; padding-right: 28px; }
table.plain td, table.plain th { text-align: left; padding: 5px 22px 5px 0; white-space: normal; }
table.plain caption { width: max-content; max-width: min(100%, 76ch); } table.prose caption { width: auto; }
table.provenance td { overflow-wrap: anywhere; color: var(--soft); }
table.provenance { font-size: 0.84rem; }
table.provenance td:last-child { width: 34%; }
table.plain thead tr:first-child th { text-align: left; border-bottom: 1px solid var(--ink); }
table.plain .number { text-align: right; white-space: nowrap; }
.notrun { color: var(--idle); font-style: italic; }
.verdict { display: inline-block; min-width: 4.6em; text-align: center; border-radius: 999px; padding: 0 10px;
  font-size: 0.84rem; font-weight: 650; white-space: nowrap; }
.verdict.pass { color: var(--good); background: var(--good-bg); }
.verdict.fail { color: var(--bad); background: var(--bad-bg); }
.verdict.idle { color: var(--idle); background: var(--idle-bg); }
figure { margin: 20px 0 8px; }
figcaption { font-size: 0.92rem; color: var(--soft); margin-top: 10px; max-width: 88ch; }
.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 22px; }
.panel { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; }
.panel { min-width: 0; }
.cards .panel { padding: 10px; } .cards .pair { gap: 5px; } .distances { margin-top: 16px; align-items: center; }
.panel > h4 { margin: 0 0 10px; font-size: 0.95rem; font-weight: 650; }
.cells { display: grid; gap: 10px 8px; }
.four { grid-template-columns: repeat(4, minmax(0, 1fr)); }
.cards { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 14px; }
.pair { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.cells img { display: block; width: 100%; height: auto; border-radius: 5px; background: #0d1017; }
.cells .text { font-size: 0.78rem; line-height: 1.35; color: var(--soft); overflow-wrap: anywhere; margin-top: 4px; }
.cells .text b { color: var(--ink); font-weight: 600; }
.stack { display: flex; flex-direction: column; gap: 4px; min-width: 0; }
.chart svg { width: 100%; height: auto; display: block; }
.chart text { font-size: 12px; fill: var(--soft); }
.chart text.name, .chart text.label { fill: var(--ink); font-size: 12.5px; }
.chart text.label { paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.chart text.notrun { fill: var(--idle); }
.chart .grid { stroke: var(--rule); stroke-width: 1; }
.chart .axis { stroke: var(--soft); stroke-width: 1.2; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.faint { stroke-width: 1; opacity: 0.32; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.line.s3 { stroke: var(--s3); } .line.s4 { stroke: var(--s4); } .line.s5 { stroke: var(--s5); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 0.86rem; margin: 0 0 4px 10px; }
.key { display: inline-flex; align-items: center; gap: 7px; }
.swatch { width: 20px; height: 3px; border-radius: 2px; display: inline-block; }
.swatch.s0 { background: var(--s0); } .swatch.s1 { background: var(--s1); } .swatch.s2 { background: var(--s2); }
.swatch.s3 { background: var(--s3); } .swatch.s4 { background: var(--s4); } .swatch.s5 { background: var(--s5); }
.dot { fill: var(--s0); fill-opacity: 0.62; }
.layer { fill: var(--s0); stroke: var(--s0); }
.arrow { stroke: var(--soft); stroke-width: 1.2; fill: none; }
.one { display: grid; gap: 16px; }
.small { display: grid; gap: 14px; } .small .panel { padding: 10px; }
.square { max-width: 520px; }
small.beside { color: var(--soft); font-style: italic; }
i.patch { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; }
i.tp { background: rgb(226 62 52); } i.fp { background: rgb(62 190 84); } i.fn { background: rgb(248 214 66); }
table.prose tbody th { white-space: normal; }
table.prose td { max-width: 26em; vertical-align: top; } table.prose { font-size: 0.88rem; }
.mean { stroke: var(--ink); stroke-width: 1.4; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.88em; }
@media screen and (max-width: 820px) {
  .two { grid-template-columns: minmax(0, 1fr); } .cards, .small { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  main, header, footer { padding-left: 16px; padding-right: 16px; }
}
"""
PRINT_RULES = """
  .square { max-width: 320px; } nav { display: none; } .small.four { grid-template-columns: repeat(2, 1fr);
    max-width: 440px; }
  h2 { margin-top: 22px; break-after: avoid; } h3 { margin-top: 16px; } h3, h3 + p { break-after: avoid; }
  figure, table, .panel { break-inside: avoid; }
  .scroll { overflow: visible; } td, thead th { padding: 4px 5px; } tbody th { padding-top: 4px; padding-bottom: 4px; }
"""
