const marks = new Map(), KEY = "clipguard reviews of " + data.run;
let unsaved = false;
const entryOf = (i, mark) => ({sha256: samples.sha256[i], id: samples.id[i], ...mark});
const showMark = i => {
  const decision = marks.get(i)?.decision ?? "";
  cards[i].dataset.mark = decision;
  say(files[i].lastElementChild, decision);
};
const showMarks = () => {
  const all = [...marks.values()], drops = all.filter(mark => mark.decision === "drop").length;
  say(at("marks"), all.length ? `${all.length - drops} keep, ${drops} drop${unsaved ? ", not yet saved to a file" : ""}` : "none");
};
const remember = changedNow => {
  unsaved = changedNow && marks.size > 0;
  storage.set(KEY, JSON.stringify([...marks].map(([i, mark]) => entryOf(i, mark))));
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
const take = entries => {
  let taken = 0;
  for (const entry of Array.isArray(entries) ? entries : []) {
    if (!entry || !["keep", "drop"].includes(entry.decision)) continue;
    const i = placeOf(entry);
    if (i === undefined || i === null) continue;
    marks.set(i, {decision: entry.decision, by: text(entry.by), reason: text(entry.reason), at: new Date(Date.parse(entry.at) || Date.now()).toISOString()});
    showMark(i);
    taken++;
  }
  return taken;
};
const takeText = (contents, key) => {
  try {
    const value = JSON.parse(contents);
    return take(key ? value[key] : value);
  } catch {
    return null;
  }
};
takeText(storage.get(KEY));
at("by").value = storage.get("clipguard reviewer") ?? "";
at("by").addEventListener("change", () => storage.set("clipguard reviewer", at("by").value));
at("save").addEventListener("click", () => {
  const reviews = [...marks].sort(([a], [b]) => a - b).map(([i, one]) => entryOf(i, one));
  download("reviews.json", JSON.stringify({schema_version: 1, run: data.run, reviews}, null, 1) + "\n");
  remember(false);
  say(at("saved"), `${reviews.length} marks saved as reviews.json in your downloads. Move the file into the run folder.`);
});
at("open").addEventListener("change", async event => {
  const [file] = event.target.files;
  if (!file) return;
  const taken = takeText(await file.text(), "reviews");
  event.target.value = "";
  remember(false);
  say(at("saved"), taken === null ? "This is no reviews.json." : `${taken} marks taken from ${visible(file.name)}.`);
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
