// Draws where a score comes from: crops, patches, the router's choice. On a canvas, with the same numbers in a table.
//
// The colour's middle is the score at which the probability is one half, and it is full where a crop alone would be
// at 5 % or 95 %: an undecided image stays pale, however its crops differ among themselves.

import { detect } from "./api.js";
import { grid, h } from "./dom.js";
import { area, cells, inside, middle, nearest, patches, place } from "./geometry.js";
import { signed } from "./words.js";

const TOWARDS_PHOTO = "0, 100, 200", TOWARDS_AI = "214, 84, 0";
const EXPERTS = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#7f7f7f"];
const STRENGTH = 0.6;
const FULL = Math.log(0.95 / 0.05);
const SNAPSHOT = 1000;

/** The file as a picture of the size that the server saw; null where this browser cannot draw it. */
async function pictureOf(file, width, height) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
    return image.naturalWidth === width && image.naturalHeight === height ? image : null;
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

/** Crops as the record has them, also where there is a detection alone. */
const tilesOf = ({ detection, evidence }) =>
  evidence?.tiles ?? detection.tile_boxes?.map((box, i) => ({ box, logit: detection.tile_logits[i], routing: [] })) ?? [];

const fine = (value) => signed(value, 3);
const colour = (value) => `rgba(${value < 0 ? TOWARDS_PHOTO : TOWARDS_AI}, ${Math.min(1, Math.abs(value)).toFixed(3)})`;

/** Lines of text in the middle of a box, where there is room for them. */
function label(context, [x, y, w, t], lines, size = 12, plate = true) {
  context.font = `600 ${size}px system-ui, "DejaVu Sans", sans-serif`;
  const wide = Math.max(...lines.map((line) => context.measureText(line).width)) + 6, high = lines.length * (size + 3) + 3;
  if (!lines[0] || wide > w || high > t) return;
  context.fillStyle = "rgba(20, 23, 26, .78)";
  if (plate) context.fillRect(x + (w - wide) / 2, y + (t - high) / 2, wide, high);
  context.fillStyle = plate ? "#fff" : "#000";
  context.textAlign = "center";
  context.textBaseline = "middle";
  lines.forEach((line, i) => context.fillText(line, x + w / 2, y + (t - high) / 2 + (size + 3) * (i + 0.5) + 2));
}

export class EvidenceMap {
  constructor(item) {
    const { calibration } = item.about;
    this.item = item;
    this.middle = calibration ? -calibration.intercept / calibration.slope : 0;
    this.tiles = tilesOf(item.result);
    const largest = Math.max(...this.tiles.map(({ logit }) => Math.abs(logit)), 1e-9);
    this.full = calibration ? FULL / calibration.slope : largest;
    this.kind = "crops";
    this.zoom = null;  // index of the crop that fills the canvas
    this.lit = null;  // index of the crop whose button has the focus
    this.block = 0;
    this.picture = null;
    this.build();
  }

  /** What is shown, for `show` of another map of the same image; there the whole of it. */
  get choice() {
    return { kind: this.kind, block: this.block };
  }

  get view() {
    const { width, height } = this.item.result.detection;
    return this.zoom === null ? [0, 0, width, height] : this.tiles[this.zoom].box;
  }

  build() {
    const { detection, evidence } = this.item.result;
    const kinds = { crops: "Crops", patches: "Patches", router: "Router" };
    this.canvas = h("canvas", { role: "img", pointermove: (e) => this.point(e), pointerleave: () => this.say(), click: (e) => this.pick(e) });
    this.readout = h("p", { class: "readout", "data-screen": "" });
    this.legend = h("div", { class: "legend" });
    this.table = h("div");
    const details = h("details", {}, h("summary", {}, "The map in numbers"), this.table);
    this.status = h("p", { class: "soft", role: "status", "data-screen": "" });
    this.blocks = h("select", { change: () => this.show({ block: Number(this.blocks.value) }) });
    this.blockLabel = h("label", { hidden: true }, "Block ", this.blocks);
    this.whole = h("button", { type: "button", hidden: true, click: () => this.show({ zoom: null }) }, "Whole image");
    const name = `map-${this.item.id}`, many = this.tiles.length;
    const seen = cells(this.tiles).reduce((sum, cell) => sum + area(cell), 0) / (detection.width * detection.height);
    const much = seen > 0.995 ? "all" : seen < 0.01 ? "under 1 %" : `${Math.round(100 * seen)} %`;
    this.element = h("figure", { class: "map" },
      h("div", { class: "controls", "data-screen": "" },
        h("fieldset", {}, h("legend", {}, "Show"), Object.entries(kinds).map(([kind, text]) => h("label", {},
          h("input", { type: "radio", name, value: kind, checked: kind === "crops", change: () => this.ask(kind) }), text))),
        this.blockLabel,
        this.whole),
      this.status, this.canvas, this.readout, this.legend,
      h("figcaption", {},
        h("p", {}, many === 1 ? `Looked at: one crop at the image's own size, ${much} of the image.`
          : `Looked at: ${many} crops at the image's own size, ${much} of the image. What lies outside counts for nothing; where crops overlap, the colour is their mean. The image's score, ${signed(detection.logit)}, is the mean of its crops'.`),
        this.undrawable = h("p", { hidden: true }, "This browser cannot draw the file, so the crops stand without the picture."),
        h("p", {}, evidence?.caution ?? "The map shows what this detector's score leans on, not which parts of the image are generated.")),
      details);
    new ResizeObserver(() => this.element.clientWidth !== this.room && this.draw()).observe(this.element);
    this.ready = pictureOf(this.item.file, detection.width, detection.height).then((picture) => {
      this.picture = picture;
      this.undrawable.hidden = picture !== null;
      this.draw();
    });
    this.show({ kind: this.kind });
  }

  /** Switch what is shown; patches and router are asked of the server when first wanted. */
  async ask(kind) {
    if (kind !== "crops" && !this.tiles[0].grid_box) {
      this.status.textContent = "Asking the server…";
      try {
        const { result } = await detect(this.item.file, { evidence: "tokens" });
        if (!result.evidence) throw new Error(result.error?.message ?? "no evidence came back");
        this.item.result = { ...this.item.result, evidence: result.evidence };
        this.tiles = tilesOf(this.item.result);
      } catch (error) {
        this.status.textContent = `Not to be had: ${error.message}`;
        this.element.querySelector(`input[value=${this.kind}]`).checked = true;
        return;
      }
    }
    const { routing } = this.tiles[0];
    if (kind !== "crops" && !this.blocks.options.length) {  // asked for now, or before this card was opened again
      this.blocks.replaceChildren(...routing.map(({ block }, i) => h("option", { value: i }, String(block + 1))));
      this.block = routing.length - 1;
      this.blocks.value = String(this.block);
    }
    this.status.textContent = kind === "router" && !this.tiles[0].routing.length ? "This detector has no router." : "";
    this.show({ kind });
  }

  show(change = {}) {
    Object.assign(this, change);
    this.whole.hidden = this.zoom === null;
    this.blockLabel.hidden = this.kind !== "router" || !this.blocks.options.length;
    this.draw();
    if ("kind" in change || "block" in change) this.explain();
    for (const button of this.table.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.crop === String(this.zoom)));
    this.say();
  }

  /** The layer to paint: [box, colour, text, whether the text gets a plate] of each cell, crops or patches. */
  layer() {
    const shown = this.zoom === null ? this.tiles : [this.tiles[this.zoom]];
    if (this.kind === "crops")
      return cells(shown).map((cell) => [cell, colour((cell[4] - this.middle) / this.full)]);
    const full = this.largest(), own = (tile, values, paint) => patches(tile, values)
      .filter(([, , , box]) => nearest(shown, ...middle(box)) === tile).map(([, , value, box]) => [box, ...paint(value)]);
    if (this.kind === "patches")
      return shown.flatMap((tile) => own(tile, tile.attribution, (value) => [colour(value / full), Math.abs(value) > full / 3 ? fine(value).replace("0.", ".") : "", true]));
    return shown.filter(({ routing }) => routing.length).flatMap((tile) =>
      own(tile, tile.routing[this.block].experts, (expert) => [EXPERTS[expert % EXPERTS.length], String(expert + 1), false]));
  }

  largest = () => Math.max(...this.tiles.flatMap(({ attribution }) => attribution.flat().map(Math.abs)), 1e-9);

  draw() {
    const [left, top, right, bottom] = this.view;
    this.room = this.element.clientWidth;
    if (!this.room) return;
    const tall = Math.max(320, window.innerHeight * 0.7), scale = Math.min(this.room / (right - left), tall / (bottom - top));
    const width = Math.max(1, Math.round((right - left) * scale)), height = Math.max(1, Math.round((bottom - top) * scale));
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.paint(this.canvas, width, height, window.devicePixelRatio || 1, this.picture);
  }

  /** Paint the view onto a canvas of width x height CSS pixels. */
  paint(canvas, width, height, density, picture) {
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
    const context = canvas.getContext("2d");
    const [left, top, right, bottom] = this.view;
    const scale = width / (right - left);
    const onto = ([l, t, r, b]) => [(l - left) * scale, (t - top) * scale, (r - l) * scale, (b - t) * scale];
    context.scale(density, density);
    const fill = (style, box) => { context.fillStyle = style; context.fillRect(...box); };
    fill("#e4e7ea", [0, 0, width, height]);
    if (picture) {  // grey and pale: colour belongs to the map
      context.drawImage(picture, left, top, right - left, bottom - top, 0, 0, width, height);
      context.globalCompositeOperation = "saturation";
      fill("#808080", [0, 0, width, height]);
      context.globalCompositeOperation = "source-over";
      fill("rgba(255, 255, 255, .35)", [0, 0, width, height]);
    }
    const layer = this.layer();
    context.globalAlpha = STRENGTH;
    for (const [box, style] of layer) fill(style, onto(box));
    context.globalAlpha = 1;
    this.tiles.forEach((tile, i) => {
      if (this.zoom !== null && i !== this.zoom) return;
      const [x, y, w, t] = onto(tile.box), strong = i === this.lit;
      for (const [ink, line] of [["#fff", strong ? 6 : 3], ["#1b1d20", strong ? 3 : 1]]) {
        context.strokeStyle = ink;
        context.lineWidth = line;
        context.strokeRect(x + 1, y + 1, w - 2, t - 2);
      }
    });
    if (this.kind === "crops")
      this.tiles.forEach(({ box, logit }, i) => this.zoom === null ? label(context, onto(box), [`${i + 1}`, signed(logit)])
        : this.zoom === i && label(context, onto(box), [signed(logit)]));
    else for (const [box, , text, plate] of layer) label(context, onto(box), [text], 10, plate);
  }

  /** Legend, description and table of what is shown. */
  explain() {
    const words = {
      crops: `Score of each crop; ${signed(this.middle)} is the colourless middle${this.middle ? ", where the probability is one half" : ""}`,
      patches: `What the score of a crop leans on, patch by patch, in units of the score (${this.item.result.evidence?.method ?? ""})`,
      router: "The expert with the largest gate, patch by patch",
    };
    this.canvas.setAttribute("aria-label", `Evidence map. ${words[this.kind]}. The numbers are in the table that follows.`);
    if (this.kind === "router") {
      const { expert_ranks: ranks } = this.item.result.evidence;
      this.legend.replaceChildren(h("p", {}, `${words.router}:`), ...ranks.map((rank, i) => {
        const swatch = h("span", { class: "swatch" }, String(i + 1));
        swatch.style.background = EXPERTS[i % EXPERTS.length];
        return h("span", { class: "expert" }, swatch, ` expert ${i + 1} (rank ${rank})`);
      }), h("p", { class: "soft" }, "An expert stands for no property of images; which one took a patch says nothing about real or generated by itself."));
    } else {
      const zero = this.kind === "crops" ? this.middle : 0, full = this.kind === "crops" ? this.full : this.largest(), text = this.kind === "crops" ? signed : fine;
      this.legend.replaceChildren(h("p", {}, `${words[this.kind]}.`),
        h("div", { class: "scale" }, h("span", {}, `${text(zero - full)} photograph`), h("span", { class: "ramp" }), h("span", {}, `AI-generated ${text(zero + full)}`)));
    }
    this.table.replaceChildren(this.numbers());
  }

  numbers() {
    const button = (i) => h("button", { type: "button", class: "link", "data-crop": i,
      focus: () => { this.lit = i; this.draw(); this.say(i); }, blur: () => { this.lit = null; this.draw(); this.say(); },
      click: () => this.show({ zoom: this.zoom === i ? null : i }) }, `Crop ${i + 1}`);
    if (this.kind === "router") {
      const routing = this.tiles[0].routing;
      return grid("Mean gate of each expert by adapted block, over all crops",
        ["Block", ...(routing[0]?.mean_gates ?? []).map((_, i) => `Expert ${i + 1}`)],
        routing.map(({ block, mean_gates: gates }, b) => [String(block + 1), ...gates.map((_, e) =>
          (this.tiles.reduce((sum, tile) => sum + tile.routing[b].mean_gates[e], 0) / this.tiles.length).toFixed(3))]), [1, 2, 3, 4, 5, 6]);
    }
    if (this.kind === "patches") {
      const all = this.tiles.flatMap((tile, i) => patches(tile, tile.attribution).map((patch) => [i, ...patch]));
      all.sort((a, b) => Math.abs(b[3]) - Math.abs(a[3]));
      return grid("The ten patches that count most", ["Patch", "Row", "Column", "Pixels", "Leaning"],
        all.slice(0, 10).map(([i, row, column, value, box]) => [button(i), String(row + 1), String(column + 1), place(box.map(Math.round)), fine(value)]), [1, 2, 4]);
    }
    return grid("Crops", ["Crop", "Pixels", "Score"],
      this.tiles.map((tile, i) => [button(i), place(tile.box), signed(tile.logit)]), [2]);
  }

  at(event) {
    const [left, top, right] = this.view, scale = (right - left) / this.canvas.clientWidth;
    return [left + event.offsetX * scale, top + event.offsetY * scale];
  }

  point(event) {
    const [x, y] = this.at(event);
    const over = this.tiles.map((tile, i) => [tile, i]).filter(([tile, i]) => inside(tile.box, x, y) && (this.zoom === null || this.zoom === i));
    const parts = over.map(([tile, i]) => {
      if (this.kind === "crops") return `crop ${i + 1}: ${signed(tile.logit)}`;
      const values = this.kind === "patches" ? tile.attribution : tile.routing[this.block]?.experts;
      const hit = values && patches(tile, values).find(([, , , box]) => inside(box, x, y));
      return hit ? `crop ${i + 1}, row ${hit[0] + 1}, column ${hit[1] + 1}: ${this.kind === "patches" ? fine(hit[2]) : `expert ${hit[2] + 1}`}` : "";
    });
    this.readout.textContent = `At ${Math.floor(x)}, ${Math.floor(y)}: ${parts.filter(Boolean).join("; ") || "not looked at"}`;
  }

  /** Choose the crop under the pointer; a second time shows the whole image. */
  pick(event) {
    const tile = this.zoom === null && nearest(this.tiles, ...this.at(event));
    this.show({ zoom: tile ? this.tiles.indexOf(tile) : null });
  }

  say(i = this.zoom) {
    this.readout.textContent = i === null ? "Point at the map for its numbers; choose a crop to see it alone."
      : `Crop ${i + 1}, pixels ${place(this.tiles[i].box)}: ${signed(this.tiles[i].logit)}`;
  }

  /** The map as an <img> of its own data, with the picture only if it is wanted. */
  snapshot(withPicture) {
    const [left, top, right, bottom] = this.view, scale = SNAPSHOT / Math.max(right - left, bottom - top);
    const canvas = document.createElement("canvas");
    this.paint(canvas, (right - left) * scale, (bottom - top) * scale, 1, withPicture ? this.picture : null);
    return h("img", { src: canvas.toDataURL("image/png"), alt: this.canvas.getAttribute("aria-label") });
  }
}
