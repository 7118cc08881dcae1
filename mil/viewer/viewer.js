"use strict";
// The slide as tiles, the scores as a layer of tiles over it; the map itself is that of slide_map.js.
let slides = [], asked = null, shown = null, at = 0, map = null, layer = null, outlines = null, mark = null;

async function fetched(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

function named(id) { return encodeURIComponent(id); }  // in an address

function problem(text) { get("problem").textContent = text; get("problem").hidden = !text; }

function tiles(path, more) {
  // A screen with more than one pixel per CSS pixel gets tiles of half the size, one zoom finer.
  const last = shown.zooms - 1, [width, height] = shown.size, dense = devicePixelRatio > 1.5 && last > 0 ? 1 : 0;
  return L.tileLayer(path, {tileSize: shown.tile >> dense, minZoom: 0, maxNativeZoom: last - dense, maxZoom: last + OVERZOOM, zoomReverse: true,
    zoomOffset: -OVERZOOM - dense, bounds: [[0, 0], [height, width]], noWrap: true, ...more});
}

function home() { return bounds(...shown.bounds ?? [0, 0, ...shown.size]); }

function showLayer(number) {
  if (layer) layer.remove();
  at = number;
  const found = shown.layers[at], path = `layers/${named(shown.id)}/${at}`;
  layer = tiles(`${path}/{z}/{x}/{y}.png`, {opacity: get("opacity").value / 100, zIndex: 2, className: "heat"});
  if (get("shown").checked) layer.addTo(map);
  get("score").value = found.score;
  get("classes").replaceChildren(...shown.layers.flatMap((other, number) => {
    if (!other.class || other.score !== found.score) return [];
    const chip = make("button", {type: "button", className: "chip", textContent: other.class, onclick: () => showLayer(number)});
    chip.setAttribute("aria-pressed", number === at);
    return [chip];
  }));
  showColours(found, `${path}/bar.png`);
  unmark();
  const fly = patch => { unmark(); mark = flyTo(map, patch, shown.side); };
  get("top").replaceChildren(...patchButtons(found.top, "highest", patch => `patches/${named(shown.id)}/${patch.index}.jpg`, fly));
}

function unmark() { if (mark) { mark.remove(); mark = null; } }

async function openSlide(id) {
  asked = id;
  problem("");
  for (const button of document.querySelectorAll("#slides button")) {
    button.setAttribute("aria-current", button.dataset.id === id);
    const scrolls = get("slides").scrollHeight > get("slides").clientHeight;  // in a narrow window the whole page does
    if (button.dataset.id === id && scrolls) button.scrollIntoView({block: "nearest"});
  }
  let found;
  try { found = await fetched(`slides/${named(id)}.json`); } catch (error) { found = {id, layers: [], why: error.message}; }
  if (id !== asked) return;  // another slide was chosen meanwhile
  if (map) map.remove();
  const before = shown?.layers[at];
  shown = found; map = layer = outlines = mark = null;
  document.title = `${id} – slidemil viewer`;
  history.replaceState(null, "", `#${named(id)}`);
  describe(slides.find(slide => slide.id === id));
  if (!shown.size) return problem(shown.why);
  const last = shown.zooms - 1;
  map = slideMap({...shown, last, home: home(), sharp: last + .5});
  tiles(`tiles/${named(id)}/{z}/{x}/{y}.jpg`, {zIndex: 1, className: "tissue"}).on("tileerror", () => problem("A part of the slide cannot be read; is the file damaged?")).addTo(map);
  const rings = shown.annotation.map(polygon => polygon.map(ring => ring.map(([x, y]) => [y, x])));
  if (rings.length) outlines = L.polygon(rings, {color: "#00a060", weight: 2.5, fill: false, interactive: false});
  if (outlines && get("annotated").checked) outlines.addTo(map);
  const same = shown.layers.findIndex(other => other.score === before?.score && other.class === before?.class);
  if (shown.layers.length) showLayer(Math.max(same, 0));
}

function describe(slide) {
  get("title").textContent = slide.id;
  get("said").textContent = slide.said;
  get("why").textContent = shown.size ? shown.why || shown.note || "" : "";
  get("controls").hidden = !shown.layers.length;
  get("outlines").hidden = !shown.annotation?.length;
  const scores = [...new Set(shown.layers.map(({score}) => score))];
  get("score").replaceChildren(...scores.map(textContent => make("option", {textContent})));
}

function list() {
  const wanted = get("find").value.toLowerCase(), by = get("order").value;
  const chosen = slides.filter(s => [s.id, s.label, s.prediction].some(text => (text || "").toLowerCase().includes(wanted)));
  chosen.sort((a, b) => by === "loss" ? (b.loss ?? -1) - (a.loss ?? -1) : a.id.localeCompare(b.id, undefined, {numeric: true}));
  get("slides").replaceChildren(...chosen.map(slide => {
    const row = make("li"), button = make("button", {type: "button"});
    button.dataset.id = slide.id;
    button.append(make("b", {textContent: slide.id, title: slide.id}));
    if (slide.right === false) button.append(make("span", {className: "tag failed", textContent: "wrong"}));
    button.append(make("small", {textContent: slide.brief}));
    button.setAttribute("aria-current", asked === slide.id);
    button.onclick = () => openSlide(slide.id);
    row.append(button);
    return row;
  }));
}

function step(by) {
  const ids = [...document.querySelectorAll("#slides button")].map(button => button.dataset.id);
  const next = ids[ids.indexOf(asked) + by];
  if (next) openSlide(next);
}

function toggleMap(on) {
  get("shown").checked = on;
  if (layer) on ? layer.addTo(map) : layer.remove();
}

get("find").oninput = get("order").onchange = list;
get("score").onchange = () => showLayer(shown.layers.findIndex(({score}) => score === get("score").value));
get("opacity").oninput = () => layer && layer.setOpacity(get("opacity").value / 100);
function nextClass() {
  const chips = [...get("classes").children];
  chips[(chips.findIndex(chip => chip.getAttribute("aria-pressed") === "true") + 1) % chips.length]?.click();
}
get("shown").onchange = () => toggleMap(get("shown").checked);
get("annotated").onchange = () => outlines && (get("annotated").checked ? outlines.addTo(map) : outlines.remove());
onKeys(key => ({n: () => step(1), p: () => step(-1)}[key] ?? (!map ? null : /^[1-9]$/.test(key) ? () => get("top").children[key - 1]?.click() :
  {0: () => whole(map, home()), m: () => toggleMap(!get("shown").checked), c: nextClass, "[": () => fade(-10), "]": () => fade(10)}[key])));
(async () => {
  try { slides = await fetched("slides.json"); } catch (error) { return problem(error.message); }
  list();
  const wanted = decodeURIComponent(location.hash.slice(1)), first = document.querySelector("#slides button");
  if (slides.some(({id}) => id === wanted)) openSlide(wanted); else if (first) openSlide(first.dataset.id);
})();
