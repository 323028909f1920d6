// Reports that are made in the browser and saved: JSON, CSV, and HTML that stands alone.

import { card, limits } from "./card.js";
import { grid, h, nameOf } from "./dom.js";
import { found, ofAI, show, verdictOf } from "./words.js";

const SIDE = 1000;  // most pixels of the picture in a report

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const plain = (name) => name.replace(/[^\w.-]+/g, "_").replace(/^[.]+/, "").slice(0, 80) || "image";

/** The answer of the server, with the name and time that only the page knows. */
const record = ({ file, at = null, request = null, human = null, about, result, error }) => ({
  file: file.name, bytes: file.size, sha256: result?.sha256 ?? null, at, request_id: request,
  detection: result?.detection ?? null, evidence: result?.evidence ?? null, provenance: result?.provenance ?? null,
  region: result?.region ?? null, calibration: about?.calibration ?? null,
  human: human?.verdict || human?.note ? human : null,
  error: error && { code: error.code, message: error.message },
});

/** One field: quoted where it must be; text that a spreadsheet would take for a formula gets an apostrophe. */
function field(value) {
  const text = typeof value === "string" && /^\s*[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function columns({ file, human, result, error }) {
  const { verdict, probability, logit, width, height, coverage, reason, detector } = result?.detection ?? {}, findings = result?.provenance.findings.map(({ title }) => title).join("; ");
  return { file: file.name, verdict, probability, logit, width, height, coverage, reason, findings, detector,
    sha256: result?.sha256, region: result?.region?.join(" "), human_verdict: human?.verdict, note: human?.note,
    error: error?.code, message: error?.message };
}

export function csv(items) {
  const rows = items.map(columns), lines = [Object.keys(rows[0]), ...rows.map(Object.values)].map((row) => row.map(field).join(","));
  return `\ufeff${lines.join("\r\n")}\r\n`;  // the mark: spreadsheets take it for UTF-8
}

/** A picture as data, no larger than a report needs and without the metadata of its file. */
function copyOf(picture) {
  const { naturalWidth: width, naturalHeight: height } = picture, scale = Math.min(1, SIDE / Math.max(width, height));
  const canvas = h("canvas", { width: Math.ceil(width * scale), height: Math.ceil(height * scale) });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

/** The card of a report: without controls, and with the picture only if it is wanted. */
async function still(item, { picture = false, view = {} }) {
  const { element, map, other } = card(item, null, view);
  for (const each of [map, other].filter(Boolean)) {
    await each.ready;
    if (picture && each.picture) each.picture.src = copyOf(each.picture);
    else each.picture?.remove();
  }
  other?.strip.remove();
  for (const canvas of element.querySelectorAll("canvas")) {
    if (picture) canvas.replaceWith(h("img", { class: canvas.className, src: canvas.toDataURL(), alt: "", style: { "--ratio": canvas.style.getPropertyValue("--ratio") } }));
  }
  if (!picture) for (const shows of element.querySelectorAll(".strip, .traces")) shows.remove();
  for (const control of element.querySelectorAll("[data-screen]")) control.remove();
  for (const button of element.querySelectorAll("button")) button.replaceWith(h("span", { class: button.classList.contains("cut") ? "cut" : null }, ...button.childNodes));
  for (const details of element.querySelectorAll("details")) details.open = true;
  return element;
}

/** A page that needs nothing and asks for nothing. */
async function page(items, options) {
  const summary = items.map((item) => [nameOf(item), item.error?.message ?? verdictOf(item.result.detection).words,
    ...(show.percentages ? [ofAI(item.result?.detection.probability)] : []), item.result ? found(item.result.provenance.findings) : ""]);
  const body = h("body", {},
    h("h1", {}, "clipmole report"),
    h("p", { class: "soft" }, "A likelihood and what it rests on. Not a proof."),
    items.length > 1 ? grid("Images and verdicts", ["Image", "Verdict", ...(show.percentages ? ["Probability"] : []), "Metadata"], summary, show.percentages ? [2] : []) : null);
  for (const item of items) body.append(await still(item, options));
  body.append(limits(items[0].about));
  const style = [...document.styleSheets[0].cssRules].map(({ cssText }) => cssText).join("\n");
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>clipmole report</title><style>
${style}</style></head>${body.outerHTML}</html>
`;
}

/** Download `items` as "csv", "json" or "html". */
export async function save(items, kind, options = {}) {
  if (!items.length) return;
  const one = items.length === 1, name = `clipmole-${one ? plain(items[0].file.name) : `${items.length}-images`}.${kind}`;
  if (kind === "csv") download(name, "text/csv", csv(items));
  else if (kind === "json") download(name, "application/json", JSON.stringify(one ? record(items[0]) : items.map(record), null, 2));
  else download(name, "text/html", await page(items, options));
}
