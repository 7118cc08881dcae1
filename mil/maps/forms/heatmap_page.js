"use strict";
// One slide and its map as two pictures, the extreme patches sharper than the slide at their places.
const data = JSON.parse(get("data").textContent), [width, height] = data.size, home = bounds(0, 0, width, height);
const last = Math.max(0, Math.ceil(Math.log2(Math.max(width, height) / 256)));
const map = slideMap({...data, last, home, sharp: last - Math.log2(data.downsample) + .5});
const picture = (url, place, more) => L.imageOverlay(url, place, {pane: "tilePane", ...more}).addTo(map);
let mark = null;

function fly(patch) {
  if (mark) mark.remove();
  mark = flyTo(map, patch, data.side);
  get("place").textContent = `score ${patch.score} at x ${patch.x.toLocaleString("en")}, y ${patch.y.toLocaleString("en")}`;
}

picture(data.tissue, bounds(0, 0, ...data.pictured), {className: "pixels", zIndex: 1});
const layer = picture(data.layer, bounds(0, 0, ...data.pictured), {className: "pixels", zIndex: 3});
showColours(data, data.bar);
for (const [name, patches] of Object.entries(data.patches)) {
  get(name).append(...patchButtons(patches, name, patch => patch.picture, fly));
  for (const patch of patches) picture(patch.picture, bounds(patch.x, patch.y, data.side, data.side), {zIndex: 2});
}
get("opacity").oninput = () => layer.setOpacity(get("opacity").value / 100);
get("opacity").oninput();
onKeys(key => /^[1-9]$/.test(key) ? () => get("highest").children[key - 1]?.click() : {0: () => whole(map, home), "[": () => fade(-10), "]": () => fade(10)}[key]);
