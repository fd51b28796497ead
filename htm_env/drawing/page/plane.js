// Tokens in the plane, the forest over them, and what the active nodes give back.

const WIDTH = 400, HEIGHT = 315; // prettier-ignore
const MARGINS = { points: [24, 24], segments: [24, 24], strokes: [24, 24], patches: [6, 6],
  items: [24, 24], particles: [24, 24], vectors: [44, 34] }; // prettier-ignore
const LINES = ["segments", "strokes"];
const GREY_SCALES = [1, 16, 255]; // usual intensities of black; patches get the least that holds them
const OVERSHOOT = 1.25; // times black, up to which intensities count as held
const AXES = ["x", "y", "z"];

/** The angles, in degrees, from which points of space are seen; dragging changes them. */
const eye = { azimuth: -60, elevation: 25 };

/** Where a point of space is to the right, upwards, and towards the eye. */
function seen([x, y, z]) {
  const [turn, tilt] = [eye.azimuth, eye.elevation].map((degrees) => (degrees * Math.PI) / 180);
  const away = Math.cos(turn) * x + Math.sin(turn) * y;
  return [
    Math.cos(turn) * y - Math.sin(turn) * x,
    Math.cos(tilt) * z - Math.sin(tilt) * away,
    Math.cos(tilt) * away + Math.sin(tilt) * z,
  ];
}

/** Whether tokens are points of space, which can be turned. */
function inSpace(kind, token) {
  return kind === "points" && token.length === 3;
}

/** The points of a segment or a stroke. */
function pointsOf(token) {
  return Array.from({ length: token.length / 2 }, (_, index) => token.slice(2 * index, 2 * index + 2));
}

/** The lowest and the highest of each coordinate. */
function extents(tokens) {
  return tokens[0].map((_, axis) => {
    const values = tokens.map((token) => token[axis]);
    return [Math.min(...values), Math.max(...values)];
  });
}

/** The intensities that are white and black. */
function greyRange(tokens) {
  const values = [0, ...tokens.flatMap((token) => token.slice(2))];
  const most = Math.max(...values);
  return [Math.min(...values), GREY_SCALES.find((scale) => most <= OVERSHOOT * scale) || most];
}
const KEY_PLACE = [-0.1, 0.5]; // beside the items, which stand between 0 and 1

/** An angle, given by its cosine and sine, as a share of a turn from 0 to 1. */
function turn(cosine, sine) {
  return (Math.atan2(sine, cosine) / (2 * Math.PI) + 1) % 1;
}

/** Among items: the token that says what matches. */
function isKey(token) {
  return Math.abs(token[0]) > 0.5;
}

/** A token's place in the plane, of which the forest's nodes are the means. */
function placeOf(kind, token, index) {
  if (kind === "items") {
    return isKey(token) ? KEY_PLACE : [turn(token[1], token[2]), turn(token[3], token[4])];
  }
  if (LINES.includes(kind)) {
    const points = pointsOf(token);
    return [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
  }
  if (inSpace(kind, token)) return seen(token).slice(0, 2);
  return token.length === 1 ? [index, token[0]] : [token[0], token[1]];
}

/** Points that the frame has to hold. */
function outline(kind, tokens) {
  if (LINES.includes(kind)) return tokens.flatMap(pointsOf);
  if (inSpace(kind, tokens[0])) {
    const box = extents(tokens); // a ball around it keeps its size however it is turned
    const radius = Math.hypot(...box.map(([low, high]) => high - low)) / 2;
    const middle = seen(box.map(([low, high]) => (low + high) / 2));
    return [-radius, radius].map((away) => [middle[0] + away, middle[1] + away]);
  }
  return tokens.map((token, index) => placeOf(kind, token, index));
}

/** The smallest step between two columns or rows: patches tile a grid. */
function patchSide(tokens) {
  const steps = [0, 1].flatMap((axis) => {
    const values = [...new Set(tokens.map((token) => token[axis]))].sort((a, b) => a - b);
    return values.slice(1).map((value, index) => value - values[index]);
  });
  return steps.length ? Math.min(...steps) : 1;
}

/** An item's polygon or star, filled with its own colour; the key is an arrow along what matches. */
function itemMark(token, x, y, size, colour) {
  if (isKey(token)) {
    const arrow = token[0] > 0 ? "\u2195" : "\u2194"; // up the columns, or along the rows
    const style = `fill: ${colour}; font-size: ${3 * size}px; text-anchor: middle`;
    return svg("text", { x, y: y + size, style }, arrow);
  }
  const [hue, shape] = placeOf("items", token);
  const mark = Math.floor(8 * shape) % 8; // four polygons, four stars
  const corners = 3 + (mark % 4), star = mark >= 4; // prettier-ignore
  const points = Array.from({ length: corners * (star ? 2 : 1) }, (_, index) => {
    const angle = (Math.PI * (star ? 1 : 2) * index) / corners;
    const radius = star && index % 2 ? size / 2 : size;
    return `${x + radius * Math.sin(angle)},${y - radius * Math.cos(angle)}`;
  });
  const fill = `hsl(${Math.round(360 * hue)} 65% 50%)`;
  return svg("polygon", { points: points.join(" "), fill, stroke: colour, "stroke-width": 1.5 });
}

/** From the tokens' units to the drawing's, fitted to the originals so that it stays. */
class Plane {
  constructor(episode, left = 0, width = WIDTH) {
    this.kind = episode.kind;
    this.size = episode.size;
    this.names = episode.names;
    this.dim = episode.tokens[0].length;
    this.right = left + width;
    this.image = this.kind === "patches";
    this.toScale = this.kind !== "vectors"; // both axes have the same unit
    this.half = this.image ? patchSide(episode.tokens) / 2 : 0;
    this.greys = this.image ? greyRange(episode.tokens) : null;
    this.box = inSpace(this.kind, episode.tokens[0]) ? extents(episode.tokens) : null;
    const points = outline(this.kind, episode.tokens);
    const range = [0, 1].map((axis) => {
      const values = points.map((point) => point[axis]);
      return [Math.min(...values) - this.half, Math.max(...values) + this.half];
    });
    this.range = range;
    const margins = MARGINS[this.kind];
    const room = [width - 2 * margins[0], HEIGHT - 2 * margins[1]];
    let scales = range.map(([low, high], axis) => room[axis] / (high > low ? high - low : 1));
    if (this.toScale) scales = scales.fill(Math.min(...scales));
    const [middleX, middleY] = range.map(([low, high]) => (low + high) / 2);
    const down = this.image ? 1 : -1;
    this.scale = scales[0];
    this.x = (value) => left + width / 2 + scales[0] * (value - middleX);
    this.y = (value) => HEIGHT / 2 + down * scales[1] * (value - middleY);
  }

  at([x, y]) {
    return [this.x(x), this.y(y)];
  }

  place(token, index) {
    return this.at(placeOf(this.kind, token, index));
  }

  /** One token, as an element that knows its node; colour is for those that are not grey. */
  token(token, node, colour, style = "") {
    const group = svg("g", { class: `token ${style}`, "data-node": node });
    if (this.kind === "segments") {
      const [[x1, y1], [x2, y2]] = [this.at(token.slice(0, 2)), this.at(token.slice(2))];
      group.append(svg("line", { x1, y1, x2, y2, stroke: colour, "stroke-linecap": "round" }));
    } else if (this.kind === "strokes") {
      group.append(svg("polyline", { points: this.polyline(token), stroke: colour }));
    } else if (this.image) {
      const pixels = Math.sqrt(token.length - 2); // a side
      const half = this.half * this.scale;
      const side = (2 * half) / pixels;
      const [left, top] = [this.x(token[0]) - half, this.y(token[1]) - half];
      const [white, black] = this.greys;
      token.slice(2).forEach((ink, pixel) => {
        const x = left + (pixel % pixels) * side;
        const y = top + Math.floor(pixel / pixels) * side;
        const share = (ink - white) / (black - white || 1);
        const grey = Math.round(255 * (1 - Math.min(Math.max(share, 0), 1)));
        group.append(svg("rect", { x, y, width: side, height: side, fill: `rgb(${grey} ${grey} ${grey})` }));
      });
      group.append(svg("rect", { class: "edge", x: left, y: top, width: 2 * half, height: 2 * half }));
    } else {
      const [cx, cy] = this.place(token, node);
      if (this.kind === "items") group.append(itemMark(token, cx, cy, this.size > MANY ? 4 : 7, colour));
      else group.append(svg("circle", { cx, cy, r: this.radius(token), fill: colour }));
    }
    group.append(svg("title", {}, `token ${this.names[node]}: (${token.map(short).join(", ")})`));
    return group;
  }

  /** The points of a stroke, for a polyline. */
  polyline(token) {
    return pointsOf(token).map((point) => this.at(point).join(",")).join(" ");
  }

  /** The size of a dot: of a particle by its energy; in space the larger the nearer it is. */
  radius(token) {
    if (this.kind === "particles") return 3 + 14 * Math.sqrt(token[2]); // its share of the energy
    const radius = this.size > MANY ? 3 : 5;
    return this.box === null ? radius : radius * (1 + 0.4 * Math.min(Math.max(this.nearness(token), -1), 1));
  }

  /** From -1 to 1 within the box around the originals. */
  nearness(token) {
    const half = Math.hypot(...this.box.map(([low, high]) => high - low)) / 2 || 1;
    return (seen(token)[2] - seen(this.box.map(([low, high]) => (low + high) / 2))[2]) / half;
  }

  /** The originals' indices in the order in which they are drawn: in space the near ones last. */
  order(tokens) {
    const indices = tokens.map((_, index) => index);
    if (this.box === null) return indices;
    return indices.sort((one, two) => this.nearness(tokens[one]) - this.nearness(tokens[two]));
  }

  /** Labelled axes where the two coordinates have units of their own; a frame for an image. */
  frame() {
    const group = svg("g", { class: "frame" });
    if (this.image) {
      const [[x, right], [y, bottom]] = [this.range[0].map(this.x), this.range[1].map(this.y)];
      group.append(svg("rect", { x, y, width: right - x, height: bottom - y }));
    }
    if (this.box !== null) group.append(...this.boxLines());
    if (this.toScale) return group;
    const [low, high] = this.range;
    const bottom = this.y(high[0]) + 16, edge = this.x(low[0]) - 16; // prettier-ignore
    for (const value of ticks(...spread(low))) {
      group.append(svg("text", { x: this.x(value), y: bottom + 12, "text-anchor": "middle" }, short(value)));
    }
    for (const value of ticks(...spread(high))) {
      group.append(svg("text", { x: edge, y: this.y(value) + 4, "text-anchor": "end" }, short(value)));
    }
    const [across, up] = this.dim === 1 ? ["token", "value"] : ["coordinate 1", "coordinate 2"];
    group.append(svg("text", { x: this.right, y: bottom, "text-anchor": "end" }, across));
    group.append(svg("text", { x: 2, y: 10 }, up));
    return group;
  }

  /** The box around points of space, and the names of the edges that leave its lowest corner. */
  boxLines() {
    const corner = (bits) => this.box.map((range, axis) => range[(bits >> axis) & 1]);
    const lines = [];
    for (let bits = 0; bits < 8; bits++) {
      for (const axis of [0, 1, 2].filter((one) => !((bits >> one) & 1))) {
        const ends = [bits, bits | (1 << axis)].map((end) => this.at(seen(corner(end))));
        const [[x1, y1], [x2, y2]] = ends;
        lines.push(svg("line", { x1, y1, x2, y2 }));
        if (bits === 0) {
          const [x, y] = [(x1 + x2) / 2, (y1 + y2) / 2 + 4];
          lines.push(svg("text", { class: "axis", x, y, "text-anchor": "middle" }, AXES[axis]));
        }
      }
    }
    return lines;
  }
}

function spread([low, high]) {
  return high > low ? [low, high] : [low, low + 1];
}

/** Where every node stands: its token's place, or the mean of its tokens' places. */
function nodePlaces(episode, plane) {
  const places = episode.tokens.map((token, index) => plane.place(token, index));
  return episode.leaves.map((leaves) =>
    [0, 1].map((axis) => leaves.reduce((sum, leaf) => sum + places[leaf][axis], 0) / leaves.length),
  );
}

/** The tokens and the forest: lines from the children's centroids to the parents'. */
function forestPicture(episode, step) {
  const plane = new Plane(episode);
  const places = nodePlaces(episode, plane);
  const pair = episode.next(step);
  const active = episode.active(step);
  const usedBy = episode.usedBy;
  const many = episode.size > MANY;
  const drawn = places.slice(0, episode.size + step);
  const colourOf = (node) => (usedBy[node] < step ? mergeColour(episode, usedBy[node]) : "#333");

  const lines = svg("g", { class: `branches ${plane.image ? "rimmed" : ""}` });
  const dots = svg("g", { class: "joints" });
  for (let merge = 0; merge < step; merge++) {
    const parent = episode.parent(merge);
    const [x2, y2] = places[parent];
    const colour = mergeColour(episode, merge);
    for (const child of episode.merges[merge]) {
      const [x1, y1] = places[child];
      for (const style of plane.image ? ["rim", "branch"] : ["branch"]) {
        const stroke = style === "rim" ? "white" : colour;
        lines.append(svg("line", { class: style, x1, y1, x2, y2, stroke, "data-node": parent }));
      }
    }
    const dot = { cx: x2, cy: y2, r: many ? 2 : 4, fill: colour, "data-node": parent };
    dots.append(svg("circle", dot, svg("title", {}, `node ${episode.names[parent]}`)));
  }

  const halos = svg("g", { class: "halos" });
  const rings = svg("g", { class: "rings" });
  const names = svg("g", { class: "names" });
  for (const node of [...active].sort((a, b) => role(pair, a).length - role(pair, b).length)) {
    const [cx, cy] = places[node];
    const part = role(pair, node);
    const r = (many ? 4.5 : 8.5) + (part === "two" ? 3 : 0); // both can stand at one place
    const ring = { class: `ring ${part}`, cx, cy, r, "data-node": node };
    rings.append(svg("circle", ring, svg("title", {}, `node ${episode.names[node]}`)));
    if (part) {
      for (const leaf of episode.leaves[node]) halos.append(halo(plane, episode, leaf, part));
    }
    if (part || !many) {
      const [x, y] = namePlace(plane, episode, node, places, drawn);
      names.append(svg("text", { class: part, x, y, "data-node": node }, episode.names[node]));
    }
  }
  if (pair) {
    const [[x1, y1], [x2, y2]] = pair.map((node) => places[node]);
    lines.append(svg("line", { class: "coming", x1, y1, x2, y2 }));
  }
  const tokens = svg("g", { class: plane.image ? "tokens pale" : "tokens" });
  for (const leaf of plane.order(episode.tokens)) {
    tokens.append(plane.token(episode.tokens[leaf], leaf, colourOf(leaf)));
  }
  const words = `${episode.size} tokens and the forest over them after ${step} merges`;
  return picture(WIDTH, HEIGHT, words, plane.frame(), halos, tokens, lines, dots, rings, names);
}

/** A broad mark under a token of a node that is merged next. */
function halo(plane, episode, leaf, part) {
  const token = episode.tokens[leaf];
  if (plane.kind === "segments") {
    const [[x1, y1], [x2, y2]] = [plane.at(token.slice(0, 2)), plane.at(token.slice(2))];
    return svg("line", { class: `halo ${part}`, x1, y1, x2, y2 });
  }
  if (plane.kind === "strokes") {
    return svg("polyline", { class: `halo ${part}`, points: plane.polyline(token) });
  }
  const [x, y] = plane.place(token, leaf);
  if (plane.image) {
    const side = 2 * plane.half * plane.scale;
    return svg("rect", { class: `halo ${part}`, x: x - side / 2, y: y - side / 2, width: side, height: side });
  }
  return svg("circle", { class: `halo ${part}`, cx: x, cy: y, r: plane.size > MANY ? 6 : 10 });
}

/** Where a node's number is written: at its emptiest corner, and beyond a line's first end. */
function namePlace(plane, episode, node, places, drawn) {
  const half = 3.3 * episode.names[node].length;
  const [x, y] = freePlace(plane, episode, node, places, drawn, Math.max(half - 6.6, 0));
  return [Math.min(Math.max(x, half), WIDTH - half), y];
}

function freePlace(plane, episode, node, places, drawn, wider) {
  const [x, y] = places[node];
  const side = 13 + wider;
  if (!LINES.includes(plane.kind) || node >= episode.size) {
    const corners = [[side, -10], [-side, -10], [side, 18], [-side, 18]].map(([dx, dy]) => [x + dx, y + dy]); // prettier-ignore
    const room = ([left, base]) =>
      Math.min(...drawn.map((place) => Math.hypot(place[0] - left, place[1] - (base - 4))));
    return corners.reduce((best, corner) => (room(corner) > room(best) + 1 ? corner : best));
  }
  const [endX, endY] = plane.at(episode.tokens[node].slice(0, 2));
  const length = Math.hypot(endX - x, endY - y) || 1;
  return [endX + (12 * (endX - x)) / length, endY + (12 * (endY - y)) / length + 4];
}

/** The reconstruction over the faint original; for images both beside each other. */
function copyPicture(episode, step) {
  const image = episode.kind === "patches";
  const gap = 8, half = (WIDTH - gap) / 2; // prettier-ignore
  const plane = image ? new Plane(episode, half + gap, half) : new Plane(episode);
  const left = image ? new Plane(episode, 0, half) : plane;
  const decoded = episode.reconstruction(step);
  const moves = svg("g", { class: "moves" });
  const original = svg("g", { class: "original" });
  const copy = svg("g", { class: "copy" });
  plane.order(episode.tokens).forEach((leaf) => {
    const token = episode.tokens[leaf];
    original.append(left.token(token, leaf, "var(--faint)"));
    copy.append(plane.token(decoded[leaf], leaf, "var(--copy)", "copied"));
    if (!image) {
      const [[x1, y1], [x2, y2]] = [plane.place(token, leaf), plane.place(decoded[leaf], leaf)];
      moves.append(svg("line", { x1, y1, x2, y2, "data-node": leaf }));
    }
  });
  const words = `The original and its reconstruction from ${episode.size - step} active nodes`;
  const frames = image ? [left.frame(), plane.frame()] : [plane.frame()];
  return picture(WIDTH, HEIGHT, words, ...frames, original, moves, copy);
}
