"use strict";
// Text from models only ever becomes text: nothing below writes HTML.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const { svgOf, kindOf } = Drawing;
  const nodes = new Map(data.nodes.map((node) => [node.id, { ...node, into: [], below: [], count: 0 }]));
  for (const edge of data.edges) {
    nodes.get(edge.child).into.push(edge);
    nodes.get(edge.parent).below.push(edge.child);
  }
  const stands = new Map(data.nodes.flatMap((node) => [node.id, ...(node.aliases || [])].map((name) => [name, node.id])));
  Drawing.prepare(data, nodes);
  for (const family of data.families) {
    for (const id of family.order.slice().reverse()) for (const edge of nodes.get(id).into.slice(0, 1)) nodes.get(edge.parent).count += 1 + nodes.get(id).count;
  }
  const label = (node) => (node.hidden ? "a model that is not here" : [node.id, ...(node.aliases || [])].join(" = "));
  const number = (value, digits = 2) => (value === null || value === undefined ? "\u2013" : Number(value).toFixed(digits));
  const signed = (value, digits = 2) => (value === null || value === undefined ? "\u2013" : (value > 0 ? "+" : "") + Number(value).toFixed(digits));
  // As `percent` in mother/graph/certainty.py: rounded, but never into the range of another word.
  const percent = (value) => {
    if (value === undefined || value === null) return "\u2013";
    if (value >= 0.995) return "more than 99 %";
    if (value < 0.005) return "less than 1 %";
    const rounded = Math.round(100 * value);
    return `${rounded - Number(Drawing.WORDS.some((least) => rounded / 100 >= least && value < least))} %`;
  };
  const make = (name, text, attributes = {}) => {
    const element = document.createElement(name);
    if (text !== undefined && text !== null) element.textContent = text;
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const table = (head, rows, numbers = []) => {
    const result = make("table"), top = make("thead"), body = make("tbody");
    const row = (cells, kind) => {
      const line = make("tr");
      cells.forEach((cell, at) => line.append(make(kind, cell, numbers.includes(at) ? { class: "number" } : {})));
      return line;
    };
    top.append(row(head, "th"));
    for (const cells of rows) body.append(row(cells, "td"));
    result.append(top, body);
    return result;
  };

  // Views
  const views = [["summary", "Summary"], ["tree", "Tree"], ["edges", "Edges"], ["distances", "Distances"], ["audit", "Audit"], ["files", "Files"], ["left", "Left out"]];
  const narrow = window.matchMedia("(max-width: 700px)");
  const show = (name) => {
    for (const [view] of views) {
      byId(`view-${view}`).hidden = view !== name;
      byId(`tab-${view}`).setAttribute("aria-selected", String(view === name));
      byId(`tab-${view}`).tabIndex = view === name ? 0 : -1;
    }
    if (name === "distances") drawHeat();
    if (name === "tree") { if (!drawn) begin(); if (narrow.matches) buildList(); }
  };
  for (const [view, title] of views) {
    const tab = make("button", title, { id: `tab-${view}`, type: "button", role: "tab", "aria-controls": `view-${view}` });
    tab.addEventListener("click", () => show(view));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const at = (views.findIndex(([one]) => one === view) + step + views.length) % views.length;
      show(views[at][0]);
      byId(`tab-${views[at][0]}`).focus();
    });
    document.querySelector(".tabs").append(tab);
  }
  const setTheme = (dark) => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    byId("theme").setAttribute("aria-pressed", String(dark));
    byId("theme").textContent = dark ? "Light" : "Dark";
    drawHeat();
  };

  // The tree: a window of svg on the drawing
  const state = { shut: new Set(), closed: new Set(), width: 0, window: { width: 1368, height: 650 }, off: new Set(), threshold: 0, colour: "kind", edgeColour: (edge) => `var(--${Drawing.colourOf(edge)})` };
  const svg = svgOf("svg", { class: "whole", role: "tree", "aria-label": "Model tree" });
  const canvas = svgOf("g", {});
  svg.append(canvas);
  byId("tree").append(svg);
  let drawn = null, moved = false, chosen = null, matches = [], view = { x: 0, y: 0, k: 1 };
  const apply = () => { canvas.setAttribute("transform", `translate(${view.x},${view.y}) scale(${view.k})`); moveMap(); };
  const zoomBy = (factor, x, y) => {
    moved = true;
    const box = svg.getBoundingClientRect(), k = Math.min(4, Math.max(0.02, view.k * factor));
    const px = x === undefined ? box.width / 2 : x - box.left, py = y === undefined ? box.height / 2 : y - box.top;
    view = { k, x: px - (px - view.x) * k / view.k, y: py - (py - view.y) * k / view.k };
    apply();
  };
  svg.addEventListener("wheel", (event) => { event.preventDefault(); zoomBy(Math.exp(-event.deltaY / 400), event.clientX, event.clientY); }, { passive: false });
  let drag = null;
  svg.addEventListener("pointerdown", (event) => { moved = true; drag = { x: event.clientX - view.x, y: event.clientY - view.y, id: event.pointerId }; });
  svg.addEventListener("pointermove", (event) => {
    if (!drag || drag.id !== event.pointerId) return;
    view = { ...view, x: event.clientX - drag.x, y: event.clientY - drag.y };
    apply();
  });
  for (const end of ["pointerup", "pointerleave", "pointercancel"]) svg.addEventListener(end, () => { drag = null; });
  // The shape of the window; that of a screen's where there is none yet.
  function look() {
    const box = svg.getBoundingClientRect();
    if (box.width) state.window = { width: box.width - (nodes.size > 150 ? 190 : 0), height: box.height };  // beside the small map
    state.width = 0;
  }
  function fit(least = 0.02) {
    const k = Math.max(least, Packing.scaleOf(drawn, state.window));
    view = { k, x: Math.max(8, (state.window.width - k * drawn.right) / 2), y: 8 };
    apply();
  }
  function whole() { look(); redraw(); fit(); moved = false; }
  // It opens with what can be read.
  function begin() {
    look();
    Packing.open(data, nodes, state, Drawing.arrange);
    redraw();
    fit(Packing.READABLE);
    // Until somebody moves it, it stays fitted where a longer legend or another window leaves it less room.
    new ResizeObserver(() => { if (!moved) { look(); redraw(); fit(Packing.READABLE); } }).observe(svg);
  }
  function center(id, zoom = true) {
    const box = svg.getBoundingClientRect(), at = drawn && drawn.at.get(id);
    moved = true;
    if (!at || !box.width) return;
    if (zoom && view.k < 0.5) view.k = 0.9;
    const x = at[0] * view.k + view.x, y = at[1] * view.k + view.y;
    if (x > 40 && x < box.width - 160 && y > 20 && y < box.height - 20) { apply(); return; }
    // As near to the middle as can be without an empty border.
    const held = (want, whole, room) => (whole + 16 <= room ? 8 : Math.min(8, Math.max(want, room - whole - 8)));
    view.x = held(box.width / 3 - at[0] * view.k, drawn.right * view.k, box.width);
    view.y = held(box.height / 2 - at[1] * view.k, drawn.bottom * view.k, box.height);
    apply();
  }
  const familyOf = (id) => data.families.findIndex((family) => family.place.has(id));
  function ancestors(id) {
    const found = new Set([id]), stack = [id];
    while (stack.length) for (const edge of nodes.get(stack.pop()).into) if (!found.has(edge.parent)) { found.add(edge.parent); stack.push(edge.parent); }
    return found;
  }
  function reveal(id) {
    const k = familyOf(id);
    let changed = state.shut.delete(k < 0 ? "alone" : k);
    for (const above of ancestors(id)) if (above !== id && state.closed.delete(above)) changed = true;
    return changed;
  }
  function redraw() {
    drawn = Drawing.draw(canvas, data, nodes, state, redraw);
    const order = [...drawn.nodes.keys()];
    for (const [id, element] of drawn.nodes) {
      const node = nodes.get(id);
      if (node.below.length) element.setAttribute("aria-expanded", String(!state.closed.has(id)));
      element.setAttribute("aria-label", `${label(node)}${node.into.map((edge) => `, from ${edge.parent}: ${edge.words}`).join("")}`);
      element.addEventListener("click", () => select(id));
      element.addEventListener("dblclick", () => toggle(id));
      element.addEventListener("keydown", (event) => keys(event, id, order));
    }
    for (const [edge, element] of drawn.edges) element.querySelector(".hit").addEventListener("click", () => select(edge.child, edge));
    buildMap();
    dress();
  }
  function toggle(id) {
    if (!nodes.get(id).below.length) return;
    const was = drawn.at.get(id);
    moved = true;
    if (!state.closed.delete(id)) state.closed.add(id);
    redraw();
    // What is opened stays where it is seen, wherever its family goes.
    const now = drawn.at.get(id);
    view = { ...view, x: view.x + view.k * (was[0] - now[0]), y: view.y + view.k * (was[1] - now[1]) };
    apply();
  }
  function keys(event, id, order) {
    const node = nodes.get(id), at = order.indexOf(id);
    let to = null, stay = false;
    if (event.key === "ArrowDown") to = order[at + 1];
    else if (event.key === "ArrowUp") to = order[at - 1];
    else if (event.key === "Home") to = order[0];
    else if (event.key === "End") to = order[order.length - 1];
    else if (event.key === "ArrowLeft") { if (node.below.length && !state.closed.has(id)) { toggle(id); stay = true; } else if (node.into.length) to = node.into[0].parent; }
    else if (event.key === "ArrowRight") { if (state.closed.has(id)) { toggle(id); stay = true; } else to = node.below[0]; }
    else if (event.key === "Enter" || event.key === " ") { select(id); stay = true; }
    else return;
    event.preventDefault();
    if (stay) to = id;
    if (to && drawn.nodes.has(to)) { center(to); drawn.nodes.get(to).focus(); }
  }
  // Classes that change without a new drawing: what is chosen, found, filtered, too uncertain
  function dress() {
    if (!drawn) return;
    const words = byId("search").value.trim(), found = new Set(matches), lit = new Set();
    for (const id of matches.length ? matches.slice(0, 50) : chosen ? [chosen] : []) for (const one of ancestors(id)) lit.add(one);
    const first = chosen && drawn.nodes.has(chosen) ? chosen : drawn.nodes.keys().next().value;
    const colours = nodeColours();
    for (const [id, element] of drawn.nodes) {
      element.classList.toggle("match", found.has(id));
      element.classList.toggle("lit", lit.has(id));
      element.classList.toggle("faint", Boolean(words) && !lit.has(id) && !found.has(id));
      element.classList.toggle("chosen", id === chosen);
      element.setAttribute("aria-selected", String(id === chosen));
      element.setAttribute("tabindex", id === first ? 0 : -1);
      element.querySelector("circle").style.fill = state.colour === "kind" ? "" : colours.get(nodes.get(id)[state.colour]) || "";
    }
    for (const [edge, element] of drawn.edges) {
      const on = lit.has(edge.parent) && lit.has(edge.child);
      element.classList.toggle("lit", on);
      element.classList.toggle("off", state.off.has(kindOf(edge)));
      element.classList.toggle("faint", (Boolean(words) && !on) || (edge.adjacency === undefined ? 1 : edge.adjacency) < state.threshold);
    }
  }
  function nodeColours() {
    const values = [...new Set(data.nodes.map((node) => node[state.colour]).filter(Boolean))].sort();
    const fixed = state.colour === "verdict" ? Drawing.VERDICTS : {};
    return new Map(values.map((value, k) => [value, fixed[value] || Drawing.PALETTE[k % Drawing.PALETTE.length]]));
  }
  function buildLegend() {
    const legend = byId("legend");
    legend.replaceChildren();
    for (const kind of [...new Set(data.edges.map(kindOf))].sort()) {
      const item = make("li"), button = make("button", null, { type: "button", "aria-pressed": String(!state.off.has(kind)) });
      const line = svgOf("svg", { "aria-hidden": "true" });
      line.append(svgOf("line", { x1: 0, x2: 30, y1: 4, y2: 4, stroke: `var(--${Drawing.colourOf({ kind })})`, "stroke-width": 3, ...(Drawing.DASHES[kind] ? { "stroke-dasharray": Drawing.DASHES[kind] } : {}) }));
      button.append(line, kind);
      button.addEventListener("click", () => { if (!state.off.delete(kind)) state.off.add(kind); buildLegend(); dress(); });
      item.append(button);
      legend.append(item);
    }
    legend.append(make("li", "fainter: less probable"), make("li", "no head, or ?: less than 75 % sure"));
    if (data.nodes.some((node) => node.verdict === "contradicted")) legend.append(make("li", "\u2717 its claim is contradicted", { class: "contradicted" }));
    if (state.colour !== "kind") for (const [value, colour] of nodeColours()) {
      const item = make("li"), dot = svgOf("svg", { "aria-hidden": "true" });
      dot.style.width = "16px";
      dot.append(svgOf("circle", { cx: 10, cy: 4, r: 4, fill: colour }));
      item.append(dot, value);
      legend.append(item);
    }
  }

  // A small map, above 150 models
  let map = null, here = null;
  function buildMap() {
    if (map) map.remove();
    map = null;
    if (nodes.size <= 150) return;
    map = svgOf("svg", { class: "minimap", "aria-hidden": "true", viewBox: `0 0 ${drawn.right} ${drawn.bottom}`, preserveAspectRatio: "none" });
    map.append(svgOf("path", { class: "dots", d: [...drawn.at.values()].map(([x, y]) => `M${x},${y}h0`).join("") }));
    here = svgOf("rect", { class: "here" });
    map.append(here);
    map.addEventListener("click", (event) => {
      const box = map.getBoundingClientRect(), whole = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * drawn.right, y = (event.clientY - box.top) / box.height * drawn.bottom;
      view = { ...view, x: whole.width / 2 - x * view.k, y: whole.height / 2 - y * view.k };
      apply();
    });
    byId("tree").append(map);
    moveMap();
  }
  function moveMap() {
    if (!map) return;
    const box = svg.getBoundingClientRect();
    for (const [key, value] of Object.entries({ x: -view.x / view.k, y: -view.y / view.k, width: box.width / view.k, height: box.height / view.k })) here.setAttribute(key, value);
  }

  // A list for narrow screens: a search leaves what it finds, and the way to the root
  const items = [];
  const dressList = () => {
    const kept = new Set();
    for (const id of matches) for (const one of ancestors(id)) kept.add(one);
    for (const [id, item] of items) item.hidden = byId("search").value.trim() !== "" && !kept.has(id);
  };
  function buildList() {
    const list = byId("list");
    if (list.childElementCount) return;
    const add = (id, depth) => {
      const node = nodes.get(id), item = make("li"), button = make("button", node.label, { type: "button" });
      button.style.paddingLeft = `${8 + 14 * Math.min(depth, 12)}px`;
      if (node.aliases && node.aliases.length) button.append(` \u00d7${1 + node.aliases.length}`);
      if (node.verdict === "contradicted") button.append(make("b", " \u2717", { class: "contradicted", title: "its claim is contradicted" }));
      const kinds = [...new Set(node.into.map((edge) => `${kindOf(edge)}${edge.arrow < Drawing.KNOWN ? " ?" : ""}`))].join(", ");
      const parents = node.into.length > 1 ? ` of ${node.into.map((edge) => nodes.get(edge.parent).label).join(" and ")}` : "";
      if (node.into.length) button.append(document.createElement("br"), make("small", kinds + parents));
      button.addEventListener("click", () => select(id));
      item.append(button);
      items.push([id, item]);
      list.append(item);
    };
    const below = (id, depth) => { add(id, depth); for (const child of nodes.get(id).below) if (nodes.get(child).into[0].parent === id) below(child, depth + 1); };
    for (const family of data.families) for (const id of family.order) if (!nodes.get(id).into.length) below(id, 0);
    for (const id of data.alone) add(id, 0);
    dressList();
  }

  // Evidence
  function bars(edge) {
    const box = make("div");
    for (const [name, value] of [["parent and child", edge.adjacency], ["this one first", edge.arrow]]) {
      if (value === undefined) continue;
      const line = make("div", null, { class: "bar" }), track = make("span", null, { class: "track" }), fill = make("i");
      fill.style.width = `${100 * value}%`;
      track.append(fill);
      line.append(make("span", name), track, make("span", percent(value)));
      box.append(line);
    }
    return box;
  }
  function layerChart(layers, names) {
    const width = 360;
    const height = 12 * Math.min(layers.length, 24) + 26;
    const shownLayers = layers.length <= 24 ? layers : layers.slice().sort((a, b) => b[1] - a[1]).slice(0, 24);
    const chart = svgOf("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Newness of what changed in each matrix; the table below has the numbers" });
    const x = (value) => 150 + (value + 1) / 2 * (width - 158);
    const line = svgOf("line", { x1: x(0), x2: x(0), y1: 0, y2: height - 20 });
    line.style.stroke = "var(--soft)";
    chart.append(line);
    const write = (text, attributes, colour) => {
      const element = svgOf("text", attributes, text);
      element.style.cssText = `font-size: 9px; fill: var(${colour})`;
      chart.append(element);
    };
    shownLayers.forEach((layer, at) => {
      const y = 12 * at + 2;
      write(names[layer[0]].slice(-26), { x: 145, y: y + 8, "text-anchor": "end" }, "--fore");
      const bar = svgOf("rect", { x: Math.min(x(0), x(layer[3])), width: Math.max(1, Math.abs(x(layer[3]) - x(0))), y, height: 9 });
      bar.style.fill = layer[3] >= 0 ? "var(--fine-tune)" : "var(--merge)";
      chart.append(bar);
    });
    for (const [value, text, anchor] of [[-1, "was there before", "start"], [1, "new in the child", "end"]]) write(text, { x: x(value), y: height - 6, "text-anchor": anchor }, "--soft");
    return chart;
  }
  function describe(edge) {
    const box = make("section");
    const badge = make("span", kindOf(edge), { class: "badge" });
    badge.style.background = `var(--${Drawing.colourOf(edge)})`;
    box.append(make("h2", `${nodes.get(edge.parent).hidden ? "a model that is not here" : edge.parent} \u2192 ${label(nodes.get(edge.child))}`), badge, make("p", edge.summary), bars(edge));
    for (const [about, title] of [["arrow", "Which came first (log odds)"], ["edge", "Parent and child (log weight)"]]) {
      const why = (edge.why || []).filter((one) => one.about === about);
      if (!why.length) continue;
      const list = make("ul", null, { class: "why" });
      for (const one of why) {
        const item = make("li");
        item.append(make("b", one.log_odds === null ? "exact" : signed(one.log_odds)), make("span", one.words));
        list.append(item);
      }
      box.append(make("h3", title), list);
    }
    if (edge.wrong_if && edge.wrong_if.length) {
      const list = make("ul");
      for (const words of edge.wrong_if) list.append(make("li", words));
      box.append(make("h3", "For this to be wrong"), list);
    }
    const seen = edge.evidence || {};
    const facts = [];
    const fact = (name, key, format) => { if (seen[key] !== undefined && seen[key] !== null) facts.push([name, format(seen[key])]); };
    if (edge.coefficient !== undefined && edge.coefficient !== null) facts.push(["share of this parent", Number(edge.coefficient).toPrecision(2)]);
    fact("relatedness z (0 \u00b1 1 if unrelated)", "relatedness", (value) => number(value, 1));
    fact("distance (0 equal, about 1.4 unrelated)", "distance", (value) => Number(value).toPrecision(3));
    fact("weights compared", "compared", percent);
    fact("newness", "newness", (value) => `${signed(value, 3)}, t = ${signed(seen.newness_t, 1)}`);
    fact("rounding, log likelihood ratio", "rounding", (value) => signed(value, 1));
    fact("equal entries", "equal", (value) => `${number(100 * value, 1)} %`);
    fact("matrices that differ", "layers_changed", (value) => `${value} of ${seen.layers_compared}`);
    for (const [key, value] of Object.entries(edge.attributes || {})) facts.push([key.replace(/_/g, " "), Array.isArray(value) ? value.join(" or ") : typeof value === "object" ? JSON.stringify(value) : String(value)]);
    if (facts.length) box.append(make("h3", "Figures"), table(["figure", "value"], facts, [1]));
    if (seen.layers && seen.layers.length) {
      const newness = seen.layers[0][3] !== null;
      if (newness) box.append(make("h3", "Newness by matrix"), layerChart(seen.layers, data.layers));
      const more = make("details");
      more.append(make("summary", `All ${seen.layers.length} matrices`), table(["matrix", "change %", "rank", "newness", "rounding"],
        seen.layers.map((one) => [data.layers[one[0]], number(100 * one[1], 1), one[2] < 0 ? "full" : String(one[2]), signed(one[3]), signed(one[4], 1)]), [1, 2, 3, 4]));
      box.append(more);
    }
    return box;
  }
  function select(id, edge) {
    chosen = id;
    const node = nodes.get(id), panel = byId("details");
    const close = make("button", "Close", { type: "button", id: "sheet-close" });
    close.addEventListener("click", () => panel.classList.remove("open"));
    panel.replaceChildren(close);
    panel.classList.add("open");
    const was = panel.classList.contains("idle");
    panel.classList.remove("idle");
    for (const verdict of data.verdicts.filter((one) => one.model === id || (node.aliases || []).includes(one.model))) {
      panel.append(make("p", `${verdict.model} says that it is from ${verdict.says} (${verdict.file}): ${verdict.verdict}. The weights: ${verdict.reason}.`, { class: verdictClass(verdict.verdict) }));
    }
    if (!node.into.length) panel.append(make("h2", label(node)), make("p", node.hidden
      ? "A model that is not in this collection, from which those below must have come."
      : `No parent in this collection. That it is the root of its family: ${percent(node.root)}.`));
    for (const one of edge ? [edge] : node.into) panel.append(describe(one));
    if (node.aliases && node.aliases.length) panel.append(make("p", `Copies, equal in every tensor: ${node.aliases.join(", ")}`));
    panel.append(make("p", node.group));
    panel.append(make("a", "What the words and figures mean", { href: "#glossary" }));
    panel.scrollTop = 0;
    const hash = edge ? `#edge=${encodeURIComponent(edge.parent)}..${encodeURIComponent(edge.child)}` : `#model=${encodeURIComponent(id)}`;
    if (location.hash !== hash) history.replaceState(null, "", hash);
    if (reveal(id) && drawn) redraw(); else dress();
    if (was) center(id, false);
  }
  const verdictClass = (verdict) => (verdict === "agrees" ? "agrees" : verdict === "contradicted" ? "contradicted" : "undecided");
  function follow() {
    if (location.hash === "#glossary") {
      show("summary");
      byId("glossary").scrollIntoView();
      return true;
    }
    const [, kind, rest] = /^#(model|edge)=(.*)$/.exec(location.hash) || [];
    if (!kind) return false;
    const decode = (text) => { try { return decodeURIComponent(text); } catch (error) { return text; } };
    const edge = kind === "edge" ? data.edges.find((one) => `${one.parent}..${one.child}` === decode(rest)) : undefined;
    const id = kind === "edge" ? edge && edge.child : stands.get(decode(rest));
    if (!nodes.has(id)) return false;
    byId("details").classList.remove("idle");  // before the tree is fitted into what it leaves
    show("tree");
    select(id, edge);
    center(id);
    return true;
  }

  // Search: what fits, and the way from it to its root; all else fades
  function search() {
    const words = byId("search").value.trim().toLowerCase();
    matches = !words ? [] : [...nodes.values()].filter((node) => label(node).toLowerCase().includes(words) || node.verdict === words
      || node.into.some((edge) => edge.words.toLowerCase().includes(words))).map((node) => node.id);
    byId("found").textContent = words ? `${matches.length} found` : "";
    if (words && byId("view-tree").hidden) show("tree");
    let changed = false;
    for (const id of matches.slice(0, 200)) changed = reveal(id) || changed;
    if (changed || !drawn) redraw(); else dress();
    dressList();
    if (matches.length) center(matches[0]);
  }
  let next = 0;
  byId("search").addEventListener("input", () => { next = 0; search(); });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !matches.length) return;
    select(matches[next % matches.length]);
    center(matches[next % matches.length]);
    next += 1;
  });
  byId("expand").addEventListener("click", () => { state.closed.clear(); state.shut.clear(); whole(); });
  byId("collapse").addEventListener("click", () => { for (const node of nodes.values()) if (node.below.length) state.closed.add(node.id); whole(); });
  byId("fit").addEventListener("click", whole);
  byId("zoom-in").addEventListener("click", () => zoomBy(1.4));
  byId("zoom-out").addEventListener("click", () => zoomBy(1 / 1.4));
  byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
  byId("threshold").addEventListener("input", (event) => { state.threshold = Number(event.target.value) / 100; byId("least").textContent = `${event.target.value} %`; dress(); });
  byId("colour").addEventListener("change", (event) => { state.colour = event.target.value; buildLegend(); dress(); });

  // Files to take away
  function save(name, url) {
    const link = make("a", null, { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
  }
  function picture() {
    const copy = svgOf("svg", { xmlns: "http://www.w3.org/2000/svg", width: Math.ceil(drawn.right + 16), height: Math.ceil(drawn.bottom + 16), "font-family": "sans-serif" });
    const style = getComputedStyle(document.documentElement);
    const plain = canvas.cloneNode(true);
    plain.setAttribute("transform", "translate(8,8)");
    for (const one of plain.querySelectorAll(".hit, title")) one.remove();
    const css = "text{font-size:12px;fill:FORE} g.edge path.line{fill:none;stroke-width:1.8px} g.edge text{font-size:11px} circle{fill:BACK;stroke:FORE} rect{fill:none;stroke:LINE} g.edge.off{display:none} g.edge.faint{opacity:.08}";
    copy.append(svgOf("style", {}, css.replace(/FORE/g, style.getPropertyValue("--fore")).replace(/BACK/g, style.getPropertyValue("--back")).replace(/LINE/g, style.getPropertyValue("--line"))));
    const back = svgOf("rect", { width: "100%", height: "100%" });
    back.style.fill = style.getPropertyValue("--back");
    copy.append(back, plain);
    return new XMLSerializer().serializeToString(copy).replace(/var\((--[a-z-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  }
  const asUrl = (text, type) => `data:${type};charset=utf-8,${encodeURIComponent(text)}`;
  byId("as-svg").addEventListener("click", () => save("model_tree.svg", asUrl(picture(), "image/svg+xml")));
  byId("as-png").addEventListener("click", () => {
    const image = new Image();
    image.addEventListener("load", () => {
      const scale = Math.min(2, 8000 / Math.max(image.width, image.height)), sheet = make("canvas");
      sheet.width = Math.ceil(scale * image.width);
      sheet.height = Math.ceil(scale * image.height);
      sheet.getContext("2d").drawImage(image, 0, 0, sheet.width, sheet.height);
      save("model_tree.png", sheet.toDataURL("image/png"));
    });
    image.src = asUrl(picture(), "image/svg+xml");
  });
  byId("as-csv").addEventListener("click", () => {
    // A cell that a spreadsheet would take for a formula begins with an apostrophe.
    const cell = (value) => `"${String(value === undefined || value === null ? "" : value).replace(/^([=+@\t\r-])/, "'$1").replace(/"/g, '""')}"`;
    const columns = ["parent", "child", "kind", "adjacency", "arrow", "direction", "coefficient", "summary"];
    save("edges.csv", asUrl([columns, ...data.edges.map((edge) => columns.map((key) => edge[key]))].map((line) => line.map(cell).join(",")).join("\r\n"), "text/csv"));
  });

  // Tables can be sorted, and a row of the edges shows its evidence
  const numberOf = new Map();
  for (const one of document.querySelectorAll("#claims, #contradictions, #undeclared")) {
    for (const line of one.tBodies[0].rows) {
      const id = stands.get(line.cells[0].textContent);
      if (id === undefined) continue;
      line.className = "link";
      line.tabIndex = 0;
      line.addEventListener("click", () => select(id));
      line.addEventListener("keydown", (event) => { if (event.key === "Enter") select(id); });
    }
  }
  for (const one of document.querySelectorAll("#edge-table, #claims, #files")) {
    const body = one.tBodies[0];
    if (one.id === "edge-table") {
      [...body.rows].forEach((line, k) => { line.className = "link"; line.tabIndex = 0; numberOf.set(line, k); });
      const open = (event) => {
        const edge = data.edges[numberOf.get(event.target.closest("tr"))];
        if (event.type === "click" || event.key === "Enter") select(edge.child, edge);
      };
      body.addEventListener("click", open);
      body.addEventListener("keydown", open);
    }
    [...one.tHead.rows[0].cells].forEach((cell, column) => {
      const button = make("button", cell.textContent, { type: "button" });
      let up = false;
      button.addEventListener("click", () => {
        up = !up;
        const key = (line) => line.cells[column].textContent;
        const order = [...body.rows].sort((a, b) => (up ? 1 : -1) * key(a).localeCompare(key(b), "en", { numeric: true }));
        body.append(...order);
      });
      cell.replaceChildren(button);
    });
  }

  // Distances, ordered by tree
  let heat = 0;
  let cell = [0, 0];
  const unpack = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  data.heat.forEach((one) => { one.values = unpack(one.cells); });
  const distanceOf = (code) => (code === 255 ? "cannot be compared" : code === 0 ? "0" : (10 ** (data.heat_low + (code - 1) / 253 * (data.heat_high - data.heat_low))).toPrecision(2));
  function say() {
    const one = data.heat[heat];
    const [i, j] = cell;
    byId("cell").textContent = `${one.models[i]} \u2013 ${one.models[j]}: ${distanceOf(one.values[i * one.models.length + j])}`;
  }
  function buildHeat() {
    const view = byId("view-distances");
    view.append(make("h2", "Distances, models in the order of their trees"));
    if (!data.heat.length) { view.append(make("p", "There are no two models that can be compared, or too many for one picture.")); return; }
    const pick = make("select", null, { "aria-label": "Group of models" });
    data.heat.forEach((one, at) => pick.append(make("option", `${one.models.length} models: ${one.group}`, { value: at })));
    pick.addEventListener("change", () => { heat = Number(pick.value); cell = [0, 0]; drawHeat(); });
    if (data.heat.length > 1) view.append(pick);
    view.append(make("p", "Move over the picture, or use the arrow keys in it.", { id: "cell", role: "status" }));
    const picture = make("canvas", null, { id: "heat", tabindex: 0, role: "img", "aria-label": "Heatmap of distances between models" });
    picture.addEventListener("mousemove", (event) => {
      const n = data.heat[heat].models.length;
      const box = picture.getBoundingClientRect();
      cell = [Math.min(n - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * n))), Math.min(n - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * n)))];
      say();
    });
    picture.addEventListener("click", () => { const id = data.heat[heat].models[cell[0]]; if (nodes.has(id)) select(id); });
    picture.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const n = data.heat[heat].models.length;
      cell = cell.map((value, at) => Math.min(n - 1, Math.max(0, value + step[at])));
      say();
    });
    view.append(picture, make("p", "Dark: near. Light: far. Distance over the norm of the weights, on a logarithmic scale."));
  }
  function drawHeat() {
    const picture = byId("heat");
    if (!picture || byId("view-distances").hidden) return;
    const { models, values } = data.heat[heat];
    const n = models.length;
    picture.width = n;
    picture.height = n;
    const size = Math.max(320, Math.min(760, 14 * n));
    picture.style.width = `${size}px`;
    picture.style.height = `${size}px`;
    const context = picture.getContext("2d");
    const image = context.createImageData(n, n);
    const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
    const shade = (share) => {
      const at = Math.min(stops.length - 2, Math.floor(share * (stops.length - 1))), rest = share * (stops.length - 1) - at;
      return stops[at].map((value, k) => Math.round(value + rest * (stops[at + 1][k] - value)));
    };
    const ramp = Array.from({ length: 256 }, (_, code) => (code === 255 ? [128, 128, 128] : shade(code / 254)));
    values.forEach((code, at) => image.data.set([...ramp[code], 255], 4 * at));
    context.putImageData(image, 0, 0);
  }

  buildLegend();
  buildHeat();
  setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches);
  show("summary");
  document.documentElement.classList.remove("loading");
  follow();
  window.addEventListener("hashchange", follow);
  window.addEventListener("resize", moveMap);
  document.documentElement.dataset.ready = "true";
})();
