const FIELDS = ["text", "cause", "given", "status", "reason", "mark", "sort"];
const state = {box: null};
const choices = (id, values) => {
  for (const value of [...new Set(values)].filter(Boolean).sort()) make("option", visible(value), at(id)).value = value;
};
choices("given", samples.given);
choices("status", samples.status);
choices("reason", samples.reason);
const searched = samples.id.map((id, i) => [id, samples.path[i], samples.given[i], samples.predicted[i], samples.sha256[i]].join("\n").toLowerCase());
const keys = {
  rank: i => samples.rank[i], given: i => samples.given[i], guide: i => -samples.guide_rank[i],
  early: i => samples.early_rank[i], detector: i => -(samples.trigger_score[i] ?? -1), path: i => samples.path[i] || samples.id[i],
};
const fits = i => {
  const word = at("text").value.trim().toLowerCase(), decision = marks.get(i)?.decision ?? "none";
  return (!word || searched[i].includes(word)) && (!at("cause").value || String(samples.cause[i]) === at("cause").value) &&
    (!at("given").value || samples.given[i] === at("given").value) && (!at("status").value || samples.status[i] === at("status").value) &&
    (!at("reason").value || samples.reason[i] === at("reason").value) && (!at("mark").value || decision === at("mark").value) &&
    (!state.box || inside(i, state.box));
};
const every = [...Array(count).keys()];
const isFlagged = i => samples.status[i] === "flagged";
let sorted = every, sortedBy = "rank";
const shownRows = () => sorted.filter(i => !cards[i].hidden);
const resort = by => {
  const key = keys[by] ?? keys.rank, order = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : samples.rank[a] - samples.rank[b]);
  sorted = [...every.filter(isFlagged).sort(order), ...every.filter(i => !isFlagged(i)).sort(order)];
  for (const [list, flagged] of [["flagged", true], ["others", false]])
    at(list)?.replaceChildren(...sorted.filter(i => isFlagged(i) === flagged).map(i => cards[i]));
  sortedBy = by;
};
// One picture is in the order of the Tab key, the arrow keys lead to the others.
const reach = i => {
  for (const card of document.querySelectorAll(".gallery .shot[tabindex='0']")) card.tabIndex = -1;
  if (i !== undefined) cards[i].querySelector("button").tabIndex = 0;
};
const remark = () => {
  const words = new URLSearchParams();
  for (const name of FIELDS) if (at(name).value && !(name === "sort" && at(name).value === "rank")) words.set(name, at(name).value);
  if (state.box) words.set("box", state.box.map(value => +value.toFixed(4)).join(","));
  if (open !== null) words.set("sample", String(samples.rank[open]));
  const hash = words.size ? "#" + words : location.pathname;
  try { history.replaceState(null, "", hash); } catch { /* an address that cannot change loses nothing */ }
};
const apply = () => {
  if (at("sort").value !== sortedBy) resort(at("sort").value);
  let flagged = 0, others = 0;
  for (const i of every) {
    cards[i].hidden = !fits(i);
    if (!cards[i].hidden) isFlagged(i) ? flagged++ : others++;
  }
  say(at("count"), `${flagged.toLocaleString("en")} flagged and ${others.toLocaleString("en")} other pictures shown, of ${count.toLocaleString("en")} on this page.`);
  showBox();
  reach(shownRows()[0]);
  remark();
};
const read = () => {
  const words = new URLSearchParams(location.hash.slice(1));
  for (const name of FIELDS) at(name).value = words.get(name) ?? (name === "sort" ? "rank" : "");
  for (const name of FIELDS) if (at(name).value === "" && at(name).options) at(name).selectedIndex = 0;
  const box = (words.get("box") ?? "").split(",").map(Number);
  state.box = box.length === 4 && box.every(Number.isFinite) ? snapped(box) : null;
  apply();
  const i = samples.rank.indexOf(Number(words.get("sample")));
  if (words.has("sample") && i >= 0) show(i);
};
const filters = document.querySelector("form.filters");
filters.addEventListener("submit", event => event.preventDefault());
filters.addEventListener("input", apply);
filters.addEventListener("reset", () => setTimeout(() => { state.box = null; apply(); }));
for (const link of document.querySelectorAll("[data-cause]"))
  link.addEventListener("click", event => {
    event.preventDefault();
    filters.reset();
    setTimeout(() => { at("cause").value = link.dataset.cause; apply(); at("gallery").scrollIntoView(); at("cause").focus({preventScroll: true}); });
  });
for (const link of document.querySelectorAll("nav a"))
  // The address holds what is shown: a jump must not wipe it.
  link.addEventListener("click", event => {
    event.preventDefault();
    const part = document.querySelector(link.getAttribute("href"));
    part.scrollIntoView();
    part.tabIndex = -1;
    part.focus({preventScroll: true});
  });
document.addEventListener("click", event => {
  const button = event.target.closest("button.shot");
  if (button) show(Number(button.closest("li").dataset.n));
});
for (const list of document.querySelectorAll(".gallery")) {
  list.addEventListener("focusin", event => { const card = event.target.closest("li"); reach(Number(card.dataset.n)); ring(Number(card.dataset.n)); });
  list.addEventListener("focusout", () => ring(null));
  list.addEventListener("pointerover", event => { const card = event.target.closest("li"); if (card) ring(Number(card.dataset.n)); });
  list.addEventListener("pointerleave", () => ring(null));
  list.addEventListener("keydown", event => {
    const rows = shownRows(), place = rows.indexOf(Number(event.target.closest("li")?.dataset.n));
    const first = cards[rows[0]].getBoundingClientRect().top;
    const across = Math.max(1, rows.findIndex(i => cards[i].getBoundingClientRect().top > first + 1));
    const to = {ArrowRight: place + 1, ArrowLeft: place - 1, ArrowDown: place + across, ArrowUp: place - across, Home: 0, End: rows.length - 1}[event.key];
    if (place < 0 || to === undefined || !rows[to] && rows[to] !== 0) return;
    event.preventDefault();
    cards[rows[to]].querySelector("button").focus();
  });
}
addEventListener("hashchange", read);
for (const i of marks.keys()) showMark(i);
read();
document.documentElement.dataset.ready = "yes";
performance.mark("ready");
