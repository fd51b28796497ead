// The tree that grows: tokens below, one row a merge, a line that cuts the active nodes.

const TREE_LEFT = 30, TREE_RIGHT = 8, TREE_TOP = 26, TREE_BOTTOM = 26; // prettier-ignore

/** The tokens from left to right as the finished tree has them, so that no branches cross. */
function leafOrder(episode) {
  return episode
    .active(episode.last)
    .flatMap((root) => episode.family(root))
    .filter((node) => node < episode.size);
}

/** A name as long as a column has room for: two letters always, more only as they fit. */
function shortened(name, column) {
  const room = Math.max(2, Math.floor((column - 6) / 7));
  return name.length <= room ? name : `${name.slice(0, room - 1)}…`;
}

function dendrogramPicture(episode, step) {
  const rows = Math.max(episode.last, 1);
  const floor = HEIGHT - TREE_BOTTOM;
  const row = (floor - TREE_TOP) / rows;
  const column = (WIDTH - TREE_LEFT - TREE_RIGHT) / episode.size;
  const height = (merges) => floor - merges * row;
  const middles = [];
  leafOrder(episode).forEach((leaf, index) => (middles[leaf] = TREE_LEFT + (index + 0.5) * column));
  episode.merges.forEach(([first, second], merge) => {
    middles[episode.parent(merge)] = (middles[first] + middles[second]) / 2;
  });
  const top = (node) => height(node < episode.size ? 0 : node - episode.size + 1);
  const pair = episode.next(step);

  const scale = svg("g", { class: "frame" });
  scale.append(svg("text", { x: 2, y: 10 }, "merge"));
  for (const merge of numbered(episode.last)) {
    scale.append(svg("text", { x: TREE_LEFT - 8, y: height(merge) + 4, "text-anchor": "end" }, String(merge)));
  }
  const now = height(step + 0.5);
  const cut = svg("line", { class: "cut", x1: TREE_LEFT, x2: WIDTH - TREE_RIGHT, y1: now, y2: now });

  const branches = svg("g", { class: column < 6 ? "branches thin" : "branches" });
  for (let merge = 0; merge < step; merge++) {
    const node = episode.parent(merge);
    const [one, two] = episode.merges[merge];
    const path = `M${middles[one]} ${top(one)}V${height(merge + 1)}H${middles[two]}V${top(two)}`;
    branches.append(svg("path", { d: path, stroke: mergeColour(episode, merge), "data-node": node }));
  }
  for (const node of episode.active(step)) {
    const stem = `M${middles[node]} ${top(node)}V${step < episode.last ? now : top(node)}`;
    branches.append(svg("path", { d: stem, class: `stem ${role(pair, node)}`, "data-node": node }));
  }
  if (pair) {
    const [one, two] = pair.map((node) => middles[node]);
    const path = `M${one} ${now}V${height(step + 1)}H${two}V${now}`;
    branches.append(svg("path", { d: path, class: "coming" }));
  }

  const nodes = svg("g", { class: "nodes" });
  const named = column >= 13;
  const roomy = row >= 13;
  for (let node = 0; node < episode.size + step; node++) {
    const leaf = node < episode.size;
    const part = role(pair, node);
    const [x, y] = [middles[node], leaf ? floor + 13 : top(node)];
    const colour = leaf ? null : mergeColour(episode, node - episode.size);
    const group = svg("g", { class: `node ${leaf ? "leaf" : "joint"} ${part}`, "data-node": node });
    group.append(svg("title", {}, `node ${episode.names[node]}: tokens ${episode.familyNames(node)}`));
    if (leaf ? named || part : roomy || part) {
      const name = leaf && !part ? shortened(episode.names[node], column) : episode.names[node];
      const wide = (leaf ? 6 : 8) + 7 * name.length;
      group.append(svg("rect", { x: x - wide / 2, y: y - 8, width: wide, height: 16, rx: 8, stroke: colour }));
      group.append(svg("text", { x, y: y + 4 }, name));
    } else {
      group.append(svg("circle", { cx: x, cy: leaf ? floor + 6 : y, r: 2.5, fill: colour || "#333" }));
    }
    nodes.append(group);
  }
  const words = `The tree after ${step} merges: ${episode.text(step)}`;
  return picture(WIDTH, HEIGHT, words, scale, cut, branches, nodes);
}
