"use strict";
// A slide as a Leaflet map, for the viewer and for heatmap pages. Coordinates of the map are (y, x) in level-0 pixels.
const OVERZOOM = 3, STILL = matchMedia("(prefers-reduced-motion: reduce)"), get = id => document.getElementById(id), make = (tag, more) => Object.assign(document.createElement(tag), more);

const ScaleBar = L.Control.Scale.extend({
  _updateMetric(px) {  // Leaflet passes how many level-0 pixels the longest bar stands for
    const mpp = this.options.mpp, wanted = px * (mpp || 1), length = this._getRoundNum(wanted);
    const label = !mpp ? `${length} px` : length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
    this._updateScale(this._mScale, label, length / wanted);
  },
});

function levelZeroCrs(last) {  // at zoom `last` a pixel is a level-0 pixel, at zoom 0 it is 2^last of them
  const unit = 1 / 2 ** last;
  return L.extend({}, L.CRS.Simple, {transformation: new L.Transformation(unit, 0, unit, 0), distance: (a, b) => Math.hypot(a.lat - b.lat, a.lng - b.lng)});
}

function bounds(x, y, width, height) { return L.latLngBounds([y, x], [y + height, x + width]); }

function slideMap({size, mpp, last, home, sharp}) {  // above zoom `sharp` pixels are shown as squares
  const map = L.map("map", {crs: levelZeroCrs(last), minZoom: 0, maxZoom: last + OVERZOOM, zoomSnap: 0, zoomDelta: .5, wheelPxPerZoomLevel: 120, attributionControl: true});
  map.attributionControl.setPrefix('<a href="https://leafletjs.com">Leaflet</a>');
  map.on("zoomend", () => get("map").classList.toggle("sharp", map.getZoom() > sharp));
  map.fitBounds(home);
  new ScaleBar({imperial: false, maxWidth: 160, mpp}).addTo(map);
  L.rectangle(bounds(0, 0, ...size), {color: "#888", weight: 1, fill: false, interactive: false}).addTo(map);
  return map;
}

function whole(map, home) { map.flyToBounds(home, {duration: .5, animate: !STILL.matches}); }  // also in the midst of a zoom

function flyTo(map, {x, y}, side) {  // the mark around the patch
  const place = bounds(x, y, side, side), line = {fill: false, interactive: false, lineJoin: "miter"};
  map.flyToBounds(place.pad(1), {duration: .8, animate: !STILL.matches});
  return L.layerGroup([L.rectangle(place, {...line, color: "#fff", weight: 6}), L.rectangle(place, {...line, color: "#0a7d55", weight: 2})]).addTo(map);
}

function showColours({meaning, ticks}, bar) {
  get("meaning").textContent = meaning;
  get("bar").src = bar;
  get("ticks").replaceChildren(...ticks.map(textContent => make("span", {textContent})));
}

function patchButtons(patches, name, picture, fly) {
  return patches.map((patch, rank) => {
    const button = make("button", {type: "button", title: `x ${patch.x}, y ${patch.y}`});
    button.append(make("img", {src: picture(patch), alt: `patch ${rank + 1} of the ${name}`}), patch.score);
    button.onclick = () => {
      for (const other of document.querySelectorAll(".patches button")) other.setAttribute("aria-pressed", other === button);
      fly(patch);
    };
    return button;
  });
}

function onKeys(actOf) {  // actOf: what a key does, if anything
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName) && event.target.type !== "checkbox") return;
    const act = actOf(event.key);
    if (act) { act(); event.preventDefault(); }
  });
}

function fade(by) { get("opacity").value = +get("opacity").value + by; get("opacity").oninput(); }
