// The page: takes files, sends each to the server, shows the answers. Nothing is kept when it is closed.

import { Failure, alive, describe, detect, useToken } from "./api.js";
import { card, limits } from "./card.js";
import { h, nameOf } from "./dom.js";
import { save } from "./save.js";
import { bytes, headline, percent, verdictOf } from "./words.js";

const AT_ONCE = 3;  // images on the way at the same time
const TRIES = 8;  // how often a busy server is asked again
const $ = (id) => document.getElementById(id);
const items = [];  // {id, file, state: waiting | sending | looking | busy | done | failed, ...}
let detector = null;  // what the server says of it; null until it answered
let running = 0, given = 0, opened = null, stop = new AbortController(), order = { by: null, down: false };

const pause = (seconds) => new Promise((wake) => { setTimeout(wake, 1000 * seconds); });
const say = (text) => { if ($("live").textContent !== text) $("live").textContent = text; };
const finished = ({ state }) => state === "done" || state === "failed";

// --- the server ---------------------------------------------------------------------------------------------------

async function connect() {
  try { detector = await describe(); } catch (error) { return trouble(error); }
  $("banner").hidden = true;
  $("privacy").textContent = `Images go to ${location.host} only and are not kept there. At most ${bytes(detector.limits.max_image_bytes)} each.`;
  $("limits").replaceChildren(limits(detector));
  $("about").hidden = false;
  next();
}

/** What concerns the server and not one image: say it once, stop, go on when it is mended. */
function trouble({ code, message, retryAfter }) {
  detector = null;
  const texts = {
    token: $("token-form").hidden ? "This server asks for an access token." : "The server does not accept this token.",
    busy: "The server is not ready yet. Asking again…",
    gone: "The server does not answer. Is it still running? Images that wait are sent when it is back.",
  };
  notice(texts[code] ?? message);
  $("token-form").hidden = code !== "token";
  $("retry").hidden = code === "token";
  if (code === "token") $("token").focus();
  if (code === "busy") pause(retryAfter).then(connect);
}

function notice(text) {
  $("banner-text").textContent = text;
  $("retry").hidden = true;
  $("banner").hidden = false;
}

// --- images in ----------------------------------------------------------------------------------------------------

function add(files) {
  if (detector) $("banner").hidden = true;
  for (const file of files) items.push({ id: given++, file, state: "waiting", sent: 0, note: "", tries: 0 });
  say(files.length === 1 ? "One image is being looked at." : `${files.length} images are being looked at.`);
  draw();
  next();
}

function take({ files, types }) {
  if (files.length) add([...files]);
  else if (types.some((type) => type.startsWith("text/")))
    notice("That was a link or a text, not an image file. This page fetches no addresses: save the image and choose the file.");
}

function next() {
  while (detector && running < AT_ONCE) {
    const item = items.find(({ state }) => state === "waiting");
    if (!item) return;
    running += 1;
    look(item, stop.signal).finally(() => { running -= 1; refresh(item); next(); });
  }
}

const fail = (item, code, message) => Object.assign(item, { state: "failed", error: { code, message } });

/** Send one image and keep its answer. */
async function look(item, signal) {
  Object.assign(item, { state: "sending", sent: 0, error: null, about: detector });
  const { max_image_bytes: most } = detector.limits, { file } = item;
  if (file.size > most) return fail(item, "too_large", `It has ${file.size.toLocaleString("en")} bytes; this server takes at most ${most.toLocaleString("en")} an image.`);
  try { await file.slice(0, 1).arrayBuffer(); }
  catch { return fail(item, "folder", "It cannot be read here: a folder, or a file that was moved or changed."); }
  refresh(item);
  try {
    const onSent = (share) => { item.sent = share; item.state = share < 1 ? "sending" : "looking"; progress(item); };
    const { result, request_id: request } = await detect(file, { onSent, signal });
    if (result.error) fail(item, result.error.code, result.error.message);
    else Object.assign(item, { state: "done", result, request, at: new Date(), sha256: await digest(file) });
  } catch (error) {
    await recover(item, error, signal);
  }
}

async function recover(item, { code, message, retryAfter }, signal) {
  if (code === "busy" && item.tries < TRIES) {
    item.tries += 1;
    item.state = "busy";
    for (let left = Math.min(60, Math.max(1, retryAfter)); left > 0 && !signal.aborted; left -= 1) {
      item.note = `server busy, again in ${Math.ceil(left)} s`;
      progress(item);
      await pause(Math.min(1, left));
    }
    item.state = "waiting";
  } else if (code === "token" || (code === "gone" && !(await alive()))) {
    item.state = "waiting";
    if (!signal.aborted) trouble({ code, message });
  } else if (code === "gone") {
    fail(item, "broken", "The connection ended while this image was on its way. The server may have refused its size.");
  } else {
    fail(item, code, message);
  }
}

/** SHA-256 of a file in hexadecimal; null where the browser does not offer it (plain http from another machine). */
async function digest(file) {
  try {
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
    return [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  } catch { return null; }
}

// --- answers out --------------------------------------------------------------------------------------------------

const KEYS = {
  name: ({ file }) => file.name.toLowerCase(),
  verdict: ({ result }) => result && verdictOf(result.detection).order,
  probability: ({ result }) => result?.detection.probability,
  pixels: ({ result }) => result && result.detection.width * result.detection.height,
  findings: ({ result }) => result?.provenance?.findings.length,
};

/** Items in the order of the table; what has no value stands last, whichever way it is sorted. */
function sorted() {
  if (!order.by) return [...items];
  const turn = order.down ? -1 : 1;
  return [...items].sort((first, second) => {
    const [a, b] = [first, second].map((item) => KEYS[order.by](item) ?? null);
    if (a === null || b === null) return (a === null) - (b === null);
    return a < b ? -turn : a > b ? turn : first.id - second.id;
  });
}

function status(item) {
  if (item.state === "failed") return `✕ ${headline(item.error.code).toLowerCase()}`;
  if (item.state === "done") return `${verdictOf(item.result.detection).sign} ${verdictOf(item.result.detection).words}`;
  return { waiting: "waiting", sending: "sending", looking: "looking at it", busy: item.note }[item.state];
}

function row(item) {
  const found = item.result?.detection, name = nameOf(item);
  item.bar = finished(item) ? null : h("progress", { max: 1, value: 0, "aria-label": `Progress of ${item.file.name}` });
  item.words = h("span");
  item.row = h("tr", {},
    h("td", { class: "thumb" }, item.thumb),
    h("th", { scope: "row" }, finished(item) ? h("button", { type: "button", class: "link", "aria-current": opened === item && "true", click: () => show(item, true) }, name) : name),
    h("td", { class: `state ${found?.verdict ?? item.state}` }, item.words, item.bar),
    h("td", { class: "number" }, found ? percent(found.probability) : ""),
    h("td", { class: "number wide" }, found ? `${found.width} × ${found.height}` : ""),
    h("td", { class: "number wide" }, item.result?.provenance ? String(item.result.provenance.findings.length) : ""));
  progress(item);
  return item.row;
}

function progress(item) {
  if (!item.words) return;
  item.words.textContent = status(item);
  if (item.state === "sending") item.bar.value = item.sent;
  else if (item.state === "looking") item.bar.removeAttribute("value");
}

async function thumb(item) {
  if (item.thumb || !item.result) return;
  item.thumb = h("canvas", { width: 72, height: 72, "aria-hidden": "true" });
  try {
    const { width, height } = item.result.detection, side = Math.min(width, height);
    const square = await createImageBitmap(item.file, (width - side) >> 1, (height - side) >> 1, side, side, { resizeWidth: 72, resizeHeight: 72 });
    item.thumb.getContext("2d").drawImage(square, 0, 0);
    item.row.firstChild.replaceChildren(item.thumb);
  } catch { /* a kind of file that this browser cannot draw */ }
}

/** Show what became of one item. */
function refresh(item) {
  if (!items.includes(item)) return;
  if (order.by || items.length === 1) return draw();
  item.row.replaceWith(row(item));
  thumb(item);
  tally();
}

function draw() {
  const focused = items.find((item) => item.row?.contains(document.activeElement));
  const alone = items.length === 1 && finished(items[0]);
  $("list").hidden = !items.length || alone;
  $("clear").hidden = !items.length;
  $("table").tBodies[0].replaceChildren(...sorted().map(row));
  focused?.row.querySelector("button")?.focus();
  for (const head of document.querySelectorAll("[data-sort]")) {
    if (head.dataset.sort === order.by) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  if (items.length > 1) items.forEach(thumb);
  tally();
  if (alone && opened !== items[0]) show(items[0], false);
}

function tally() {
  const count = (test) => items.filter(test).length, left = items.length - count(finished);
  const parts = [
    ...["real", "uncertain", "ai_generated"].map((verdict) => [count(({ result }) => result?.detection.verdict === verdict), verdictOf({ verdict }).words]),
    [count(({ result }) => result && !result.detection.verdict), "without a verdict"],
    [count(({ state }) => state === "failed"), "not scored"], [left, "to go"],
  ];
  $("tally").textContent = parts.filter(([number]) => number).map(([number, words]) => `${number} ${words}`).join(" · ");
  if (left || !items.length) return;
  const [{ file, error, result }] = items;
  say(items.length > 1 ? `All ${items.length} images done: ${$("tally").textContent}`
    : error ? `${headline(error.code)}: ${error.message}` : `${file.name}: ${verdictOf(result.detection).words}, ${percent(result.detection.probability)}`);
}

function show(item, move) {
  opened = item;
  const made = card(item, again, (kind, options) => save([item], kind, item.about, options));
  $("card").replaceChildren(made.element);
  $("table").querySelector("[aria-current]")?.removeAttribute("aria-current");
  item.row.querySelector("button").setAttribute("aria-current", "true");
  if (move) made.element.querySelector("h2").focus();
}

function again(item) {
  Object.assign(item, { state: "waiting", error: null, tries: 0 });
  opened = null;
  $("card").replaceChildren();
  draw();
  $("list-title").focus();
  next();
}

function clear() {
  stop.abort();
  stop = new AbortController();
  items.length = 0;
  opened = null;
  order = { by: null, down: false };
  $("card").replaceChildren();
  draw();
  say("Cleared.");
  $("files").focus();
}

// --- wiring -------------------------------------------------------------------------------------------------------

const on = (target, kind, act) => target.addEventListener(kind, act);
const over = (is) => $("drop").classList.toggle("over", is);

on($("files"), "change", (event) => { add([...event.target.files]); event.target.value = ""; });
on(document, "paste", (event) => { if (!event.target.closest?.("input")) take(event.clipboardData); });
on(document, "dragover", (event) => { event.preventDefault(); over(true); });
on(document, "dragleave", (event) => { if (!event.relatedTarget) over(false); });
on(document, "drop", (event) => { event.preventDefault(); over(false); take(event.dataTransfer); });
on($("clear"), "click", clear);
on($("retry"), "click", connect);
on($("token-form"), "submit", (event) => { event.preventDefault(); useToken($("token").value); $("token").value = ""; connect(); });
for (const button of document.querySelectorAll("[data-save]"))
  on(button, "click", () => { const ready = sorted().filter(finished); if (ready.length) save(ready, button.dataset.save, ready[0].about); });
for (const head of document.querySelectorAll("[data-sort]"))
  on(head.firstChild, "click", () => { order = { by: head.dataset.sort, down: order.by === head.dataset.sort && !order.down }; draw(); });
connect();
