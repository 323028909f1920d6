// Traces of JPEG compression over the picture: error levels and JPEG ghosts. Computed in the browser, apart from the score.
//
// Error levels: how much each block of 8 x 8 pixels changes when the image is saved once more. JPEG ghosts (Farid, 2009):
// of each block of 16 x 16 the squared change at qualities from 50 to 95, scaled to 0..1 over the qualities.

import { h } from "./dom.js";

const PIXELS = 24e6;  // most of an image that is looked at: two copies of 4 bytes a pixel are held
const QUALITIES = [50, 55, 60, 65, 70, 75, 80, 85, 90, 95];
const WARNING = "This shows how the file was compressed, not which parts of the image are generated. A bright part can be "
  + "real and a dark one generated; do not quote it as proof of a local edit. It is not part of the score.";

const KINDS = {
  levels: {
    title: "Error levels",
    text: () => "Bright: saving the image once more as JPEG (quality 90) changes this spot a lot. Edges and fine texture are bright in "
      + "every image; a part that differs from similar texture elsewhere may have been saved a different number of times.",
    compute: async (picture) => {
      const blocks = await differences(picture, 90, 8, Math.abs), sorted = blocks.values.toSorted();
      const most = sorted[Math.floor(0.99 * (sorted.length - 1))] || 1;
      return { ...blocks, values: blocks.values.map((value) => value / most) };
    },
  },
  ghosts: {
    title: "JPEG ghosts",
    text: (quality) => `Dark: this spot changes least at quality ${quality}, as if it had been saved at about that quality before. A part that is `
      + "dark at a different quality from the rest may come from another file.",
    compute: async (picture, quality, cache) => {
      cache.ghosts ??= await ghosts(picture);
      return cache.ghosts[QUALITIES.indexOf(quality)];
    },
  },
};

const context = (width, height) => h("canvas", { width, height }).getContext("2d", { willReadFrequently: true });

/** {columns, rows, values}: mean over blocks of `side` pixels of what `measure` makes of the change by saving as JPEG. */
export async function differences(picture, quality, side, measure) {
  const { naturalWidth: width, naturalHeight: height } = picture, drawn = context(width, height);
  drawn.drawImage(picture, 0, 0);
  const before = drawn.getImageData(0, 0, width, height).data;
  const file = await new Promise((resolve) => { drawn.canvas.toBlob(resolve, "image/jpeg", quality / 100); });
  drawn.drawImage(await createImageBitmap(file), 0, 0);
  const after = drawn.getImageData(0, 0, width, height).data;
  const columns = Math.ceil(width / side), rows = Math.ceil(height / side);
  const sums = new Float64Array(columns * rows), counts = new Uint32Array(columns * rows);
  for (let y = 0, at = 0; y < height; y += 1) {
    const row = columns * Math.floor(y / side);
    for (let x = 0; x < width; x += 1, at += 4) {
      const block = row + Math.floor(x / side);
      sums[block] += measure(before[at] - after[at]) + measure(before[at + 1] - after[at + 1]) + measure(before[at + 2] - after[at + 2]);
      counts[block] += 3;
    }
  }
  return { columns, rows, values: sums.map((sum, block) => sum / counts[block]) };
}

async function ghosts(picture) {
  const found = [];
  for (const quality of QUALITIES) found.push(await differences(picture, quality, 16, (value) => value * value));
  const all = found.map(({ values }) => values);
  const least = all[0].map((_, i) => Math.min(...all.map((values) => values[i])));
  const most = all[0].map((_, i) => Math.max(...all.map((values) => values[i])));
  return found.map((one) => ({ ...one, values: one.values.map((value, i) => (value - least[i]) / (most[i] - least[i] || 1)) }));
}

/** A block a pixel, black to white; the style makes it as large as the map. */
function painted({ columns, rows, values }, { naturalWidth, naturalHeight }) {
  const target = context(columns, rows), image = target.createImageData(columns, rows);
  values.forEach((value, i) => image.data.set([...Array(3).fill(255 * Math.min(1, value)), 255], 4 * i));
  target.putImageData(image, 0, 0);
  target.canvas.className = "blocks";
  target.canvas.style.setProperty("--ratio", naturalWidth / naturalHeight);
  return target.canvas;
}

/** Another canvas with the same blocks: an element stands in one place only. */
function copied(canvas) {
  const copy = canvas.cloneNode();
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return copy;
}

const shown = ({ title, text, canvas }) => h("figure", {}, canvas,
  h("figcaption", { class: "soft" }, h("p", {}, h("strong", {}, `${title}. `), text), h("p", {}, WARNING)));

/** On the page a fold that computes a view when it is asked for; in a report the view that was looked at last, or nothing. */
export function compression(item, map, live) {
  if (!live) {
    return !item.traces ? null : h("section", { class: "traces" }, h("h3", {}, "Traces of compression"),
      shown({ ...item.traces, canvas: copied(item.traces.canvas) }));
  }
  const target = h("div", { role: "status" }), cache = {};
  const quality = h("select", { change: () => look("ghosts") }, QUALITIES.map((value) => h("option", { selected: value === 75 }, String(value))));
  async function look(kind) {
    await map.ready;
    const { picture } = map;
    if (!picture) return target.replaceChildren("This browser cannot draw the file, so its compression cannot be shown.");
    if (picture.naturalWidth * picture.naturalHeight > PIXELS)
      return target.replaceChildren("The image is too large for this view; mark a part of a smaller copy.");
    target.replaceChildren("Computing…");
    const { title, text, compute } = KINDS[kind], chosen = Number(quality.value);
    const canvas = painted(await compute(picture, chosen, cache), picture);
    item.traces = { title: kind === "ghosts" ? `${title}, quality ${chosen}` : title, text: text(chosen), canvas };
    target.replaceChildren(shown(item.traces));
  }
  return h("details", { class: "traces" }, h("summary", {}, "Traces of compression (evidence beside the score)"),
    h("div", { class: "row", "data-screen": "" },
      h("button", { type: "button", click: () => look("levels") }, KINDS.levels.title),
      h("button", { type: "button", click: () => look("ghosts") }, KINDS.ghosts.title),
      h("label", {}, "Quality ", quality)), target);
}
