"use strict";
// Blocks side by side, so that all of them are as large as can be in a window, and how much is open at first.
const Packing = (function () {
  const SPACE = 12, MOST_BLOCKS = 100, MOST_MODELS = 400, LETTER = 12, READABLE = 9;  // pixels, but for the numbers

  // Each block, the highest first, where the blocks above it end highest, in a strip of a width.
  function pack(blocks, width) {
    const places = new Map();
    let edge = [[0, 0]], right = 0, bottom = 0;  // beginnings of what is taken, each with its lower end
    for (const block of blocks.slice().sort((a, b) => b.height - a.height)) {
      const wide = block.width + SPACE, high = block.height + SPACE;
      const under = (x) => Math.max(...edge.filter(([from], k) => from < x + wide && (k + 1 === edge.length || edge[k + 1][0] > x)).map(([, y]) => y));
      let [x, y] = [0, Infinity];
      for (const [from] of edge) if ((from === 0 || from + block.width <= width) && under(from) < y) [x, y] = [from, under(from)];
      const behind = edge.filter(([from]) => from <= x + wide).pop()[1];
      edge = [...edge.filter(([from]) => from < x), [x, y + high], [x + wide, behind], ...edge.filter(([from]) => from > x + wide)];
      places.set(block, [x, y]);
      right = Math.max(right, x + block.width);
      bottom = Math.max(bottom, y + high);
    }
    return { places, right, bottom };
  }

  const scaleOf = (found, window) => Math.min(1.2, window.width / (found.right + 30), window.height / (found.bottom + 20));

  // The width of the strip with which everything is largest.
  function widthFor(blocks, whole, window, least) {
    const from = Math.max(least, ...blocks.map((block) => block.width)), to = blocks.reduce((sum, block) => sum + block.width + SPACE, 0);
    let best = from, largest = 0;
    for (let width = from; ; width = Math.min(to, 1.06 * width)) {
      const scale = scaleOf(whole(width), window);
      if (scale > largest) [best, largest] = [width, scale];
      if (width >= to) return best;
    }
  }

  // What is closed where each family opens up to so many models, generation by generation: all others that have children.
  function closedBy(families, nodes, share) {
    const closed = new Set([...nodes.values()].filter((node) => node.below.length).map((node) => node.id));
    for (const { order } of families) {
      const below = new Map();
      for (const id of order) { const [main] = nodes.get(id).into; if (main) below.set(main.parent, [...(below.get(main.parent) || []), id]); }
      let shown = order.filter((id) => !nodes.get(id).into.length);
      let count = shown.length;
      while (shown.length) {
        const next = [];
        for (const id of shown) {
          const children = below.get(id) || [];
          if (count + children.length > share) continue;
          closed.delete(id);
          count += children.length;
          next.push(...children);
        }
        shown = next;
      }
    }
    return closed;
  }

  // As much as can be read: labels are at least READABLE pixels high where closing models can bring that about.
  function open(data, nodes, state, arrange) {
    data.families.forEach((_, k) => { if (k >= MOST_BLOCKS) state.shut.add(k); });
    const families = data.families.slice(0, MOST_BLOCKS), most = Math.max(1, ...families.map(({ order }) => order.length));
    const fits = (share) => {
      state.closed = closedBy(families, nodes, share);
      const open = families.reduce((sum, { order }) => sum + Math.min(share, order.length), 0);
      return open <= MOST_MODELS && LETTER * scaleOf(arrange(data, nodes, state), state.window) >= READABLE;
    };
    if (fits(most)) return;
    if (data.alone.length > 20) state.shut.add("alone");
    let [low, high] = [1, most + 1];
    while (high - low > 1) { const middle = Math.floor((low + high) / 2); if (fits(middle)) low = middle; else high = middle; }
    fits(low);
  }
  return { pack, widthFor, scaleOf, open, READABLE: READABLE / LETTER };
})();
