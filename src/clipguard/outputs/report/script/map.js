const svg = document.querySelector(".map svg"), frame = svg.querySelector(".frame");
const [left, top, side] = ["x", "y", "width"].map(name => Number(frame.getAttribute(name)));
const shape = (name, style, parent) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  element.setAttribute("class", style);
  parent.append(element);
  return element;
};
const put = (element, numbers) => { for (const [name, number] of Object.entries(numbers)) element.setAttribute(name, number); };
const boxShape = shape("rect", "box", svg), ringShape = shape("circle", "ring", svg), dragShape = shape("rect", "drag", svg);
put(dragShape, {x: left, y: top, width: side, height: side});
ringShape.setAttribute("visibility", "hidden");
const ring = i => {
  ringShape.setAttribute("visibility", i === null ? "hidden" : "visible");
  if (i !== null) put(ringShape, {cx: left + samples.guide_rank[i] * side, cy: top + (1 - samples.early_rank[i]) * side, r: 9});
};
// A box is [x0, y0, x1, y1] in ranks; it snaps to the squares of the map, so that all samples in it are counted.
const snapped = box => {
  const [x0, y0, x1, y1] = box.map(value => Math.min(1, Math.max(0, value)));
  const lower = value => Math.floor(value * data.bins + 1e-9) / data.bins, upper = value => Math.ceil(value * data.bins - 1e-9) / data.bins;
  return [lower(Math.min(x0, x1)), lower(Math.min(y0, y1)), upper(Math.max(x0, x1)), upper(Math.max(y0, y1))];
};
const inside = (i, box) => {
  const [column, row] = [samples.guide_rank[i], samples.early_rank[i]].map(rank => Math.min(data.bins - 1, Math.floor(rank * data.bins)) + 0.5);
  return column > box[0] * data.bins && column < box[2] * data.bins && row > box[1] * data.bins && row < box[3] * data.bins;
};
const countIn = box => {
  const [x0, y0, x1, y1] = box.map(value => Math.round(value * data.bins));
  return Object.entries(data.cells).map(([status, rows]) => {
    let total = 0;
    for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) total += rows[y][x];
    return [status, total];
  });
};
const showBox = () => {
  const box = state.box;
  at("nobox").hidden = !box;
  boxShape.setAttribute("visibility", box ? "visible" : "hidden");
  ["x0", "y0", "x1", "y1"].forEach((name, i) => { at(name).value = box ? String(+box[i].toFixed(3)) : ""; });
  if (!box) return say(at("inside"), "");
  put(boxShape, {x: left + box[0] * side, y: top + (1 - box[3]) * side, width: (box[2] - box[0]) * side, height: (box[3] - box[1]) * side});
  const counts = countIn(box), all = counts.reduce((sum, [, number]) => sum + number, 0);
  say(at("inside"), `${all.toLocaleString("en")} samples in the box: ${counts.map(([status, number]) => `${number.toLocaleString("en")} ${status}`).join(", ")}.`);
};
const rankAt = event => {
  const bounds = frame.getBoundingClientRect();
  return [(event.clientX - bounds.left) / bounds.width, 1 - (event.clientY - bounds.top) / bounds.height];
};
let from = null;
dragShape.addEventListener("pointerdown", event => {
  if (event.button) return;
  from = rankAt(event);
  dragShape.setPointerCapture(event.pointerId);
});
dragShape.addEventListener("pointermove", event => {
  if (!from) return;
  state.box = snapped([...from, ...rankAt(event)]);
  showBox();
});
const finish = event => {
  if (!from) return;
  const to = rankAt(event), moved = Math.hypot(to[0] - from[0], to[1] - from[1]);
  state.box = moved < 0.01 ? null : snapped([...from, ...to]);
  from = null;
  apply();
};
dragShape.addEventListener("pointerup", finish);
dragShape.addEventListener("pointercancel", finish);
for (const button of document.querySelectorAll("[data-box]"))
  button.addEventListener("click", () => { state.box = snapped(button.dataset.box.split(",").map(Number)); apply(); });
for (const name of ["x0", "y0", "x1", "y1"])
  at(name).addEventListener("change", () => {
    const edges = ["x0", "y0", "x1", "y1"].map(edge => at(edge).value), rest = [0, 0, 1, 1];
    state.box = edges.every(edge => edge === "") ? null : snapped(edges.map((edge, i) => edge === "" ? rest[i] : Number(edge)));
    apply();
  });
at("nobox").addEventListener("click", () => { state.box = null; apply(); });
