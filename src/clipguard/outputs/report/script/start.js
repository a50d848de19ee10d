const at = id => document.getElementById(id);
const data = JSON.parse(at("data").textContent);
const samples = data.samples, count = samples.id.length;
for (const name of ["given", "predicted", "status", "reason"]) samples[name] = samples[name].map(i => data.texts[i]);
samples.path = samples.path.map((path, i) => path ?? samples.id[i]);
const cards = [...document.querySelectorAll(".gallery > li")];
const files = [...document.querySelectorAll("#files tbody tr")];
const pictureOf = i => cards[i].querySelector("img");
// What comes from the data may hold marks that turn the direction of text, or control characters: spelt out.
const visible = text => text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, c => "\\u" + c.codePointAt(0).toString(16).padStart(4, "0"));
const say = (element, text) => { element.textContent = text; };
const percent = share => (100 * share).toFixed(1) + " %";
const make = (name, text, parent) => {
  const element = document.createElement(name);
  say(element, text);
  parent.append(element);
  return element;
};
const storage = {
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, text) { try { localStorage.setItem(key, text); return true; } catch { return false; } },
};
const download = (name, text, type = "application/json") => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const copy = async (text, button) => {
  const label = button.textContent;
  try { await navigator.clipboard.writeText(text); say(button, "Copied"); } catch { say(button, "Select and copy by hand"); }
  setTimeout(() => say(button, label), 1500);
};
