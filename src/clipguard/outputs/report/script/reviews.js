const marks = new Map(), KEY = "clipguard reviews of " + data.run;
// Marks of samples that are not on this page: they are saved again as they came, so that none is lost.
const elsewhere = new Map();
let unsaved = false;
const entryOf = (i, mark) => ({sha256: samples.sha256[i], id: samples.id[i], ...mark, given_label: samples.given[i]});
const entries = () => [...[...marks].sort(([a], [b]) => a - b).map(([i, one]) => entryOf(i, one)), ...elsewhere.values()];
const showMark = i => {
  const decision = marks.get(i)?.decision ?? "";
  cards[i].dataset.mark = decision;
  say(files[i].lastElementChild, decision);
};
const showMarks = () => {
  const all = [...marks.values()], drops = all.filter(mark => mark.decision === "drop").length;
  const words = all.length ? [`${all.length - drops} keep, ${drops} drop`] : [];
  if (elsewhere.size) words.push(`${elsewhere.size} of samples that are not on this page`);
  if (unsaved) words.push("not yet saved to a file");
  say(at("marks"), words.join(", ") || "none");
};
const remember = changedNow => {
  unsaved = changedNow && marks.size > 0;
  storage.set(KEY, JSON.stringify({of: data.marks.of, entries: entries()}));
  showMarks();
};
const mark = (rows, decision, reason) => {
  const stamp = new Date().toISOString();
  for (const i of rows) {
    if (decision) marks.set(i, {decision, by: at("by").value.trim(), reason, at: stamp});
    else marks.delete(i);
    showMark(i);
  }
  remember(true);
};
const placeOf = (() => {
  const byBoth = new Map(), byHash = new Map(), byId = new Map();
  for (let i = 0; i < count; i++) {
    const hash = samples.sha256[i];
    byBoth.set(JSON.stringify([hash, samples.id[i]]), i);
    byId.set(samples.id[i], i);
    if (hash) byHash.set(hash, byHash.has(hash) ? null : i);
  }
  // By both; else by the contents, wherever they lie now, if only one sample has them. Only without a hash by name.
  return entry => byBoth.get(JSON.stringify([entry.sha256, entry.id])) ?? (entry.sha256 ? byHash.get(entry.sha256) : byId.get(entry.id));
})();
const text = (value, longest = 1000) => typeof value === "string" ? value.slice(0, longest) : "";
const sampleOf = entry => {
  const i = placeOf(entry) ?? null, label = text(entry.given_label);
  return i !== null && label && label !== samples.given[i] ? null : i;
};
// Of two marks of a sample, the later one stays.
const later = (map, key, mark) => { if (!map.has(key) || Date.parse(map.get(key).at) <= Date.parse(mark.at)) map.set(key, mark); };
const take = (entries, placeIn = sampleOf) => {
  let taken = 0, others = 0;
  for (const entry of Array.isArray(entries) ? entries : []) {
    if (!entry || !["keep", "drop"].includes(entry.decision)) continue;
    const mark = {decision: entry.decision, by: text(entry.by), reason: text(entry.reason), at: new Date(Date.parse(entry.at) || Date.now()).toISOString()};
    const i = placeIn(entry);
    if (i === null) {
      const [sha256, id] = [text(entry.sha256, Infinity), text(entry.id, Infinity)];
      later(elsewhere, JSON.stringify([sha256, id]), {sha256, id, ...mark, given_label: text(entry.given_label, Infinity)});
      others++;
    } else {
      later(marks, i, mark);
      showMark(i);
      taken++;
    }
  }
  return [taken, others];
};
const parsed = contents => { try { return JSON.parse(contents); } catch { return null; } };
const stored = parsed(storage.get(KEY));
// What this browser remembers goes on from the marks that the page came with, if it began with these; also where some were cleared.
if (stored?.of !== data.marks.of) take(data.marks.entries, entry => entry.place < 0 ? null : entry.place);
take(Array.isArray(stored) ? stored : stored?.entries);
at("by").value = storage.get("clipguard reviewer") ?? "";
at("by").addEventListener("change", () => storage.set("clipguard reviewer", at("by").value));
at("save").addEventListener("click", () => {
  const reviews = entries();
  download("reviews.json", JSON.stringify({schema_version: 1, run: data.run, reviews}, null, 1) + "\n");
  remember(false);
  say(at("saved"), `${reviews.length} marks saved as reviews.json in your downloads. Move the file into the run folder.`);
});
at("open").addEventListener("change", async event => {
  const [file] = event.target.files;
  if (!file) return;
  const value = parsed(await file.text()), [taken, others] = take(value?.reviews);
  event.target.value = "";
  remember(false);
  const more = others ? ` ${others} more are of samples that are not on this page.` : "";
  say(at("saved"), value === null ? "This is no reviews.json." : `${taken} marks taken from ${visible(file.name)}.${more}`);
});
for (const [button, decision] of [["keepall", "keep"], ["dropall", "drop"], ["clearall", ""]])
  at(button).addEventListener("click", () => {
    const rows = shownRows();
    mark(rows, decision, at("why").value.trim());
    say(at("saved"), decision ? `${rows.length} marked: ${decision}.` : `Marks of ${rows.length} cleared.`);
  });
addEventListener("beforeunload", event => {
  // Marks outlive the page where it may store them; elsewhere they would be lost.
  if (unsaved && storage.get(KEY) === null) event.preventDefault();
});
showMarks();
