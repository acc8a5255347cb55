"""The style sheet of the report: one column on a phone, light or dark as the reader's system is."""

from __future__ import annotations

STYLE = """
:root {
  --paper: #fbfaf7; --ink: #20262a; --soft: #667077; --line: #dcd9d2; --card: #fff; --accent: #0b6a72;
  --thin: #7fb0b4; --warm: #b4531d; --note: #fbf0e2
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181a; --ink: #e2e6e7; --soft: #96a1a6; --line: #30383c; --card: #1b2124; --accent: #59c2c9;
    --thin: #3d7c81; --warm: #e79a62; --note: #2c241b
  }
}
* { box-sizing: border-box }
body {
  margin: 0 auto; max-width: 1080px; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif
}
h1 { font-size: 1.6rem; margin: 0 0 .75rem; overflow-wrap: anywhere }
h2 {
  font-size: 1.2rem; margin: 2.75rem 0 .25rem; padding-top: .75rem; border-top: 1px solid var(--line);
  overflow-wrap: anywhere
}
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0 }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
.caption { color: var(--soft); margin: 0 0 .75rem; font-size: .9rem; max-width: 46rem }
.warning {
  background: var(--note); border-left: 3px solid var(--warm); margin: 1rem 0 0;
  padding: .6rem 1rem .6rem 2rem; font-size: .9rem; overflow-wrap: anywhere
}
.cards, .charts {
  display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr))
}
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 1rem; min-width: 0;
  max-width: 640px
}
.card h3 { margin-top: 0 }
.figures { display: flex; flex-wrap: wrap; gap: .5rem 1.75rem; margin-bottom: .75rem }
.figure span { display: block; color: var(--soft); font-size: .85rem }
.figure b { font-size: 1.7rem; font-weight: 600; color: var(--accent); font-variant-numeric: tabular-nums }
.figure i { font-size: 1rem; font-style: normal; font-weight: 400; color: var(--soft) }
.scroll { overflow-x: auto }
table {
  border-collapse: separate; border-spacing: 0; min-width: 100%;
  font-size: .875rem; font-variant-numeric: tabular-nums
}
th, td {
  padding: 5px .6rem; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--line)
}
th { color: var(--soft); font-weight: 500 }
tfoot td { font-weight: 600 }
tfoot tr:first-child td { border-top: 2px solid var(--line) }
td small { color: var(--soft) }
.words { text-align: left }
th:first-child, td:first-child { padding-left: 0 }
th:last-child, td:last-child { padding-right: .2rem }
.words { white-space: normal }
td.words { overflow-wrap: anywhere; min-width: 4.25rem }
td.words small { display: inline-block; line-height: 1.35 }
th.above { text-align: center; border-bottom-color: var(--soft) }
th.above:first-child { border-bottom-color: transparent }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--paper) }
.card td:first-child, .card th:first-child { background: var(--card) }
@media (max-width: 480px) {
  th, td { padding: 5px .35rem }
  .card { padding: .75rem }
  .figure b { font-size: 1.4rem }
  .figure i { font-size: .9rem }
}
figure { margin: 0; min-width: 0 }
figcaption, .empty { color: var(--soft); font-size: .85rem }
svg {
  display: block; width: 100%; height: auto; max-width: 560px; font: 11px system-ui, sans-serif;
  fill: var(--soft)
}
svg .axis { font-size: 12px; fill: var(--ink) }
svg .grid { stroke: var(--line); stroke-width: 1 }
svg polyline { fill: none; stroke-linejoin: round }
svg .fold { stroke: var(--thin); stroke-width: 1 }
svg .mean { stroke: var(--accent); stroke-width: 2.5 }
svg .fit { stroke: var(--warm); stroke-width: 2.5 }
svg .equal { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 4 }
svg .single { fill: currentColor }
svg .cloud { fill: none; stroke: var(--accent); stroke-opacity: .55; stroke-linecap: round }
svg .mark { fill: var(--warm); stroke: var(--paper); stroke-width: 1 }
pre {
  background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .75rem;
  overflow-x: auto; font-size: .8rem; line-height: 1.45
}
summary { cursor: pointer; padding: .3rem 0 }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
@media print { body { max-width: none } details { display: none } }
"""
