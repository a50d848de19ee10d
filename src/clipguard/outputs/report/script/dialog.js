const dialog = at("sample");
let open = null;
const wordsOf = i => {
  const s = Object.fromEntries(Object.keys(samples).map(name => [name, samples[name][i]]));
  const words = [["Status", s.status + (s.trigger ? ` for reconstructed trigger ${s.trigger}` : s.reason ? `: ${s.reason}` : "")]];
  words.push(["Label", s.given === s.predicted ? `${visible(s.given)}; the guide agrees` : `${visible(s.given)}; the guide sees ${visible(s.predicted)}`]);
  if (s.poison_score !== null) words.push(["Suspicion", `score ${s.poison_score.toFixed(3)} of 1: rank ${s.rank.toLocaleString("en")} of ${data.n.toLocaleString("en")} samples`]);
  if (s.q_value !== null) words.push(["Innocent by chance", `about ${percent(s.q_value)} of the samples of this class that are at least as suspicious are innocent (q-value)`]);
  words.push(["Guide", `the label fits the picture worse than ${percent(s.guide_rank)} of all labels fit theirs` + loss(s.guide_nll)]);
  words.push(["Early-training model", `learned the label sooner than ${percent(1 - s.early_rank)} of all samples` + loss(s.early_nll)]);
  if (s.trigger_score !== null) words.push(["Trigger detector", `probability ${percent(s.trigger_score)} that it carries a trigger`]);
  const mine = marks.get(i);
  if (mine) words.push(["Mark", `${mine.decision}, ${mine.by ? "by " + visible(mine.by) : "without a name"}, ${mine.at.slice(0, 16).replace("T", " ")} UTC${mine.reason ? ": " + visible(mine.reason) : ""}`]);
  return words;
};
const loss = nats => nats === null ? "" : ` (loss ${nats.toFixed(2)} nats)`;
const draw = async i => {
  const image = pictureOf(i), number = samples.trigger[i] || Number(Object.keys(data.triggers)[0] ?? 0);
  at("asis").hidden = !image;
  say(at("asis-words"), image ? "as the scan saw it" : "no image kept");
  at("changed").hidden = true;
  if (!image) return;
  at("asis").src = image.src;
  at("asis").alt = image.alt;
  if (!data.triggers[number]) return;
  const undo = samples.trigger[i] > 0;
  const covered = await changed(at("canvas"), at("asis"), number, undo);
  if (open !== i) return;
  const lost = covered ? ` Grey: ${percent(covered)} is covered and cannot be brought back.` : "";
  say(at("changed-words"), undo ? `without reconstructed trigger ${number}, as far as that can be undone.${lost}` : `with reconstructed trigger ${number} added`);
  at("changed").hidden = false;
};
const fill = i => {
  open = i;
  say(at("sample-title"), `Rank ${samples.rank[i].toLocaleString("en")}: ${visible(samples.given[i])}`);
  at("words").replaceChildren();
  for (const [term, meaning] of wordsOf(i)) {
    const row = make("div", "", at("words"));
    make("dt", term, row);
    make("dd", meaning, row);
  }
  for (const name of ["path", "id", "sha256"]) {
    say(at(name), visible(samples[name][i]));
    at(name).closest("div").hidden = !samples[name][i] || (name === "id" && samples.id[i] === samples.path[i]);
  }
  const decision = marks.get(i)?.decision;
  at("keep").setAttribute("aria-pressed", decision === "keep");
  at("drop").setAttribute("aria-pressed", decision === "drop");
  draw(i);
};
const show = i => {
  fill(i);
  if (!dialog.open) dialog.showModal();
  ring(i);
  remark();
};
const step = by => {
  const rows = shownRows(), next = rows[rows.indexOf(open) + by];
  if (next !== undefined) show(next);
};
const decide = decision => {
  const same = marks.get(open)?.decision === decision;
  mark([open], same ? "" : decision, at("reason-here").value.trim() || at("why").value.trim());
  say(at("marked"), same ? "Mark removed." : `Marked: ${decision}.`);
  fill(open);
};
dialog.addEventListener("close", () => {
  const button = open === null ? null : cards[open].querySelector("button");
  open = null;
  ring(null);
  remark();
  button?.focus();
});
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", event => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = {ArrowLeft: () => step(-1), ArrowRight: () => step(1), k: () => decide("keep"), d: () => decide("drop")}[event.key];
  if (act) { event.preventDefault(); act(); }
});
at("before").addEventListener("click", () => step(-1));
at("after").addEventListener("click", () => step(1));
at("close").addEventListener("click", () => dialog.close());
at("keep").addEventListener("click", () => decide("keep"));
at("drop").addEventListener("click", () => decide("drop"));
for (const button of document.querySelectorAll("button.copy"))
  button.addEventListener("click", () => copy(button.dataset.of ? samples[button.dataset.of][open] : button.parentElement.querySelector("code").textContent, button));
