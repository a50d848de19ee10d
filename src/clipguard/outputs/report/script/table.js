// The samples that are shown now as CSV, with the columns of flagged.csv and the marks.
const COLUMNS = {
  row: "row", id: "id", path: "path", sha256: "sha256", given_label: "given", predicted_label: "predicted", status: "status",
  reason: "reason", poison_score: "poison_score", q_value: "q_value", rank: "rank", trigger: "trigger",
};
// A spreadsheet would take these for a formula: a quote goes before.
const FORMULA = /^\s*[=+\-@＝＋－＠]/u;
const cell = value => {
  if (typeof value !== "string") return value === null ? "" : String(value);
  const line = visible(value), safe = FORMULA.test(line) ? "'" + line : line;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};
const table = rows => {
  const lines = [[...Object.keys(COLUMNS), "decision", "decided_by", "decision_reason", "decided_at"]];
  for (const i of rows) {
    const mark = marks.get(i) ?? {decision: "", by: "", reason: "", at: ""};
    lines.push([...Object.values(COLUMNS).map(name => samples[name][i]), mark.decision, mark.by, mark.reason, mark.at].map(cell));
  }
  return lines.map(line => line.join(",") + "\n").join("");
};
at("csv").addEventListener("click", () => download("samples.csv", table(shownRows()), "text/csv"));
