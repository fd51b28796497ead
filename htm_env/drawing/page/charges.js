// The error that each merge was charged: how much more it made the whole forest lose.

const CHARGES_HEIGHT = 200, CHARGES_LEFT = 52, CHARGES_TOP = 20, CHARGES_BOTTOM = 30; // prettier-ignore

/** The sentence over the bars. */
function chargeWords(episode, step) {
  const words = step === 0
    ? ["No merge yet"]
    : [`Merge ${step} charged `,
       reading("charge", episode.charges[step - 1], signed(episode.charges[step - 1]))]; // prettier-ignore
  return [...words, ` · ${episode.measure} now `, reading("error", episode.errors[step], short(episode.errors[step]))];
}

/** All bars of the episode; those of merges to come are hollow. */
function chargesPicture(episode, step) {
  const right = WIDTH - 8, floor = CHARGES_HEIGHT - CHARGES_BOTTOM; // prettier-ignore
  const low = Math.min(0, ...episode.charges);
  const highest = Math.max(0, ...episode.charges);
  const high = highest > low ? highest : 1; // no charges at all
  const y = (value) => floor - ((value - low) / (high - low)) * (floor - CHARGES_TOP);
  const exponent = Math.floor(Math.log10(Math.max(high, -low)));
  const unit = exponent < -2 ? 10 ** exponent : 1; // long decimals do not fit beside the axis
  const column = (right - CHARGES_LEFT) / Math.max(episode.last, 1);
  const thick = Math.max(Math.min(0.72 * column, 28), 1);
  const middle = (merge) => CHARGES_LEFT + (merge + 0.5) * column;

  const frame = svg("g", { class: "frame" });
  for (const value of ticks(low, high)) {
    const at = y(value);
    frame.append(svg("line", { x1: CHARGES_LEFT, x2: right, y1: at, y2: at, class: value === 0 ? "zero" : "" }));
    frame.append(svg("text", { x: CHARGES_LEFT - 6, y: at + 4, "text-anchor": "end" }, short(value / unit)));
  }
  const axis = unit === 1 ? `charged, ${episode.measure}` : `charged, ${powerOfTen(exponent)} ${episode.measure}`;
  frame.append(svg("text", { x: 2, y: 10 }, axis));
  for (const merge of numbered(episode.last)) {
    frame.append(svg("text", { x: middle(merge - 1), y: floor + 14, "text-anchor": "middle" }, String(merge)));
  }
  frame.append(svg("text", { x: right, y: CHARGES_HEIGHT - 3, "text-anchor": "end" }, "merge"));

  const bars = svg("g", { class: "charges" });
  episode.charges.forEach((charge, merge) => {
    const at = Math.min(y(charge), y(0));
    const size = Math.max(Math.abs(y(charge) - y(0)), 1.5);
    const done = merge < step;
    const current = merge === step - 1;
    const group = svg("g", { class: `charge ${done ? "done" : "ahead"} ${current ? "current" : ""}`,
      "data-step": merge + 1, "data-value": charge }); // prettier-ignore
    const box = { x: middle(merge) - thick / 2, y: at, width: thick, height: size };
    const hit = { x: middle(merge) - column / 2, y: CHARGES_TOP, width: column, height: floor - CHARGES_TOP };
    group.append(svg("rect", { ...box, class: "bar", fill: done ? mergeColour(episode, merge) : null }));
    group.append(svg("rect", { ...hit, class: "hit" }));
    group.append(svg("title", {}, `merge ${merge + 1}: ${signed(charge)}`));
    bars.append(group);
  });
  const children = [frame, bars];
  if (step > 0) {
    const charge = episode.charges[step - 1];
    const above = Math.min(y(charge), y(0)) - 6;
    const edge = middle(step - 1) > WIDTH - 40 ? "end" : "middle";
    const x = edge === "end" ? right : middle(step - 1);
    children.push(svg("text", { class: "here", x, y: above, "text-anchor": edge }, signed(charge)));
    const foot = floor + 17;
    const [left, tip, end] = [-5, 0, 5].map((offset) => middle(step - 1) + offset);
    children.push(svg("path", { class: "here", d: `M${left} ${foot + 8}L${tip} ${foot}L${end} ${foot + 8}Z` }));
  }
  return picture(WIDTH, CHARGES_HEIGHT, `The error charged to each of ${episode.last} merges`, ...children);
}
