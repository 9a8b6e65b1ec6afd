"use strict";
// Text from models only ever becomes text: nothing below writes HTML.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const nodes = new Map(data.nodes.map((node) => [node.id, { ...node, into: [], below: [] }]));
  const edges = data.edges;
  for (const edge of edges) {
    nodes.get(edge.child).into.push(edge);
  }
  // A merge hangs under the first of its parents; the others get a line of their own.
  for (const node of nodes.values()) {
    if (node.into.length) nodes.get(node.into[0].parent).below.push(node);
  }
  const kindName = (edge) => edge.kind || "hidden";
  const kindColour = (edge) => `var(--${kindName(edge)})`;
  const label = (node) => (node.hidden ? "hidden" : [node.id, ...(node.aliases || [])].join(" = "));
  const number = (value, digits = 2) => (value === null || value === undefined ? "\u2013" : Number(value).toFixed(digits));
  const signed = (value, digits = 2) => (value === null || value === undefined ? "\u2013" : (value > 0 ? "+" : "") + Number(value).toFixed(digits));

  byId("title").textContent = data.title;
  byId("counts").textContent = data.counts;

  // Theme: the system's, until somebody says otherwise.
  const setTheme = (dark) => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    byId("theme").setAttribute("aria-pressed", String(dark));
    byId("theme").textContent = dark ? "Light" : "Dark";
    drawHeat();
  };

  // Tabs
  const views = [["tree", "Tree"], ["edges", "Edges"], ["distances", "Distances"]];
  if (data.audit) views.push(["audit", "Audit"]);
  const gaps = data.left_out.length + data.not_read.length;
  if (gaps || data.notes.length) views.push(["left", `Left out (${gaps})`]);
  const tabs = document.querySelector(".tabs");
  const show = (name) => {
    for (const [view] of views) {
      byId(`view-${view}`).hidden = view !== name;
      byId(`tab-${view}`).setAttribute("aria-selected", String(view === name));
      byId(`tab-${view}`).tabIndex = view === name ? 0 : -1;
    }
    if (name === "distances") drawHeat();
  };
  for (const [view, title] of views) {
    const tab = document.createElement("button");
    Object.assign(tab, { id: `tab-${view}`, type: "button", textContent: title });
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", `view-${view}`);
    tab.addEventListener("click", () => show(view));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const at = (views.findIndex(([one]) => one === view) + step + views.length) % views.length;
      show(views[at][0]);
      byId(`tab-${views[at][0]}`).focus();
    });
    tabs.append(tab);
  }

  // Small helpers that make elements out of text
  const make = (name, text, attributes = {}) => {
    const element = document.createElement(name);
    if (text !== undefined && text !== null) element.textContent = text;
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const row = (cells, kind = "td", numbers = []) => {
    const line = make("tr");
    cells.forEach((cell, at) => {
      const element = make(kind, cell instanceof Node ? null : cell);
      if (cell instanceof Node) element.append(cell);
      if (numbers.includes(at)) element.className = "number";
      if (kind === "th") element.setAttribute("scope", "col");
      line.append(element);
    });
    return line;
  };
  const table = (head, rows, numbers = []) => {
    const result = make("table");
    const top = make("thead");
    top.append(row(head, "th", numbers));
    const body = make("tbody");
    for (const cells of rows) body.append(row(cells, "td", numbers));
    result.append(top, body);
    return result;
  };

  // The tree
  const legend = byId("legend");
  const kinds = [...new Set(edges.map(kindName))].sort();
  for (const kind of kinds) {
    const item = make("li");
    const line = d3.create("svg").attr("aria-hidden", "true");
    line.append("line").attr("x1", 0).attr("x2", 26).attr("y1", 4).attr("y2", 4).attr("stroke", `var(--${kind})`).attr("stroke-width", 3)
      .attr("stroke-dasharray", kind === "hidden" ? "3 3" : null);
    item.append(line.node(), kind);
    legend.append(item);
  }
  if (edges.some((edge) => edge.direction === "unknown")) legend.append(make("li", "dashed: which came first is not known"));
  legend.append(make("li", "thicker: more probable"));

  const svg = d3.select("#tree").append("svg").attr("role", "tree").attr("aria-label", "Model tree");
  const canvas = svg.append("g");
  const lines = canvas.append("g");
  const dots = canvas.append("g");
  const zoom = d3.zoom().scaleExtent([0.03, 4]).on("zoom", () => canvas.attr("transform", d3.event.transform));
  svg.call(zoom).on("dblclick.zoom", null);
  const root = d3.hierarchy({ id: null, below: [...nodes.values()].filter((node) => !node.into.length) }, (node) => node.below);
  root.each((one) => { one.all = one.children; });
  const place = new Map();
  root.each((one) => { if (one.data.id !== null) place.set(one.data.id, one); });
  const rowHeight = 21;
  let columnWidth = 150;
  let chosen = null;
  let matches = [];
  const widest = d3.max(data.nodes, (node) => Math.min(40, label(node).length)) || 10;
  columnWidth = Math.max(130, Math.min(300, 60 + 6.6 * widest));

  const widthOf = (edge) => 1 + 3.5 * (edge.adjacency === undefined ? 0.5 : edge.adjacency);
  const bend = (from, to) => `M${from.y},${from.x}C${(from.y + to.y) / 2},${from.x} ${(from.y + to.y) / 2},${to.x} ${to.y},${to.x}`;

  function draw() {
    d3.tree().nodeSize([rowHeight, columnWidth]).separation((a, b) => (a.parent === b.parent ? 1 : a.depth === 1 ? 1.6 : 1.1))(root);
    const visible = depthFirst();
    const shown = new Set(visible.map((one) => one.data.id));
    const links = edges.filter((edge) => shown.has(edge.parent) && shown.has(edge.child));
    for (const [kind, extra] of [["edge", true], ["hit", false]]) {
      const paths = lines.selectAll(`path.${kind}`).data(links, (edge) => `${edge.parent}\n${edge.child}`);
      paths.exit().remove();
      const all = paths.enter().append("path").attr("class", kind).merge(paths);
      all.attr("d", (edge) => bend(place.get(edge.parent), place.get(edge.child)));
      if (extra) {
        all.style("stroke", kindColour).style("stroke-width", (edge) => `${widthOf(edge)}px`)
          .style("stroke-dasharray", (edge) => (edge.hidden ? "3 4" : edge.direction === "unknown" ? "7 5" : null));
      } else {
        all.on("click", (edge) => select(edge.child));
        all.filter(function () { return !this.firstChild; }).append("title").text((edge) => `${edge.parent} \u2192 ${edge.child}: ${edge.words}`);
      }
    }
    const groups = dots.selectAll("g.node").data(visible, (one) => one.data.id);
    groups.exit().remove();
    const entered = groups.enter().append("g").attr("class", "node").attr("role", "treeitem").attr("tabindex", -1);
    entered.append("circle").attr("r", 5);
    entered.append("text");
    entered.append("title").text((one) => label(one.data));
    entered.on("click", (one) => { select(one.data.id); toggle(one, false); }).on("dblclick", (one) => toggle(one, true)).on("keydown", keys);
    const all = entered.merge(groups).order();
    all.attr("transform", (one) => `translate(${one.y},${one.x})`)
      .attr("aria-level", (one) => one.depth).attr("aria-expanded", (one) => (one.all ? String(Boolean(one.children)) : null))
      .attr("aria-selected", (one) => String(one.data.id === chosen))
      .attr("aria-label", (one) => `${label(one.data)}${one.data.into.map((edge) => `, from ${edge.parent}: ${edge.words}`).join("")}`);
    all.classed("closed", (one) => Boolean(one.all && !one.children)).classed("hidden-model", (one) => Boolean(one.data.hidden))
      .classed("chosen", (one) => one.data.id === chosen).classed("match", (one) => matches.includes(one.data.id))
      .classed("faint", (one) => matches.length > 0 && !matches.includes(one.data.id));
    // Inner models are named above the edge that leads to them, leaves to their right.
    all.select("text").attr("x", (one) => (one.children ? -3 : 9)).attr("dy", (one) => (one.children ? "-0.6em" : "0.34em"))
      .attr("text-anchor", (one) => (one.children ? "end" : "start"))
      .text((one) => {
        const text = label(one.data);
        const count = one.all && !one.children ? ` (+${one.count})` : "";
        return (text.length > 40 ? `${text.slice(0, 18)}\u2026${text.slice(-20)}` : text) + count;
      });
    all.attr("tabindex", (one) => (one.data.id === (chosen || (visible[0] && visible[0].data.id)) ? 0 : -1));
  }
  root.eachAfter((one) => { one.count = (one.all || []).reduce((sum, child) => sum + child.count + 1, 0); });

  function depthFirst() {
    const order = [];
    root.eachBefore((one) => { if (one.data.id !== null) order.push(one); });
    return order;
  }
  function toggle(one, always) {
    if (!always || !one.all) return;
    one.children = one.children ? null : one.all;
    draw();
  }
  const elementOf = (id) => dots.selectAll("g.node").filter((one) => one.data.id === id).node();
  function keys(one) {
    const event = d3.event;
    const order = depthFirst();
    const at = order.indexOf(one);
    let to = null;
    if (event.key === "ArrowDown") to = order[at + 1];
    else if (event.key === "ArrowUp") to = order[at - 1];
    else if (event.key === "Home") to = order[0];
    else if (event.key === "End") to = order[order.length - 1];
    else if (event.key === "ArrowLeft") { if (one.children) toggle(one, true); else if (one.parent && one.parent.data.id !== null) to = one.parent; }
    else if (event.key === "ArrowRight") { if (one.all && !one.children) toggle(one, true); else if (one.children) to = one.children[0]; }
    else if (event.key === "Enter" || event.key === " ") select(one.data.id);
    else return;
    event.preventDefault();
    if (to) { center(to); elementOf(to.data.id).focus(); }
  }
  function center(one) {
    const box = svg.node().getBoundingClientRect();
    const now = d3.zoomTransform(svg.node());
    const [x, y] = now.apply([one.y, one.x]);
    if (x > 40 && x < box.width - 120 && y > 20 && y < box.height - 20) return;
    svg.call(zoom.translateTo, one.y + 60, one.x);
  }
  function reveal(id) {
    for (let above = place.get(id).parent; above; above = above.parent) if (above.all && !above.children) above.children = above.all;
  }
  function fit() {
    const box = svg.node().getBoundingClientRect();
    const visible = root.descendants().filter((one) => one.data.id !== null);
    if (!visible.length || !box.width) return;
    const [top, bottom] = d3.extent(visible, (one) => one.x);
    const [left, right] = d3.extent(visible, (one) => one.y);
    const scale = Math.min(1.2, box.width / (right - left + columnWidth * 1.9), box.height / (bottom - top + 50));
    const used = Math.max(0.03, scale);
    svg.call(zoom.transform, d3.zoomIdentity.translate(20 + 0.75 * columnWidth * used - left * used, box.height / 2 - used * (top + bottom) / 2).scale(used));
  }
  function start() {
    // Few models: all of them. Many: the first ones, at a size that can be read.
    if (nodes.size <= 60) { fit(); return; }
    const first = d3.min(root.descendants().filter((one) => one.data.id !== null), (one) => one.x);
    svg.call(zoom.transform, d3.zoomIdentity.translate(40 + 0.5 * columnWidth - columnWidth, 24 - first));
  }

  // Evidence
  function bars(edge) {
    const box = make("div");
    for (const [name, value] of [["edge", edge.adjacency], ["arrow, given the edge", edge.arrow]]) {
      if (value === undefined) continue;
      const line = make("div", null, { class: "bar" });
      const track = make("span", null, { class: "track" });
      const fill = make("i");
      fill.style.width = `${100 * value}%`;
      track.append(fill);
      line.append(make("span", name), track, make("span", number(value)));
      box.append(line);
    }
    return box;
  }
  function layerChart(layers, names) {
    const width = 360;
    const height = 12 * Math.min(layers.length, 24) + 26;
    const shownLayers = layers.length <= 24 ? layers : layers.slice().sort((a, b) => b[1] - a[1]).slice(0, 24);
    const chart = d3.create("svg").attr("viewBox", `0 0 ${width} ${height}`).attr("role", "img")
      .attr("aria-label", "Newness of what changed in each matrix; the table below has the numbers").style("width", "100%");
    const x = d3.scaleLinear().domain([-1, 1]).range([150, width - 8]);
    chart.append("line").attr("x1", x(0)).attr("x2", x(0)).attr("y1", 0).attr("y2", height - 20).style("stroke", "var(--soft)");
    shownLayers.forEach((layer, at) => {
      const y = 12 * at + 2;
      chart.append("text").attr("x", 145).attr("y", y + 8).attr("text-anchor", "end").style("font-size", "9px").style("fill", "var(--fore)").text(names[layer[0]].slice(-26));
      chart.append("rect").attr("x", Math.min(x(0), x(layer[3]))).attr("width", Math.max(1, Math.abs(x(layer[3]) - x(0)))).attr("y", y).attr("height", 9)
        .style("fill", layer[3] >= 0 ? "var(--fine-tune)" : "var(--merge)");
    });
    for (const [value, text, anchor] of [[-1, "was there before", "start"], [1, "new in the child", "end"]]) {
      chart.append("text").attr("x", x(value)).attr("y", height - 6).attr("text-anchor", anchor).style("font-size", "9px").style("fill", "var(--soft)").text(text);
    }
    return chart.node();
  }
  function describe(edge) {
    const box = make("section");
    const title = make("h2", `${nodes.get(edge.parent).hidden ? "hidden parent" : edge.parent} \u2192 ${label(nodes.get(edge.child))}`);
    const badge = make("span", kindName(edge), { class: "badge" });
    badge.style.background = kindColour(edge);
    box.append(title, badge, make("p", edge.words), bars(edge));
    if (edge.wrong_if && edge.wrong_if.length) {
      box.append(make("h3", "For this to be wrong"));
      const list = make("ul");
      for (const words of edge.wrong_if) list.append(make("li", words));
      box.append(list);
    }
    const seen = edge.evidence;
    if (!seen) return box;
    box.append(make("h3", "Figures"));
    const facts = [
      ["relatedness z (0 \u00b1 1 if unrelated)", number(seen.relatedness, 1)],
      ["distance (0 equal, about 1.4 unrelated)", seen.distance === null ? "\u2013" : Number(seen.distance).toPrecision(3)],
      ["entries compared", `${number(100 * seen.compared, 0)} %`],
    ];
    if (seen.newness !== undefined) facts.push(
      ["newness, and t over layers", `${signed(seen.newness, 3)}, ${signed(seen.newness_t, 1)}`],
      ["rounding, log likelihood ratio", seen.rounding === null ? "\u2013" : signed(seen.rounding, 1)],
      ["equal entries", `${number(100 * seen.equal, 1)} %`],
      ["matrices that differ", `${seen.layers_changed} of ${seen.layers_compared}`]);
    for (const [name, value] of Object.entries(seen.terms || {})) if (value !== null && Math.abs(value) >= 0.005)
      facts.push([name === "log weight" ? "log weight of the edge" : `log weight, ${name === "between" && seen.third ? `${seen.third} between` : name}`, signed(value, 2)]);
    for (const [key, value] of Object.entries(edge.attributes || {})) facts.push([key.replace(/_/g, " "), typeof value === "object" ? JSON.stringify(value) : String(value)]);
    box.append(table(["figure", "value"], facts, [1]));
    if (seen.layers && seen.layers.length) {
      box.append(make("h3", "Newness by matrix"), layerChart(seen.layers, data.layers));
      const more = make("details");
      more.append(make("summary", `All ${seen.layers.length} matrices`));
      more.append(table(["matrix", "change %", "rank", "newness", "rounding"],
        seen.layers.map((one) => [data.layers[one[0]], number(100 * one[1], 1), one[2] < 0 ? "full" : String(one[2]), signed(one[3]), signed(one[4], 1)]), [1, 2, 3, 4]));
      box.append(more);
    }
    return box;
  }
  function select(id) {
    chosen = id;
    const node = nodes.get(id);
    const panel = byId("details");
    panel.replaceChildren();
    if (!node.into.length) panel.append(make("h2", label(node)), make("p", node.hidden
      ? "A model that is not in this collection, from which those below must have come."
      : `No parent in this collection. Probability of being the root of its tree: ${number(node.root)}.`));
    node.into.forEach((edge) => panel.append(describe(edge)));
    if (node.aliases && node.aliases.length) panel.append(make("p", `Copies, equal in every tensor: ${node.aliases.join(", ")}`));
    panel.append(make("p", node.group));
    for (const verdict of (data.audit ? data.audit.verdicts : []).filter((one) => one.model === id || (node.aliases || []).includes(one.model))) {
      panel.append(make("p", `Claim in ${verdict.file}: ${verdict.says}. ${verdict.verdict}: ${verdict.reason}`, { class: verdictClass(verdict.verdict) }));
    }
    panel.scrollTop = 0;
    draw();
  }

  // Search
  function search() {
    const words = byId("search").value.trim().toLowerCase();
    matches = !words ? [] : [...nodes.values()].filter((node) => label(node).toLowerCase().includes(words)
      || node.into.some((edge) => edge.words.toLowerCase().includes(words))).map((node) => node.id);
    byId("found").textContent = words ? `${matches.length} found` : "";
    for (const id of matches) reveal(id);
    draw();
    if (matches.length) center(place.get(matches[0]));
  }
  let next = 0;
  byId("search").addEventListener("input", () => { next = 0; search(); });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !matches.length) return;
    select(matches[next % matches.length]);
    center(place.get(matches[next % matches.length]));
    next += 1;
  });
  byId("expand").addEventListener("click", () => { root.each((one) => { if (one.all) one.children = one.all; }); place.forEach((one) => { if (one.all) one.children = one.all; }); draw(); });
  byId("collapse").addEventListener("click", () => { place.forEach((one) => { if (one.all && one.depth >= 1) one.children = null; }); draw(); start(); });
  byId("fit").addEventListener("click", fit);
  byId("zoom-in").addEventListener("click", () => svg.call(zoom.scaleBy, 1.4));
  byId("zoom-out").addEventListener("click", () => svg.call(zoom.scaleBy, 1 / 1.4));
  byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));

  // Edges as a table that can be sorted
  const columns = [["parent", "parent"], ["child", "child"], ["kind", "kind"], ["adjacency", "edge"], ["arrow", "arrow"], ["direction", "direction"]];
  let sorted = "child";
  let up = true;
  function drawEdges() {
    const value = (edge) => (edge[sorted] === undefined || edge[sorted] === null ? "" : edge[sorted]);
    const order = edges.slice().sort((a, b) => (up ? 1 : -1) * d3.ascending(value(a), value(b)));
    const view = byId("view-edges");
    view.replaceChildren();
    const head = columns.map(([key, title]) => {
      const button = make("button", title + (key === sorted ? (up ? " \u25b2" : " \u25bc") : ""), { type: "button" });
      button.addEventListener("click", () => { up = key === sorted ? !up : true; sorted = key; drawEdges(); });
      return button;
    });
    const body = table(head, order.map((edge) => [nodes.get(edge.parent).hidden ? "hidden parent" : edge.parent, label(nodes.get(edge.child)), kindName(edge), number(edge.adjacency), number(edge.arrow), edge.direction || ""]), [3, 4]);
    [...body.tBodies[0].rows].forEach((line, at) => {
      line.className = "link";
      line.tabIndex = 0;
      line.addEventListener("click", () => select(order[at].child));
      line.addEventListener("keydown", (event) => { if (event.key === "Enter") select(order[at].child); });
    });
    view.append(make("h2", `${edges.length} edges`), body);
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
    const ramp = d3.range(256).map((code) => (code === 255 ? d3.rgb(128, 128, 128) : d3.rgb(d3.interpolateViridis(code / 254))));
    values.forEach((code, at) => { const c = ramp[code]; image.data.set([c.r, c.g, c.b, 255], 4 * at); });
    context.putImageData(image, 0, 0);
  }

  // Audit, and what was left out
  const verdictClass = (verdict) => (verdict === "agrees" ? "agrees" : verdict === "contradicted" ? "contradicted" : "undecided");
  function buildAudit() {
    if (!data.audit) return;
    const view = byId("view-audit");
    view.append(make("h2", "What the models claim, and what the weights say"));
    view.append(data.audit.verdicts.length ? table(["model", "says", "in", "verdict", "the weights"], data.audit.verdicts.map((one) =>
      [one.model, one.says + (one.relation ? ` (${one.relation})` : ""), one.file, make("span", one.verdict, { class: verdictClass(one.verdict) }), one.reason]))
      : make("p", "No model claims anything."));
    const silent = Object.entries(data.audit.undeclared);
    if (silent.length) view.append(make("h3", "Nothing is claimed, but the weights name a parent"), table(["model", "the weights"], silent));
  }
  const left = byId("view-left");
  if (data.left_out.length) left.append(make("h2", "Left out"), table(["model", "why"], data.left_out));
  if (data.not_read.length) left.append(make("h2", "Found, but not read"), table(["file or folder", "why"], data.not_read));
  for (const note of data.notes) left.append(make("p", note));

  draw();
  drawEdges();
  buildHeat();
  buildAudit();
  setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches);
  show("tree");
  start();
  window.addEventListener("resize", () => { if (nodes.size <= 60) fit(); });
  document.documentElement.dataset.ready = "true";
})();
