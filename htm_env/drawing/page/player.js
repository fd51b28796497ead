// Which sample and which step is shown, and everything that changes it.

const content = JSON.parse(document.getElementById("content").textContent);
const episodes = content.samples.map((sample) => new Episode(sample));
const byId = (id) => document.getElementById(id);

const state = { sample: 0, step: 0, timer: null };
const shown = () => episodes[state.sample];

// ---------------------------------------------------------------- showing

/** Draw the state. Everything on the page follows from it, so all of it is drawn again. */
function show() {
  const [episode, step] = [shown(), state.step];
  showPlanes(episode, step);
  byId("tree").replaceChildren(dendrogramPicture(episode, step));
  byId("choice").replaceChildren(...choiceWords(episode, step));
  byId("choices").replaceChildren(choiceBars(episode, step));
  byId("charge").replaceChildren(...chargeWords(episode, step));
  byId("charges").replaceChildren(chargesPicture(episode, step));
  showWords(episode, step);
  showControls(episode, step);
  rememberPlace();
}

function showPlanes(episode, step) {
  byId("forest").replaceChildren(forestPicture(episode, step));
  byId("copy").parentElement.hidden = !episode.decodes;
  if (episode.decodes) byId("copy").replaceChildren(copyPicture(episode, step));
  const turnable = inSpace(episode.kind, episode.tokens[0]);
  for (const id of PLANES) byId(id).classList.toggle("turnable", turnable);
}

function showWords(episode, step) {
  byId("charges-title").textContent = `${episode.decodes ? "Error" : "Cost"} charged to each merge`;
  byId("scale").hidden = !episode.decodes;
  const active = episode.active(step);
  const nodes = active.map((node) =>
    html("button", { type: "button", class: `chip ${role(episode.next(step), node)}`, "data-node": node,
      "aria-label": `Node ${episode.names[node]}: tokens ${episode.familyNames(node)}` }, episode.names[node]),
  ); // prettier-ignore
  byId("count").textContent = `${active.length} active ${active.length === 1 ? "node" : "nodes"}`;
  byId("active").replaceChildren(...nodes);
  byId("text").textContent = episode.text(step);
  byId("copy-legend").replaceChildren(
    ...(episode.kind === "patches"
      ? ["left: original · right: reconstruction"]
      : [html("i", { class: "faint" }), " original · ", html("i", { class: "copied" }), " reconstruction"]),
    inSpace(episode.kind, episode.tokens[0]) ? " · drag to turn" : "",
  );
  byId("spoken").textContent =
    `After ${step} of ${episode.last} merges: ${byId("charge").textContent}. ${byId("choice").textContent}.`;
}

function showControls(episode, step) {
  byId("slider").max = episode.last;
  byId("slider").value = step;
  byId("slider").setAttribute("aria-valuetext", `${step} of ${episode.last} merges`);
  document.querySelector("[data-testid=step]").textContent = step;
  document.querySelector("[data-testid=merges]").textContent = episode.last;
  byId("sample").value = state.sample;
  for (const [id, off] of [
    ["first", step === 0], ["previous", step === 0],
    ["next", step === episode.last], ["last", step === episode.last],
    ["previous-sample", state.sample === 0], ["next-sample", state.sample === episodes.length - 1],
  ]) byId(id).setAttribute("aria-disabled", off); // prettier-ignore
  byId("play").textContent = state.timer === null ? "Play" : "Pause";
  byId("play").setAttribute("aria-pressed", state.timer !== null);
}

/** Point at a node in one drawing, and see its tokens and branches in all of them. */
function light(node) {
  document.body.classList.toggle("lighting", node !== null);
  const family = new Set(node === null ? [] : shown().family(node));
  for (const element of document.querySelectorAll("main [data-node]")) {
    element.classList.toggle("lit", family.has(Number(element.dataset.node)));
  }
}

// ---------------------------------------------------------------- going

const within = (number, last) => Math.min(Math.max(number, 0), last);

function goToStep(step) {
  state.step = within(step, shown().last);
  show();
}

function goToSample(sample) {
  state.sample = within(sample, episodes.length - 1);
  pause();
  goToStep(state.step);
}

function play() {
  if (state.step === shown().last) state.step = 0;
  const pace = within(12000 / Math.max(shown().last, 1), 900); // long episodes take 12 seconds
  state.timer = setInterval(() => {
    goToStep(state.step + 1);
    if (state.step === shown().last) pause();
  }, pace);
  show();
}

function pause() {
  clearInterval(state.timer);
  state.timer = null;
  showControls(shown(), state.step);
}

/** Somebody chooses a step, so nothing plays on. */
function jump(to) {
  pause();
  goToStep(to);
}

// ---------------------------------------------------------------- turning

const PLANES = ["forest", "copy"];
const DEGREES_A_PIXEL = 0.5;

/** Drag points of space, in either picture, and see them from another side in both. */
function turnSpace(event) {
  if (!(event.buttons & 1) || !event.currentTarget.classList.contains("turnable")) return;
  eye.azimuth -= DEGREES_A_PIXEL * event.movementX;
  eye.elevation = within(Math.max(eye.elevation + DEGREES_A_PIXEL * event.movementY, -90), 90);
  showPlanes(shown(), state.step);
}

// ---------------------------------------------------------------- links

let remembering = null;
const address = () => `#sample=${encodeURIComponent(shown().name)}&step=${state.step}`;

/** Write the place into the address, though not at every move of the slider. */
function rememberPlace() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    if (location.hash !== address()) location.replace(address());
  }, 200);
}

/** Go where the address says; what it does not say, or says wrongly, stays. */
function followLink() {
  const place = new URLSearchParams(location.hash.slice(1));
  const sample = episodes.findIndex((episode) => episode.name === place.get("sample"));
  const wanted = Number.parseInt(place.get("step"), 10);
  if (sample >= 0) state.sample = sample;
  state.step = within(Number.isNaN(wanted) ? state.step : wanted, shown().last);
  show();
}

// ---------------------------------------------------------------- listening

const moves = {
  ArrowLeft: () => jump(state.step - 1),
  ArrowRight: () => jump(state.step + 1),
  Home: () => jump(0),
  End: () => jump(shown().last),
  ArrowUp: () => goToSample(state.sample - 1),
  ArrowDown: () => goToSample(state.sample + 1),
  " ": () => (state.timer === null ? play() : pause()),
};

document.addEventListener("keydown", (event) => {
  const own = event.target.matches("select") || (event.key === " " && event.target.matches("button"));
  if (own || event.ctrlKey || event.altKey || event.metaKey || !(event.key in moves)) return;
  event.preventDefault();
  moves[event.key]();
});

for (const [id, key] of [["first", "Home"], ["previous", "ArrowLeft"], ["play", " "],
  ["next", "ArrowRight"], ["last", "End"],
  ["previous-sample", "ArrowUp"], ["next-sample", "ArrowDown"]]) {
  byId(id).addEventListener("click", moves[key]);
  byId(id).addEventListener("mousedown", (event) => event.preventDefault()); // keeps space for play
} // prettier-ignore

for (const id of PLANES) {
  byId(id).addEventListener("pointerdown", (event) => {
    if (byId(id).classList.contains("turnable")) byId(id).setPointerCapture(event.pointerId);
  });
  byId(id).addEventListener("pointermove", turnSpace);
}

byId("slider").addEventListener("input", (event) => jump(Number(event.target.value)));
byId("sample").addEventListener("change", (event) => goToSample(Number(event.target.value)));
byId("charges").addEventListener("click", (event) => {
  const bar = event.target.closest("[data-step]");
  if (bar) jump(Number(bar.dataset.step));
});
for (const [event, lit] of [["pointerover", true], ["focusin", true], ["pointerleave", false], ["focusout", false]]) {
  document.querySelector("main").addEventListener(event, ({ target }) => {
    const found = lit ? target.closest("[data-node]") : null;
    light(found ? Number(found.dataset.node) : null);
  });
}
window.addEventListener("hashchange", () => {
  if (location.hash !== address()) followLink(); // not where it was written here
});

byId("sample").append(
  ...episodes.map((episode, index) => {
    const error = short(episode.errors[episode.last]);
    const title = episode.title && ` ${episode.title},`;
    return html("option", { value: index }, `${episode.name}:${title} ${episode.size} tokens, ${episode.measure} ${error}`);
  }),
);
followLink();
