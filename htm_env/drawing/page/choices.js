// What the policy thought of the ordered pairs before the next merge.

/** The sentence over the bars. */
function choiceWords(episode, step) {
  const pair = episode.next(step);
  if (pair === null) return ["Next: ", html("span", { "data-testid": "pair" }, "none"), ", one root is left"];
  const words = ["Next: (", pairWords(episode, pair, "pair"), `) → ${episode.names[episode.parent(step)]}`];
  const considered = episode.considered[step];
  if (considered) {
    const probability = considered.pairs.find(([i, j]) => i === pair[0] && j === pair[1])[2];
    words.push(", probability ", reading("probability", probability, percent(probability)));
  }
  return words;
}

/** A bar for each of the most probable pairs, or a line that says why there is none. */
function choiceBars(episode, step) {
  const pair = episode.next(step);
  if (pair === null) return note("All tokens are merged: nothing is left to choose.");
  const considered = episode.considered[step];
  if (!considered) {
    return note("This merge order has no probabilities: a fixed rule chose the pair, and weighed no other.");
  }
  const bars = html("ol", { class: "bars" });
  const letters = considered.pairs.map(([first, second]) => (episode.names[first] + episode.names[second]).length);
  bars.style.setProperty("--names", `${Math.min(Math.max(62, 7 * Math.max(...letters) + 14), 160)}px`);
  for (const [first, second, probability] of considered.pairs) {
    const chosen = first === pair[0] && second === pair[1];
    const names = `${episode.names[first]}, ${episode.names[second]}`;
    const row = html("li", { "data-pair": `${first} ${second}`, class: chosen ? "chosen" : "" });
    row.append(
      html("span", { class: "mark", "aria-hidden": "true" }, chosen ? "▸" : ""),
      html("span", { class: "names" }, chosen ? pairWords(episode, [first, second]) : names),
      bar(probability, chosen),
      html("span", { class: "value" }, percent(probability)),
    );
    if (chosen) row.setAttribute("aria-current", "true");
    bars.append(row);
  }
  const shown = considered.pairs.reduce((sum, [, , probability]) => sum + probability, 0);
  const others = considered.count - considered.pairs.length;
  if (others === 0) return bars;
  const more = html("p", { class: "legend" }, `${others} other ordered pairs: ${percent(1 - shown)} together`);
  return html("div", {}, bars, more);
}

function bar(share, chosen) {
  const track = html("span", { class: "track" });
  const filled = html("span", { class: chosen ? "filled chosen" : "filled" });
  filled.style.width = `${100 * share}%`;
  track.append(filled);
  return track;
}

function note(words) {
  return html("p", { class: "note", "data-testid": "note" }, words);
}
