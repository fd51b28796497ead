// What all drawings share: elements, colours, and numbers in few characters.

const SVG = "http://www.w3.org/2000/svg";
const MANY = 24; // tokens, above which dots shrink and only some nodes are named

/** An SVG element; attributes that are null are left out. */
function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A drawing of its own, which says in words what it shows. */
function picture(width, height, words, ...children) {
  const box = { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words };
  return svg("svg", box, ...children);
}

// Every eighth of matplotlib's viridis. Its end is too light for lines on white.
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962",
  "#addc30", "#fde725"]; // prettier-ignore
const LAST_MERGE = 0.88;

/** The colour of a merge among all merges of the episode, which stays while it goes on. */
function mergeColour(episode, merge) {
  const share = (LAST_MERGE * merge) / Math.max(episode.last - 1, 1);
  const place = share * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const parts = [1, 3, 5].map((at) => {
    const [from, to] = [VIRIDIS[low], VIRIDIS[low + 1]].map((c) => parseInt(c.slice(at, at + 2), 16));
    return Math.round(from + (place - low) * (to - from));
  });
  return `rgb(${parts.join(" ")})`;
}

/** Whether a node is the first or the second child of the next merge: "one", "two" or "". */
function role(pair, node) {
  return ["one", "two"][(pair || []).indexOf(node)] || "";
}

/** Three significant digits. */
function short(number) {
  const size = Math.abs(number);
  if (size === 0 || (size >= 1e-4 && size < 1e5)) {
    return String(Number(number.toPrecision(3))).replace("-", "−");
  }
  const [digits, exponent] = number.toExponential(2).split("e");
  return `${digits.replace("-", "−")}×${powerOfTen(Number(exponent))}`;
}

/** As in 10⁻⁵. */
function powerOfTen(exponent) {
  return "10" + [...String(exponent)].map((sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]).join("");
}

function signed(number) {
  return number > 0 ? `+${short(number)}` : short(number);
}

function percent(share) {
  if (share >= 0.9995) return "> 99.9 %";
  if (share < 0.00001) return "< 0.001 %";
  if (share < 0.001) return `${Number((100 * share).toPrecision(2))} %`;
  return `${(100 * share).toFixed(1)} %`;
}

/** A number to read, with the exact one beside it for programs. */
function reading(name, value, text) {
  return html("data", { "data-testid": name, value }, text);
}

/** An ordered pair of nodes, each in its colour. */
function pairWords(episode, pair, name = null) {
  const words = html("span", { class: "pair" });
  if (name !== null) words.dataset.testid = name;
  const [first, second] = pair;
  words.append(html("b", { class: "one", "data-node": first }, episode.names[first]), ", ",
    html("b", { class: "two", "data-node": second }, episode.names[second])); // prettier-ignore
  return words;
}

/** Two to five round numbers from low to high. */
function ticks(low, high) {
  const rough = (high - low) / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * unit >= rough) * unit;
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high * 1.0001; index++) {
    found.push(Number((index * step).toPrecision(12)));
  }
  return found;
}

/** Which of so many merges are numbered, at most twelve: every first, second, fifth, tenth, ... */
function numbered(merges) {
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((step) => merges / step <= 12);
  return [...Array(merges + 1).keys()].filter((merge) => merge > 0 && merge % every === 0);
}
