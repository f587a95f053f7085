# SPDX-License-Identifier: Apache-2.0
"""Style of the page of traces. Three hues carry its meaning: selected, exact mass, missed."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #1c2126; --soft: #5d6670; --line: #e0ddd5; --track: #eeebe4;
  --selected: #3454d1; --mass: #0a7f73; --missed: #d6480d; --always: #b9b4a8; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) {
  --paper: #13161a; --card: #1a1e24; --ink: #e6e8ea; --soft: #98a2ad; --line: #2c323a; --track: #242a31;
  --selected: #7f9bff; --mass: #35c4b1; --missed: #ff8a4c; --always: #4b525b; } }
:root[data-theme=light] { color-scheme: light; }
:root[data-theme=dark] { color-scheme: dark;
  --paper: #13161a; --card: #1a1e24; --ink: #e6e8ea; --soft: #98a2ad; --line: #2c323a; --track: #242a31;
  --selected: #7f9bff; --mass: #35c4b1; --missed: #ff8a4c; --always: #4b525b; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 36px 32px 80px; }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 6px; font-weight: 650; }
h2 { font-size: 17px; margin: 44px 0 4px; font-weight: 650; }
p { margin: 0; } .soft { color: var(--soft); } .lead { max-width: 78ch; }
.selected { color: var(--selected); } .mass { color: var(--mass); } .missed { color: var(--missed); }
b { font-weight: 600; }
.answer { margin: 20px 0 0; padding: 12px 18px; border-left: 3px solid var(--ink); background: var(--card); white-space: pre-wrap;
  overflow-wrap: anywhere; font: 14px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.answer span { display: block; font: 12px/1.5 system-ui, sans-serif; color: var(--soft); white-space: normal; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 12px; margin-top: 24px; }
button { font: inherit; color: inherit; background: none; border: 1px solid var(--line); border-radius: 7px; padding: 3px 12px; cursor: pointer; }
button:hover { border-color: var(--soft); }
:focus-visible { outline: 2px solid var(--selected); outline-offset: 2px; }
.card { text-align: left; background: var(--card); padding: 12px 16px 14px; border-radius: 10px; display: flex; flex-direction: column; }
.card[aria-pressed=true] { border-color: var(--ink); box-shadow: inset 0 0 0 1px var(--ink); }
.card .name { font-weight: 600; } .card .name span { display: inline-block; margin-top: 3px; vertical-align: 2px; }
.card .tag { font-size: 11px; font-weight: 600; padding: 1px 8px; border-radius: 99px; background: var(--ink); color: var(--card); white-space: nowrap; }
.card dl { padding-bottom: 10px; display: grid; grid-template-columns: 1fr auto; margin: 8px 0 0; gap: 1px 12px; font-size: 13px; }
dt { color: var(--soft); } dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.split { height: 6px; border-radius: 3px; overflow: hidden; background: var(--missed); align-self: stretch; flex: none; }
.split i { display: block; height: 100%; background: var(--mass); border-right: 2px solid var(--card); }
code { font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.options { margin-top: 12px; font-size: 13px; overflow-wrap: anywhere; }
.bar { position: sticky; top: 0; z-index: 3; display: flex; flex-wrap: wrap; align-items: center; gap: 8px 16px; margin: 28px -32px 0;
  padding: 10px 32px; background: var(--paper); border-bottom: 1px solid var(--line); }
.bar label { display: flex; align-items: center; gap: 10px; } .bar output { min-width: 5.5em; font-variant-numeric: tabular-nums; }
.bar button[aria-pressed=true] { background: var(--ink); border-color: var(--ink); color: var(--paper); }
input[type=range] { accent-color: var(--ink); width: 220px; }
.spring { flex: 1; }
.panel { display: grid; grid-template-columns: 190px 1fr; gap: 4px 20px; margin-top: 18px; align-items: start; }
.panel h3 { font-size: 14px; margin: 0; font-weight: 600; } .panel p { font-size: 12.5px; line-height: 1.45; color: var(--soft); }
.scale { display: flex; flex-wrap: wrap; align-items: center; gap: 3px 12px; margin-top: 7px; font-size: 11.5px; color: var(--soft); font-variant-numeric: tabular-nums; }
.scale span { display: flex; align-items: center; gap: 6px; white-space: nowrap; } .scale i { width: 12px; height: 9px; border-radius: 2px; }
canvas { display: block; width: 100%; cursor: crosshair; touch-action: pan-y; }
.pages { margin-top: 18px; }
.page { display: grid; grid-template-columns: 46px 262px 1fr; gap: 0 18px; padding: 9px 0; border-top: 1px solid var(--line); scroll-margin-top: 70px; }
.page.on { background: var(--card); box-shadow: -12px 0 0 var(--card), 12px 0 0 var(--card); }
.number { font-weight: 650; font-variant-numeric: tabular-nums; text-align: right; }
.number small { display: block; font-weight: 400; font-size: 10.5px; color: var(--soft); line-height: 1.3; }
.meters { display: grid; grid-template-columns: 70px 1fr 54px; gap: 2px 8px; align-items: center; font-size: 11.5px; line-height: 16px; color: var(--soft); align-content: start; }
.meters .track { height: 7px; border-radius: 2px; background: var(--track); overflow: hidden; }
.meters .track i { display: block; height: 100%; border-radius: 2px; }
.meters .value { text-align: right; color: var(--ink); font-variant-numeric: tabular-nums; }
.layers { display: flex; gap: 1px; height: 14px; }
.layers i { flex: 1; border-radius: 1px; background: var(--track); position: relative; overflow: hidden; }
.layers i::before { content: ""; position: absolute; inset: 0; background: var(--selected); opacity: var(--s); }
.layers i::after { content: ""; position: absolute; inset: auto 0 0 0; height: var(--m); background: var(--missed); }
.layers i.all { background: var(--always); } .layers i.here { outline: 1.5px solid var(--ink); outline-offset: 0; overflow: visible; }
.text { font: 13px/1.62 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 0;
  padding: 3px 10px; border-radius: 5px; }
.text > .said { box-shadow: inset 0 -2px 0 var(--ink); font-weight: 600; }
.folded .text { white-space: normal; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4; overflow: hidden; max-height: 7em; align-self: start; }
.status { position: fixed; left: 0; right: 0; bottom: 0; z-index: 4; background: var(--ink); color: var(--paper); font-size: 13px; padding: 8px 32px;
  font-variant-numeric: tabular-nums; min-height: 37px; }
.status b { margin-right: 14px; } .status span { margin-right: 18px; white-space: nowrap; }
@media (max-width: 900px) { main { padding: 24px 16px 80px; } .bar { margin: 20px -16px 0; padding: 10px 16px; } .panel { grid-template-columns: 1fr; }
  .page { grid-template-columns: 40px 1fr; } .page .text { grid-column: 1 / -1; margin-top: 6px; } .status { padding: 8px 16px; } }
@media print { .bar, .status { position: static; } }
"""
