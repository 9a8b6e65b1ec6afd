"use strict";
// The drawing of all families. Places come from the layout that made them (mother/graph/layered.py); what is closed
// is taken out, and the rows that it leaves empty with it. Text from models only ever becomes text.
const Drawing = (function () {
  const ROW = 22, CHANNEL = 76, GAP = 16, PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999", "#b8a800"];
  const DASHES = { lora: "9 3", cast: "2 3", prune: "6 3 2 3", quantize: "4 3", merge: "12 3 2 3", hidden: "1 4" };
  // The colours of verdicts; all else is coloured by the palette, in the order of its names.
  const VERDICTS = { agrees: "#009e73", contradicted: "#d55e00", "not confirmed": "#e6b800", "parent not in the collection": "#56b4e9", "declares nothing": "#999999", "not audited": "#999999" };
  const KNOWN = 0.75, WORDS = [0.25, KNOWN, 0.95];  // where an arrow counts as known; where a word of certainty begins
  const svgOf = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const LIKE = { adapter: "lora", dora: "lora" };
  // The word by which a kind is drawn, as base_kind in mother/graph/exports.py.
  const kindOf = (edge) => { const word = (edge.kind || "hidden").split(/[\s():,]/)[0].toLowerCase(); return LIKE[word] || word; };
  // The name of its colour: that of hidden ones for a kind that is not known.
  const COLOURED = new Set(["fine-tune", "hidden", ...Object.keys(DASHES)]);
  const colourOf = (edge) => (COLOURED.has(kindOf(edge)) ? kindOf(edge) : "hidden");
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = "12px system-ui, 'DejaVu Sans', sans-serif";
  const widths = new Map();
  const widthOf = (text) => {
    if (!widths.has(text)) widths.set(text, 1.04 * ruler.measureText(text).width);
    return widths.get(text);
  };
  const titleOf = (family, nodes) => `Family of ${nodes.get(family.name).label}: ${family.order.length} models`;

  // What is shown of a family: its models but those that count most with a closed one, by rows without the empty ones.
  function shownOf(family, nodes, closed) {
    const gone = new Set();
    const order = family.order;
    for (const id of order) {
      const [main] = nodes.get(id).into;
      if (main && (gone.has(main.parent) || closed.has(main.parent))) gone.add(id);
    }
    const visible = order.filter((id) => !gone.has(id));
    const rows = [];
    for (const id of visible) rows.push(family.place.get(id)[1]);
    for (const bend of family.bends) if (!gone.has(bend[0]) && !gone.has(bend[1]) && !closed.has(bend[0])) for (const at of bend.slice(2)) rows.push(at[1]);
    const sorted = [...new Set(rows)].sort((a, b) => a - b);
    const at = new Map();
    let y = 0;
    sorted.forEach((row, k) => { if (k) y += Math.min(1, row - sorted[k - 1]); at.set(row, y); });
    return { visible, row: (one) => at.get(one), height: y + 1 };
  }

  function pathOf(points, ends) {
    let [x, y] = points[0];
    let path = `M${x},${y}H${ends[0]}`;
    let at = ends[0];
    for (let k = 1; k < points.length; k++) {
      const [to, row] = points[k], middle = (at + to) / 2;
      path += `C${middle},${y} ${middle},${row} ${to},${row}`;
      y = row;
      if (k < points.length - 1) { at = ends[k]; path += `H${at}`; }
    }
    return path;
  }

  // Boxes that are taken, sorted into cells so that few are looked at.
  function board() {
    const cells = new Map(), WIDE = 160, HIGH = 60;
    const near = function* ([left, top, right, bottom]) {
      for (let i = Math.floor(left / WIDE); i <= Math.floor(right / WIDE); i++) for (let j = Math.floor(top / HIGH); j <= Math.floor(bottom / HIGH); j++) yield `${i} ${j}`;
    };
    return {
      take(box) { for (const key of near(box)) cells.set(key, [...(cells.get(key) || []), box]); },
      free(box) {
        for (const key of near(box)) for (const other of cells.get(key) || []) if (box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]) return false;
        return true;
      },
    };
  }

  // Places on a line, from the child to the parent: on its bends, and inside the columns that it passes.
  function* along(points, ends) {
    for (let k = points.length - 1; k > 0; k--) {
      const [to, row] = points[k], at = ends[k - 1], from = points[k - 1][1];
      for (let t = 0.9; t > 0; t -= 0.1) {
        const s = 1 - t, middle = (at + to) / 2;
        yield [at * s ** 3 + 3 * middle * s * t + to * t ** 3, from * (s ** 3 + 3 * s * s * t) + row * (t ** 3 + 3 * t * t * s)];
      }
      for (let x = ends[k - 1] - 4; x > points[k - 1][0]; x -= 16) yield [x, from];
    }
  }

  // The share of a parent stands on its line where nothing else is written, as near to the child as can be; if there is
  // no such place it is told with the evidence alone.
  function placeShare(edge, element, points, ends, colour, taken) {
    const text = Number(edge.coefficient).toPrecision(2), half = widthOf(text) / 2 + 2, tip = points[points.length - 1][0];
    for (const [x, y] of along(points, ends)) {
      const box = [x - half, y - 8, x + half, y + 8];
      if (box[2] > tip - 10 || box[0] < points[0][0] || !taken.free(box)) continue;
      taken.take(box);
      element.insertBefore(svgOf("text", { class: "share", x, y: y + 4, fill: colour, "text-anchor": "middle" }, text), element.lastChild);
      return;
    }
  }

  function edgeElement(edge, points, ends, colour, doubt) {
    const known = edge.arrow === undefined || edge.arrow >= KNOWN, [x, y] = points[points.length - 1];
    const group = svgOf("g", { class: `edge kind-${kindOf(edge)}`, opacity: (0.3 + 0.7 * (edge.adjacency === undefined ? 1 : edge.adjacency)).toFixed(2) });
    points[points.length - 1] = [known ? x - 7 : x, y];
    const path = pathOf(points, ends), dash = DASHES[kindOf(edge)];
    group.append(svgOf("path", { class: "line", d: path, stroke: colour, ...(dash ? { "stroke-dasharray": dash } : {}) }));
    if (known) group.append(svgOf("path", { class: "head", d: `M${x - 8},${y - 4}L${x},${y}L${x - 8},${y + 4}Z`, fill: colour }));
    if (doubt) group.append(svgOf("text", { class: "doubt", x: x - 16, y: y - 4, fill: colour }, "?"));
    const hit = svgOf("path", { class: "hit", d: path });
    hit.append(svgOf("title", {}, `${edge.parent} \u2192 ${edge.child}: ${edge.words}`));
    group.append(hit);
    return group;
  }

  function nodeElement(node, x, y, isClosed) {
    const group = svgOf("g", { class: "node", transform: `translate(${x},${y})`, role: "treeitem", tabindex: -1 });
    group.classList.toggle("hidden-model", Boolean(node.hidden));
    group.classList.toggle("closed", isClosed);
    group.classList.toggle("contradicted", node.verdict === "contradicted");
    group.append(svgOf("circle", { r: 5 }));
    group.append(svgOf("text", { x: 10, y: 4 }, node.label));
    const chips = [];
    if (node.aliases && node.aliases.length) chips.push(`\u00d7${1 + node.aliases.length}`);
    if (isClosed) chips.push(`+${node.count}`);
    if (node.verdict === "contradicted") chips.push("\u2717");
    if (chips.length) group.append(svgOf("text", { class: "chip", x: 17 + widthOf(node.label), y: 4 }, chips.join(" ")));
    group.append(svgOf("title", {}, [node.id, ...(node.aliases || [])].join("\n")));
    return group;
  }

  // What is shown of a family, where its columns begin, and how much room its frame takes.
  function blockOf(family, nodes, closed) {
    const shown = shownOf(family, nodes, closed), wide = [];
    for (const id of shown.visible) {
      const [column] = family.place.get(id);
      wide[column] = Math.max(wide[column] || 0, GAP + widthOf(nodes.get(id).label) + 40);
    }
    const starts = [16];
    for (const width of wide) starts.push(starts[starts.length - 1] + (width || 0) + CHANNEL);
    const width = Math.max(starts[starts.length - 1] - CHANNEL + 16, 30 + 1.2 * widthOf(titleOf(family, nodes)));
    return { family, shown, starts, width, height: shown.height * ROW + 38 };
  }

  // One family at its place; fills `out` with the elements of models and edges.
  function drawFamily(canvas, block, nodes, state, left, top, out) {
    const { family, shown } = block, there = new Set(shown.visible), starts = block.starts.map((x) => x + left);
    const group = svgOf("g", { class: "family" }), lines = svgOf("g", {}), dots = svgOf("g", {});
    group.append(svgOf("rect", { x: left, y: top, width: block.width, height: block.height, rx: 8 }), lines, dots);
    const y = (row) => top + 40 + ROW * shown.row(row);
    const taken = board(), shares = [];
    for (const id of shown.visible) {
      const [column, row] = family.place.get(id), node = nodes.get(id);
      const element = nodeElement(node, starts[column] + 6, y(row), state.closed.has(id) && node.below.length > 0);
      out.nodes.set(id, element);
      out.at.set(id, [starts[column], y(row)]);
      dots.append(element);
      taken.take([starts[column], y(row) - 9, starts[column] + 20 + widthOf(node.label) + 30, y(row) + 9]);
      let doubted = false;
      for (const edge of node.into) {
        if (!there.has(edge.parent) || state.closed.has(edge.parent)) continue;
        const [first, from] = family.place.get(edge.parent), parent = nodes.get(edge.parent);
        const chip = (parent.aliases && parent.aliases.length ? 26 : 0) + (parent.verdict === "contradicted" ? 16 : 0);
        const bends = (family.ways.get(`${edge.parent}\n${id}`) || []).map(([at, bent]) => [starts[at], y(bent)]);
        const points = [[starts[first] + GAP + widthOf(parent.label) + 6 + chip, y(from)], ...bends, [starts[column] - 2, y(row)]];
        const ends = [];
        for (let k = first; k < column; k++) ends.push(starts[k + 1] - CHANNEL);
        const doubt = !doubted && (edge.arrow < KNOWN || edge.adjacency < KNOWN), colour = state.edgeColour(edge);
        if (doubt) taken.take([starts[column] - 18, y(row) - 17, starts[column] - 8, y(row) - 1]);
        doubted = doubted || doubt;
        const drawn = edgeElement(edge, points, ends, colour, doubt);
        if (edge.coefficient !== undefined && edge.coefficient !== null) shares.push([edge, drawn, points, ends, colour]);
        out.edges.set(edge, drawn);
        lines.append(drawn);
      }
    }
    for (const share of shares) placeShare(...share, taken);
    lines.append(...shares.map((share) => share[1]));  // over the lines without a text
    canvas.append(group);
    return group;
  }

  function head(group, text, left, top, open, toggle) {
    const title = svgOf("text", { x: left + 10, y: top + 18, role: "button", tabindex: 0, "aria-expanded": String(open) }, `${open ? "\u25be" : "\u25b8"} ${text}`);
    title.addEventListener("click", toggle);
    title.addEventListener("keydown", (event) => { if (event.key === "Enter") toggle(); });
    group.append(title);
  }

  // How many columns of texts of a width go beside each other.
  const columnsFor = (wide, width) => Math.max(1, Math.floor(Math.max(width, wide) / wide));

  // The room that families without a drawing and models without relatives take beneath the blocks.
  function restOf(data, nodes, state, width) {
    const shut = data.families.filter((_, k) => state.shut.has(k)), open = !state.shut.has("alone");
    const titles = 30 + 1.2 * Math.max(0, ...shut.map((family) => widthOf(titleOf(family, nodes))));
    const names = 80 + Math.max(0, ...(open ? data.alone : []).map((id) => widthOf(nodes.get(id).label)));
    const across = columnsFor(titles, width), beside = Math.min(8, columnsFor(names, width));
    const height = 28 * Math.ceil(shut.length / across) + (data.alone.length ? 36 : 0) + (open ? ROW * Math.ceil(data.alone.length / beside) : 0);
    return { titles, names, across, beside, height };
  }

  // Where everything goes: the blocks in the width with which all of it is largest in a window of this shape.
  function arrange(data, nodes, state) {
    const blocks = data.families.map((family, k) => (state.shut.has(k) ? null : blockOf(family, nodes, state.closed)));
    const drawn = blocks.filter(Boolean), window = state.window;
    const rest = (width) => restOf(data, nodes, state, width);
    const whole = (width) => { const found = Packing.pack(drawn, width); return { ...found, bottom: found.bottom + rest(found.right).height }; };
    const width = state.width || Packing.widthFor(drawn, whole, window, drawn.length ? 0 : Math.max(900, window.width));
    const packed = Packing.pack(drawn, width);
    const right = Math.max(packed.right, Math.min(width, window.width)), below = rest(right);
    const wide = data.alone.length && !state.shut.has("alone") ? below.names * Math.min(below.beside, data.alone.length) : 0;
    const places = blocks.map((block) => (block ? packed.places.get(block) : null));
    return { blocks, places, below, width, bottom: packed.bottom + below.height, top: packed.bottom, right: Math.max(packed.right, wide, data.families.length > drawn.length ? below.titles : 0) };
  }

  // Models without relatives: a list of their own, in columns.
  function drawAlone(canvas, data, nodes, state, top, out, below, toggle) {
    const group = svgOf("g", { class: "family" }), open = !state.shut.has("alone");
    head(group, `Without relatives: ${data.alone.length}`, 0, top, open, toggle);
    canvas.append(group);
    for (const [k, id] of (open ? data.alone : []).entries()) {
      const x = 22 + below.names * (k % below.beside), y = top + 40 + ROW * Math.floor(k / below.beside);
      const element = nodeElement(nodes.get(id), x, y, false);
      out.nodes.set(id, element);
      out.at.set(id, [x, y]);
      group.append(element);
    }
  }

  function draw(canvas, data, nodes, state, redraw) {
    canvas.replaceChildren();
    const found = arrange(data, nodes, state), { below } = found;
    state.width = found.width;
    const out = { nodes: new Map(), edges: new Map(), at: new Map(), right: found.right, bottom: found.bottom };
    const toggle = (key) => () => { if (!state.shut.delete(key)) state.shut.add(key); redraw(); };
    let shut = 0;
    data.families.forEach((family, k) => {
      if (found.places[k]) {
        const [left, top] = found.places[k];
        head(drawFamily(canvas, found.blocks[k], nodes, state, left, top, out), titleOf(family, nodes), left, top, true, toggle(k));
        return;
      }
      const group = svgOf("g", { class: "family" });
      head(group, titleOf(family, nodes), below.titles * (shut % below.across), found.top + 28 * Math.floor(shut / below.across), false, toggle(k));
      canvas.append(group);
      shut += 1;
    });
    if (data.alone.length) drawAlone(canvas, data, nodes, state, found.top + 28 * Math.ceil(shut / below.across), out, below, toggle("alone"));
    return out;
  }

  function prepare(data, nodes) {
    for (const family of data.families) {
      family.place = new Map(family.places.map(([id, column, row]) => [id, [column, row]]));
      family.ways = new Map(family.bends.map(([parent, child, ...way]) => [`${parent}\n${child}`, way]));
      family.columns = 1 + Math.max(...family.places.map((one) => one[1]));
      // By column: parents before their children, as closing needs it.
      family.order = family.places.slice().sort((a, b) => a[1] - b[1]).map((one) => one[0]);
    }
  }
  return { draw, arrange, prepare, svgOf, kindOf, colourOf, DASHES, PALETTE, VERDICTS, KNOWN, WORDS };
})();
