// The page: takes files, sends each to the server, shows the answers. Nothing is kept when it is closed.

import { alive, describe, detect, fail, useToken } from "./api.js";
import { card, limits } from "./card.js";
import { h, nameOf } from "./dom.js";
import { save } from "./save.js";
import { bytes, found as foundIn, headline, ofAI, show as shows, verdictOf } from "./words.js";

const AT_ONCE = 3;  // images on the way at the same time
const TRIES = 8;  // how often a busy server is asked again
const OUTCOMES = ["likely photograph", "uncertain", "likely AI-generated", "without a verdict", "not scored", "to go"];
const $ = (id) => document.getElementById(id);
const body = $("table").tBodies[0];
const items = [];  // {file, row, state (what is done with it, in words), sent, tries, about, result or error, ...}
let detector = null;  // what the server says of it; null until it answered
let running = 0, stop = new AbortController();

const pause = (seconds) => new Promise((wake) => { setTimeout(wake, 1000 * seconds); });
const say = (text) => { if ($("live").textContent !== text) $("live").textContent = text; };
const finished = ({ result, error }) => Boolean(result ?? error);
const outcome = ({ result, error }) => {
  if (error) return "not scored";
  return !result ? "to go" : result.detection.verdict ? verdictOf(result.detection).words : "without a verdict";
};

// --- the server ---------------------------------------------------------------------------------------------------

async function connect() {
  try { detector = await describe(); } catch (error) { return trouble(error); }
  const most = bytes(detector.limits.max_image_bytes);
  $("privacy").textContent = `Images go to ${location.host} only and are not kept there. At most ${most} each.`;
  $("about").replaceChildren(limits(detector));
  $("banner").hidden = true;
  $("banner").dataset.code = "";
  next();
}

/** What concerns the server and not one image: say it once, stop, go on when it is mended. */
function trouble({ code, message, retryAfter }) {
  const again = $("banner").dataset.code === code, texts = {
    token: again ? "The server does not accept this token." : "This server asks for an access token.",
    busy: "The server is not ready yet. Asking again…",
    gone: "The server does not answer. Is it still running? Waiting images are sent when it is back.",
  };
  detector = null;
  notice(texts[code] ?? message, code);
  if (code === "token") $("token").focus();
  if (code === "busy") pause(retryAfter).then(connect);
}

/** A line above everything. The code of what is wrong with the server decides what it offers; see the style. */
function notice(text, code = detector ? "" : $("banner").dataset.code) {
  $("banner-text").textContent = text;
  $("banner").dataset.code = code;
  $("banner").hidden = false;
}

// --- images in ----------------------------------------------------------------------------------------------------

function add(files) {
  if (detector) $("banner").hidden = true;
  for (const file of files) items.push(renew({ file, row: h("tr") }));
  say(files.length === 1 ? "One image is being looked at." : `${files.length} images are being looked at.`);
  arrange();
  next();
}

const renew = (item) => update(item, { state: "waiting", sent: 0, tries: 0, error: null });

function take({ files, types }) {
  if (files.length) add([...files]);
  else if (types.some((type) => type.startsWith("text/")))
    notice("That was a link or a text, not an image file. This page does not fetch links: save the image, then choose the file.");
}

function next() {
  while (detector && running < AT_ONCE) {
    const item = items.find(({ state }) => state === "waiting");
    if (!item) return;
    running += 1;
    look(item, stop.signal).finally(() => { running -= 1; next(); });
  }
}

/** Send one image and keep its answer. */
async function look(item, signal) {
  const { file } = item, most = detector.limits.max_image_bytes;
  update(item, { state: "sending", sent: 0, about: detector });
  try {
    if (!file.size) throw fail("empty", "It has no bytes.");
    if (file.size > most) throw fail("too_large",
      `It has ${file.size.toLocaleString("en")} bytes; this server takes at most ${most.toLocaleString("en")} an image.`);
    await file.slice(0, 1).arrayBuffer().catch(() => {
      throw fail("folder", "It cannot be read: it is a folder, or a file that has been moved or changed.");
    });
    const onSent = (sent) => update(item, sent < 1 ? { sent } : { sent: null, state: "looking at it" });
    const { result, request_id: request } = await detect(file, { region: item.region, onSent, signal });
    if (result.error) throw result.error;
    settle(item, { result, request, at: new Date() });
  } catch (error) {
    await recover(item, error, signal);
  }
}

async function recover(item, error, signal) {
  const { code, retryAfter } = error;
  if (code === "busy" && item.tries < TRIES) {
    for (let left = retryAfter; left > 0 && !signal.aborted; left -= 1) {
      update(item, { state: `server busy, again in ${left} s`, sent: 0 });
      await pause(1);
    }
    update(item, { state: "waiting", tries: item.tries + 1 });
  } else if (code === "token" || (code === "gone" && !(await alive()))) {
    update(item, { state: "waiting", sent: 0 });
    if (detector && !signal.aborted) trouble(error);
  } else if (code === "gone") {
    const message = "The connection ended while this image was on its way. The server may have refused its size.";
    settle(item, { error: fail("broken", message) });
  } else {
    settle(item, { error });
  }
}

// --- answers out --------------------------------------------------------------------------------------------------

/** Change an item and show it in its row; gives the item. */
function update(item, change) {
  const { file, row, state, sent, result, error } = Object.assign(item, change);
  const found = result?.detection, findings = result && foundIn(result.provenance.findings), { sign, words } = verdictOf(found);
  const name = nameOf(item), open = () => show(item, true);
  item.keys = { name: file.name.toLowerCase(), verdict: found && OUTCOMES.indexOf(outcome(item)), findings,
    probability: found?.probability, pixels: found && found.width * found.height };
  row.replaceChildren(
    h("td", { class: "thumb" }, found ? thumb(file) : null),
    h("th", { scope: "row" }, finished(item) ? h("button", { type: "button", class: "link", click: open }, name) : name),
    h("td", { class: `state ${found?.verdict ?? ""}` },
      error ? `✕ ${headline(error.code).toLowerCase()}` : found ? `${sign} ${words}` : state,
      finished(item) ? null : h("progress", { max: 1, value: sent, "aria-label": `Progress of ${file.name}` })),
    h("td", { class: "number percent" }, found && !found.reason ? ofAI(found.probability) : ""),
    h("td", { class: "number wide" }, found ? `${found.width} × ${found.height}` : ""),
    h("td", { class: "wide" }, findings ? h("bdi", {}, findings) : ""));
  return item;
}

/** A small picture, if this browser can draw the file; it is read when it comes into view. */
function thumb(file) {
  const src = URL.createObjectURL(file);
  return h("img", { src, alt: "", loading: "lazy", load: () => URL.revokeObjectURL(src), error: (event) => event.target.remove() });
}

/** An item has its answer. */
function settle(item, answer) {
  update(item, { ...answer, state: "done" });
  if (!items.includes(item)) return;  // cleared since
  arrange();
  if (items.length === 1 || item.region) show(item, false);
}

/** Items in the order of the table; what has no value stands last, whichever way it is sorted. */
function sorted() {
  const head = $("table").querySelector("[aria-sort]");
  if (!head) return items;
  const key = ({ keys }) => keys[head.dataset.sort] ?? null, turn = head.ariaSort === "descending" ? -1 : 1;
  const compare = (a, b) => (a < b ? -turn : a > b ? turn : 0);
  const known = items.filter((item) => key(item) !== null).sort((first, second) => compare(key(first), key(second)));
  return [...known, ...items.filter((item) => key(item) === null)];
}

/** What depends on all images: the order of the rows, what is visible, the tally. */
function arrange() {
  const focused = document.activeElement;
  sorted().forEach(({ row }, i) => { if (body.rows[i] !== row) body.insertBefore(row, body.rows[i] ?? null); });
  if (body.contains(focused)) focused.focus({ preventScroll: true });
  $("list").hidden = !items.length || (items.length === 1 && finished(items[0]));
  $("clear").hidden = !items.length;
  const counts = OUTCOMES.map((words) => [items.filter((item) => outcome(item) === words).length, words]);
  $("tally").textContent = counts.filter(([count]) => count).map((parts) => parts.join(" ")).join(" · ");
  if (items.length && items.every(finished)) say(items.length > 1 ? `All images done: ${$("tally").textContent}` : inWords(items[0]));
}

const inWords = ({ file, error, result }) => (error ? `${headline(error.code)}: ${error.message}`
  : `${file.name}: ${verdictOf(result.detection).words}${shows.percentages ? `, ${ofAI(result.detection.probability)}` : ""}`);

/** Another order: by this head, or turned around if it is by this one. */
function sortBy(head) {
  const order = head.ariaSort === "ascending" ? "descending" : "ascending";
  for (const other of document.querySelectorAll("[data-sort]")) other.ariaSort = other === head ? order : null;
  arrange();
}

function show(item, move) {
  const { element } = card(item, { again, part: (region) => part(item, region), save: (kind, options) => save([item], kind, options) });
  $("card").replaceChildren(element);
  body.querySelector("[aria-current]")?.removeAttribute("aria-current");
  item.row.querySelector("button").setAttribute("aria-current", "true");
  if (move) element.querySelector("h2").focus();
}

/** Look at a part of an image: a row of its own. */
function part({ file }, region) {
  items.push(renew({ file, region, row: h("tr") }));
  say("A part of the image is being looked at.");
  arrange();
  next();
}

/** Show or hide percentages, wherever they stand. */
function percentages(shown) {
  shows.percentages = shown;
  document.body.classList.toggle("labels-only", !shown);
  const open = items.find(({ row }) => row.querySelector("[aria-current]"));
  for (const item of items) update(item, {});
  if (detector) $("about").replaceChildren(limits(detector));
  if (open) show(open, false);
}

function again(item) {
  renew(item);
  $("card").replaceChildren();
  arrange();
  $("list-title").focus();
  next();
}

function clear() {
  stop.abort();
  stop = new AbortController();
  items.length = 0;
  $("card").replaceChildren();
  body.replaceChildren();
  arrange();
  say("Cleared.");
  $("files").focus();
}

// --- wiring -------------------------------------------------------------------------------------------------------

const on = (target, kind, act) => target.addEventListener(kind, act);
const over = (is) => $("drop").classList.toggle("over", is);

on($("files"), "change", ({ target }) => { add([...target.files]); target.value = ""; });
on(document, "paste", (event) => { if (!event.target.closest?.("input, textarea")) take(event.clipboardData); });
on(document, "dragover", (event) => { event.preventDefault(); over(true); });
on(document, "dragleave", (event) => { if (!event.relatedTarget) over(false); });
on(document, "drop", (event) => { event.preventDefault(); over(false); take(event.dataTransfer); });
on($("clear"), "click", clear);
on($("retry"), "click", connect);
on($("percentages"), "change", ({ target }) => percentages(target.checked));
on(window, "beforeprint", () => { for (const fold of $("card").querySelectorAll("details:not([data-screen])")) fold.open = true; });
on($("token-form"), "submit", (event) => {
  event.preventDefault();
  useToken($("token").value);
  event.target.reset();
  connect();
});
for (const button of document.querySelectorAll("[data-save]"))
  on(button, "click", () => save(sorted().filter(finished), button.dataset.save));
for (const head of document.querySelectorAll("[data-sort]")) on(head.firstChild, "click", () => sortBy(head));
connect();
