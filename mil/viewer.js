"use strict";
// The slide as tiles, the scores as a layer of tiles over it. Coordinates of the map are (y, x) in level-0 pixels.
const OVERZOOM = 3, get = id => document.getElementById(id), make = (tag, more) => Object.assign(document.createElement(tag), more);
let slides = [], shown = null, map = null, layer = null, outlines = null, mark = null;

const Scale = L.Control.Scale.extend({
  _updateMetric(px) {  // Leaflet passes how many level-0 pixels the longest bar stands for
    const mpp = shown.mpp, wanted = px * (mpp || 1), length = this._getRoundNum(wanted);
    const label = !mpp ? `${length} px` : length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
    this._updateScale(this._mScale, label, length / wanted);
  },
});

async function fetched(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

function problem(text) { get("problem").textContent = text; get("problem").hidden = !text; }

function matrixCrs(zooms) {  // at zoom 0 the slide is one tile, at the last one a pixel is a level-0 pixel
  const unit = 1 / 2 ** (zooms - 1);
  return L.extend({}, L.CRS.Simple, {transformation: new L.Transformation(unit, 0, unit, 0), distance: (a, b) => Math.hypot(a.lat - b.lat, a.lng - b.lng)});
}

function tiles(path, more) {
  const last = shown.zooms - 1, [width, height] = shown.size;
  return L.tileLayer(path, {tileSize: shown.tile, minZoom: 0, maxNativeZoom: last, maxZoom: last + OVERZOOM, zoomReverse: true,
    zoomOffset: -OVERZOOM, bounds: [[0, 0], [height, width]], noWrap: true, ...more});
}

function patchBounds(patch) { return L.latLngBounds([patch.y, patch.x], [patch.y + shown.side, patch.x + shown.side]); }

function whole() { map.fitBounds([[0, 0], [shown.size[1], shown.size[0]]]); }

function showLayer() {
  if (layer) layer.remove();
  const at = get("layer").selectedIndex, found = shown.layers[at], path = `layers/${shown.id}/${at}`;
  layer = tiles(`${path}/{z}/{x}/{y}.png`, {opacity: get("opacity").value / 100, zIndex: 2, className: "heat"});
  if (get("shown").checked) layer.addTo(map);
  get("meaning").textContent = found.meaning;
  get("bar").src = `${path}/bar.png`;
  get("ticks").replaceChildren(...found.ticks.map(textContent => make("span", {textContent})));
  get("top").replaceChildren(...found.top.map((patch, rank) => {
    const button = make("button", {type: "button", title: `x ${patch.x}, y ${patch.y}`});
    button.append(make("img", {src: `patches/${shown.id}/${patch.index}.jpg`, alt: `patch ${rank + 1} of the highest`}), patch.score);
    button.onclick = () => flyTo(patch, button);
    return button;
  }));
  if (mark) { mark.remove(); mark = null; }
}

function flyTo(patch, button) {
  for (const other of get("top").children) other.setAttribute("aria-pressed", other === button);
  const bounds = patchBounds(patch);
  if (mark) mark.remove();
  mark = L.rectangle(bounds, {color: "#00e0a0", weight: 3, fill: false, interactive: false}).addTo(map);
  map.flyToBounds(bounds.pad(1), {duration: .8});
}

async function open(id) {
  problem("");
  for (const button of document.querySelectorAll("#slides button")) {
    button.setAttribute("aria-current", button.dataset.id === id);
    if (button.dataset.id === id) button.scrollIntoView({block: "nearest"});
  }
  let found;
  try { found = await fetched(`slides/${id}.json`); } catch (error) { return problem(error.message); }
  if (map) map.remove();
  shown = found; layer = outlines = mark = null;
  const last = shown.zooms - 1;
  map = L.map("map", {crs: matrixCrs(shown.zooms), minZoom: 0, maxZoom: last + OVERZOOM, zoomSnap: 0, zoomDelta: .5, wheelPxPerZoomLevel: 120, attributionControl: true});
  map.attributionControl.setPrefix('<a href="https://leafletjs.com">Leaflet</a>');
  map.on("zoomend", () => get("map").classList.toggle("sharp", map.getZoom() > last + .5));
  whole();
  tiles(`tiles/${id}/{z}/{x}/{y}.jpg`, {zIndex: 1, className: "tissue"}).on("tileerror", () => problem("A part of the slide cannot be read; is the file damaged?")).addTo(map);
  new Scale({imperial: false, maxWidth: 160}).addTo(map);
  if (shown.annotation) outlines = L.geoJSON(shown.annotation, {style: {color: "#00a060", weight: 2, fill: false}, interactive: false});
  if (outlines && get("annotated").checked) outlines.addTo(map);
  describe(slides.find(slide => slide.id === id));
  if (shown.layers.length) showLayer();
  document.title = `${id} – slidemil viewer`;
  history.replaceState(null, "", `#${id}`);
}

function describe(slide) {
  get("title").textContent = slide.id;
  get("said").textContent = slide.label === null ? "" : `Labelled ${slide.label}, predicted ${slide.prediction}: probability of ${slide.of} ${slide.probability.toFixed(2)}, loss ${slide.loss.toFixed(2)}.`;
  get("why").textContent = shown.why;
  get("controls").hidden = !shown.layers.length;
  get("outlines").hidden = !shown.annotation;
  const before = get("layer").selectedIndex;
  get("layer").replaceChildren(...shown.layers.map(({name}) => make("option", {textContent: name})));
  get("layer").selectedIndex = Math.min(Math.max(before, 0), shown.layers.length - 1);
}

function list() {
  const wanted = get("find").value.toLowerCase(), by = get("order").value;
  const chosen = slides.filter(s => [s.id, s.label, s.prediction].some(text => (text || "").toLowerCase().includes(wanted)));
  chosen.sort((a, b) => by === "loss" ? (b.loss ?? -1) - (a.loss ?? -1) : a.id.localeCompare(b.id, undefined, {numeric: true}));
  get("slides").replaceChildren(...chosen.map(slide => {
    const row = make("li"), button = make("button", {type: "button"});
    button.dataset.id = slide.id;
    button.append(make("b", {textContent: slide.id, title: slide.id}));
    if (slide.label !== null && slide.label !== slide.prediction) button.append(make("span", {className: "tag failed", textContent: "wrong"}));
    const said = slide.label === null ? "not tested by this run" : `${slide.label}, P(${slide.of}) ${slide.probability.toFixed(2)}, loss ${slide.loss.toFixed(2)}`;
    button.append(make("small", {textContent: said}));
    button.setAttribute("aria-current", shown !== null && shown.id === slide.id);
    button.onclick = () => open(slide.id);
    row.append(button);
    return row;
  }));
}

function step(by) {
  const ids = [...document.querySelectorAll("#slides button")].map(button => button.dataset.id);
  const next = ids[ids.indexOf(shown && shown.id) + by];
  if (next) open(next);
}

function toggleMap(on) {
  get("shown").checked = on;
  if (layer) on ? layer.addTo(map) : layer.remove();
}

get("find").oninput = get("order").onchange = list;
get("layer").onchange = showLayer;
get("opacity").oninput = () => layer && layer.setOpacity(get("opacity").value / 100);
get("shown").onchange = () => toggleMap(get("shown").checked);
get("annotated").onchange = () => outlines && (get("annotated").checked ? outlines.addTo(map) : outlines.remove());
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName) && event.target.type !== "checkbox") return;
  const act = {m: () => toggleMap(!get("shown").checked), 0: whole, n: () => step(1), p: () => step(-1)}[event.key];
  if (act && (shown || event.key === "n")) { act(); event.preventDefault(); }
});
(async () => {
  try { slides = await fetched("slides.json"); } catch (error) { return problem(error.message); }
  list();
  const asked = decodeURIComponent(location.hash.slice(1)), first = document.querySelector("#slides button");
  if (slides.some(({id}) => id === asked)) open(asked); else if (first) open(first.dataset.id);
})();
