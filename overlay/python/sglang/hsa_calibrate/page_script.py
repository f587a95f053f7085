# SPDX-License-Identifier: Apache-2.0
"""Script of the page of traces: no library, no request, and text enters the document as text only."""

SCRIPT = r"""
"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const L = D.layers.length, C = D.pages.length, root = document.getElementById("root");
const best = D.settings.findIndex(s => s.best);
const state = { setting: best < 0 ? 0 : best, row: -1, page: -1, hoverRow: -1 };

function el(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "on") for (const [event, f] of Object.entries(value)) node.addEventListener(event, f);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
const pct = (x, d = 1) => (100 * x).toFixed(d) + " %";
const small = x => x === 0 ? "0 %" : x < 0.0001 ? "< 0.01 %" : pct(x, x < 0.1 ? 2 : 1);
const css = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const sum = list => list.reduce((a, b) => a + b, 0);
const isDense = (s, r) => s.dense.includes(D.layers[r]);

// What a setting did with every page: of one layer, or (row -1) of all.
function view(s, row) {
  const rows = row < 0 ? D.layers.map((_, r) => r) : [row];
  const sparse = rows.filter(r => !isDense(s, r));
  return D.pages.map((_, c) => {
    const could = sparse.filter(r => s.selected[r][c] >= 0);
    return {
      selected: could.length ? sum(could.map(r => s.selected[r][c])) / could.length : -1,
      heads: sum(could.map(r => s.heads[r][c])), of: could.length * D.heads,
      mass: sum(rows.map(r => s.mass[r][c])) / rows.length,
      missed: sum(rows.map(r => s.missed[r][c])) / rows.length,
    };
  });
}
// Shares of pages are small and uneven: colours and bars grow with the root of the share.
function tops(s) {
  let mass = 1e-4;
  for (let r = 0; r < L; r++) for (let c = D.sinks; c < D.window; c++) mass = Math.max(mass, s.mass[r][c]);
  return mass;
}
// One scale of what was missed for all settings, so that they can be compared.
const worst = Math.max(1e-4, ...D.settings.flatMap(s => s.missed.map(row => Math.max(...row))));
const grow = (x, top) => Math.min(1, Math.sqrt(x / top));
const role = c => c < D.sinks ? "sink, always attended" : c >= D.window ? "window, always attended" : "";

// ---- head: what, answer, settings
const missedOf = s => sum(s.missed.map(sum)) / L;
const name = s => s.kind + ", " + s.topk + " pages" + (s.dense.length ? ", " + s.dense.length + (s.dense.length > 1 ? " dense layers" : " dense layer") : "");
const cards = D.settings.map((s, i) => el("button", { class: "card", type: "button", on: { click: () => set({ setting: i }) } },
  el("div", { class: "name" }, name(s) + " ", ...(s.best ? [el("span", { class: "tag" }, s.passed ? "recommended" : "nearest")] : [])),
  el("dl", {},
    el("dt", {}, "loss on the texts"), el("dd", {}, pct(s.loss, 2)),
    el("dt", {}, "answer's perplexity"), el("dd", {}, s.answer_perplexity.toFixed(3)),
    el("dt", {}, "attended mass"), el("dd", { class: "mass" }, pct(1 - missedOf(s))),
    el("dt", {}, "missed mass"), el("dd", { class: "missed" }, pct(missedOf(s), 2))),
  el("div", { class: "split" }, el("i", { style: "width:" + 100 * (1 - missedOf(s)) + "%" }))));
const options = el("p", { class: "options soft" });
root.replaceChildren(
  el("h1", {}, "Which pages the answer read"),
  el("p", { class: "soft lead" }, D.model + " on " + D.prompt + ": " + D.prompt_tokens + " tokens in " + C + " pages of " + D.page_size +
    ", " + L + " layers of " + D.heads + " KV heads, strategy " + D.strategy + ". The rows that predict the answer were watched. Dense attention: perplexity " +
    D.perplexity.toFixed(3) + " on the texts, " + D.answer_perplexity.toFixed(3) + " on the answer."),
  el("div", { class: "answer" }, el("span", {}, D.own ? "Answer: the model's own under dense attention, " + D.answer_tokens + " tokens" : "Answer: as given, " + D.answer_tokens + " tokens"), D.answer),
  el("div", { class: "cards" }, ...cards), options);

// ---- controls
const all = el("button", { type: "button", on: { click: () => set({ row: -1 }) } }, "All layers");
const one = el("button", { type: "button", on: { click: () => set({ row: state.row < 0 ? Number(range.value) : state.row }) } }, "One layer");
const range = el("input", { type: "range", min: 0, max: L - 1, value: 0, "aria-label": "layer", on: { input: () => set({ row: Number(range.value) }) } });
const shown = el("output");
const fold = el("button", { type: "button", on: { click: () => { list.classList.toggle("folded"); press(fold, !list.classList.contains("folded")); } } }, "Full text");
const themes = ["auto", "light", "dark"];
const theme = el("button", { type: "button", on: { click: () => {
  const now = themes[(themes.indexOf(document.documentElement.dataset.theme || "auto") + 1) % 3];
  document.documentElement.dataset.theme = now; theme.textContent = "Theme: " + now; draw(); } } }, "Theme: " + (document.documentElement.dataset.theme || "auto"));
const press = (button, on) => button.setAttribute("aria-pressed", on);
root.append(el("div", { class: "bar" }, all, one, el("label", {}, range, shown), el("span", { class: "spring" }), fold, theme));

// ---- panels: one canvas each, on the same axis of pages
const AXIS = 34, FOOT = 16;
function panel(title, text, height, paint, legend) {
  const canvas = el("canvas", { role: "img", "aria-label": title });
  const note = el("div", { class: "scale" });
  root.append(el("section", { class: "panel" }, el("div", {}, el("h3", {}, title), el("p", {}, text), note), canvas));
  const at = event => {
    const box = canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left - AXIS) / ((box.width - AXIS) / C));
    const r = height ? -1 : Math.floor((event.clientY - box.top) / rowHeight);
    return { page: c >= 0 && c < C ? c : -1, hoverRow: r >= 0 && r < L && c >= 0 ? r : -1 };
  };
  canvas.addEventListener("mousemove", event => hover(at(event)));
  canvas.addEventListener("mouseleave", () => hover({ page: -1, hoverRow: -1 }));
  canvas.addEventListener("click", event => {
    const { page } = at(event);
    if (page >= 0) pageNodes[page].node.scrollIntoView({ behavior: "smooth", block: "start" });
  });
  return { canvas, height, paint, note, legend };
}
const rowHeight = Math.max(4, Math.min(18, Math.round(200 / L)));
function heat(value, color, gray) {
  return (g, w) => {
    const s = D.settings[state.setting], ink = css(color), track = css("track"), always = css("always");
    for (let r = 0; r < L; r++) for (let c = 0; c < C; c++) {
      const x = AXIS + c * w, gap = w > 3 ? 1 : 0, t = value(s, r, c);
      g.globalAlpha = state.row >= 0 && state.row !== r ? 0.32 : 1;
      g.fillStyle = t < 0 || (gray && isDense(s, r)) ? always : track;
      g.fillRect(x, r * rowHeight, w - gap, rowHeight - 1);
      if (t > 0 && !(gray && isDense(s, r))) { g.globalAlpha *= t; g.fillStyle = ink; g.fillRect(x, r * rowHeight, w - gap, rowHeight - 1); }
    }
  };
}
root.append(el("h2", {}, "Layers by pages"), el("p", { class: "soft" }, "Point at a column to read it below; click to go to its text."));
const panels = [
  panel("Exact mass by page", "Attention mass of the shown layers. Root scale, as for all mass here.", 96, (g, w, h) => {
    const s = D.settings[state.setting], v = view(s, state.row), top = Math.max(1e-4, ...v.slice(D.sinks, D.window).map(p => p.mass));
    v.forEach((p, c) => {
      const x = AXIS + c * w, gap = w > 3 ? 1 : 0, tall = Math.max(1, grow(p.mass, top) * h), miss = p.mass ? tall * p.missed / p.mass : 0;
      g.globalAlpha = 1; g.fillStyle = css(role(c) ? "always" : "mass"); g.fillRect(x, h - tall, w - gap, tall - miss);
      g.fillStyle = css("missed"); g.fillRect(x, h - miss, w - gap, miss);
    });
  }, s => [["always", "window, first page"], ["mass", "attended"], ["missed", "missed"]]),
  panel("Selected", "Share of the answer's rows and KV heads that selected the page.", 0, heat((s, r, c) => s.selected[r][c], "selected", true), s => [["selected", "all of them"], ["track", "none"], ["always", "always attended"]]),
  panel("Exact mass", "Where dense attention looks, attended or not.", 0, heat((s, r, c) => grow(s.mass[r][c], tops(s)), "mass"), s => [["track", "0"], ["mass", small(tops(s)) + (D.sinks ? " or more" : "")]]),
  panel("Missed", "Exact mass of a page where it was not selected. One scale for all settings.", 0, heat((s, r, c) => grow(s.missed[r][c], worst), "missed"), () => [["track", "0"], ["missed", small(worst)]]),
];
function drawPanel(p) {
  const width = p.canvas.clientWidth, body = p.height || L * rowHeight, ratio = window.devicePixelRatio || 1;
  p.canvas.style.height = body + FOOT + "px";
  p.canvas.width = width * ratio; p.canvas.height = (body + FOOT) * ratio;
  const g = p.canvas.getContext("2d"), w = (width - AXIS) / C;
  g.scale(ratio, ratio); p.paint(g, w, body);
  g.globalAlpha = 1; g.font = "10.5px system-ui, sans-serif"; g.fillStyle = css("soft"); g.textBaseline = "middle";
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find(n => n * w > 34) || 2000;
  g.textAlign = "center";
  for (let c = 0; c < C; c += every) g.fillText(c, AXIS + (c + 0.5) * w, body + FOOT / 2 + 2);
  if (!p.height) {
    g.textAlign = "right";
    const step = [1, 2, 5, 10, 20].find(n => n * rowHeight > 14) || 50;
    for (let r = 0; r < L; r += step) g.fillText(D.layers[r], AXIS - 7, Math.max(6, (r + 0.5) * rowHeight));
  }
  g.strokeStyle = css("ink"); g.lineWidth = 1.5;
  if (state.page >= 0) g.strokeRect(AXIS + state.page * w - 1, 0.75, w + 1, body - 1.5);
  if (!p.height && state.hoverRow >= 0) g.strokeRect(AXIS + state.page * w - 1, state.hoverRow * rowHeight - 1, w + 1, rowHeight + 1);
  p.note.replaceChildren(...p.legend(D.settings[state.setting]).map(([color, text]) => el("span", {}, el("i", { style: "background:var(--" + color + ")" }), text)));
}

// ---- the prompt, page by page
root.append(el("h2", {}, "The prompt, page by page"), el("p", { class: "soft lead" },
  "The stronger the blue of a page's text, the more often it was selected. The strip shows it for each layer, from the first to the last, with what was missed in orange from below."));
const list = el("div", { class: "pages folded" });
const meter = (label, color) => {
  const fill = el("i", { style: "background:var(--" + color + ")" }), value = el("span", { class: "value" });
  return { nodes: [el("span", {}, label), el("span", { class: "track" }, fill), value], set: (x, text) => { fill.style.width = 100 * x + "%"; value.textContent = text; } };
};
const pageNodes = D.pages.map((p, c) => {
  const meters = [meter("selected", "selected"), meter("exact mass", "mass"), meter("missed", "missed")];
  const strip = el("span", { class: "layers" }), cells = D.layers.map(() => el("i"));
  strip.append(...cells);
  const share = el("span", { class: "value" });
  const said = p.answer ? [el("span", { class: "said" }, p.answer)] : [];
  const text = el("div", { class: "text" }, p.text, ...said);
  const node = el("article", { class: "page", on: { mouseenter: () => hover({ page: c, hoverRow: -1 }), mouseleave: () => hover({ page: -1, hoverRow: -1 }) } },
    el("div", { class: "number" }, String(c), el("small", {}, p.first + "–" + p.last)),
    el("div", { class: "meters" }, ...meters.flatMap(m => m.nodes), el("span", {}, "layers"), strip, share),
    text);
  list.append(node);
  return { node, meters, cells, text, share };
});
root.append(list);
const status = el("div", { class: "status" });
document.body.append(status);

// ---- state
function line() {
  const s = D.settings[state.setting], c = state.page;
  if (c < 0) { status.replaceChildren(el("b", {}, name(s)), el("span", {}, "point at a page")); return; }
  const row = state.hoverRow >= 0 ? state.hoverRow : state.row, v = view(s, row)[c], p = D.pages[c];
  const what = row < 0 ? "all layers" : "layer " + D.layers[row] + (isDense(s, row) ? " (dense)" : "");
  const chosen = v.of ? "selected in " + v.heads + " of " + v.of + " layer-heads, " + pct(v.selected) + " of rows" : role(c) || "attended by a dense layer";
  status.replaceChildren(el("b", {}, "Page " + c), ...[what, "tokens " + p.first + "–" + p.last, chosen, "exact mass " + small(v.mass), "missed " + small(v.missed)].map(t => el("span", {}, t)));
}
function draw() { panels.forEach(drawPanel); line(); }
function hover(change) {
  if (state.page === change.page && state.hoverRow === change.hoverRow) return;
  if (state.page >= 0) pageNodes[state.page].node.classList.remove("on");
  Object.assign(state, change);
  if (state.page >= 0) pageNodes[state.page].node.classList.add("on");
  draw();
}
function set(change) {
  Object.assign(state, change);
  const s = D.settings[state.setting], v = view(s, state.row);
  const widest = Math.max(1e-4, ...v.slice(D.sinks, D.window).map(p => p.mass));
  cards.forEach((card, i) => press(card, i === state.setting));
  options.replaceChildren("Options of this setting: ", el("code", {}, s.options));
  press(all, state.row < 0); press(one, state.row >= 0); press(fold, !list.classList.contains("folded"));
  if (state.row >= 0) range.value = state.row;
  shown.textContent = state.row < 0 ? "" : "layer " + D.layers[state.row] + (isDense(s, state.row) ? ", dense" : "");
  pageNodes.forEach((n, c) => {
    const p = v[c], always = role(c);
    n.meters[0].set(Math.max(p.selected, 0), p.of ? pct(p.selected, 0) : "always");
    n.meters[1].set(grow(p.mass, widest), small(p.mass));
    n.meters[2].set(grow(p.missed, widest), small(p.missed));
    n.share.textContent = p.of ? p.heads + " / " + p.of : "";
    n.text.style.backgroundColor = always ? "" : "color-mix(in srgb, var(--selected) " + Math.round(34 * Math.sqrt(Math.max(p.selected, 0))) + "%, transparent)";
    n.cells.forEach((cell, r) => {
      const x = s.selected[r][c], dense = isDense(s, r);
      cell.classList.toggle("all", x < 0 || dense); cell.classList.toggle("here", r === state.row);
      cell.style.setProperty("--s", dense || x < 0 ? 0 : x);
      cell.style.setProperty("--m", 100 * grow(s.missed[r][c], worst) + "%");
    });
  });
  draw();
}
new ResizeObserver(draw).observe(root);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
set({});
"""
