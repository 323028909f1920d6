// Reports that are made in the browser and saved: JSON, CSV, and HTML that stands alone.

import { card, limits } from "./card.js";
import { grid, h, nameOf } from "./dom.js";
import { percent, verdictOf } from "./words.js";

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const plain = (name) => name.replace(/[^\w.-]+/g, "_").replace(/^[.]+/, "").slice(0, 80) || "image";

/** The answer of the server, with the name, hash and time that only the page knows. */
const record = (item) => ({
  file: item.file.name, bytes: item.file.size, sha256: item.sha256, at: item.at?.toISOString() ?? null, request_id: item.request ?? null,
  detection: item.result?.detection ?? null, evidence: item.result?.evidence ?? null, provenance: item.result?.provenance ?? null,
  error: item.error ? { code: item.error.code, message: item.error.message } : null,
});

/** One field: quoted where it must be; text that a spreadsheet would take for a formula gets an apostrophe. */
function field(value) {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" && /^\s*[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function csv(items) {
  const heads = ["file", "verdict", "probability", "logit", "width", "height", "findings", "detector", "sha256", "error", "message"];
  const rows = items.map(({ file, result, error, sha256 }) => {
    const found = result?.detection;
    return [file.name, found?.verdict, found?.probability, found?.logit, found?.width, found?.height,
      result?.provenance?.findings?.length, found?.detector, sha256, error?.code, error?.message];
  });
  return `\ufeff${[heads, ...rows].map((row) => row.map(field).join(",")).join("\r\n")}\r\n`;  // the mark: spreadsheets take it for UTF-8
}

/** A page that needs nothing and asks for nothing: the cards without their controls, the maps as pictures. */
async function page(items, detector, options) {
  const body = h("body", {}, h("header", {}, h("h1", {}, "clipmole report"), h("p", { class: "lead" }, "A likelihood and what it rests on. Not a proof.")));
  if (items.length > 1)
    body.append(grid("Images and verdicts", ["Image", "Verdict", "AI-generated"], items.map((item) => [nameOf(item),
      item.error ? item.error.message : verdictOf(item.result?.detection).words, percent(item.result?.detection?.probability)]), [2]));
  for (const item of items) {
    const made = card(item, () => {}, () => {});
    await made.map?.ready;
    made.map?.show(options.view);
    made.map?.canvas.replaceWith(made.map.snapshot(options.picture ?? false));
    for (const control of made.element.querySelectorAll("[data-screen]")) control.remove();
    for (const button of made.element.querySelectorAll("button")) button.replaceWith(button.textContent);
    for (const details of made.element.querySelectorAll("details")) details.open = true;
    for (const title of made.element.querySelectorAll("[id]")) title.removeAttribute("id");
    body.append(made.element);
  }
  body.append(h("section", {}, h("h2", {}, "What this detector does not know"), limits(detector)));
  const style = [...document.styleSheets[0].cssRules].map(({ cssText }) => cssText).join("\n");
  return `<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">`
    + `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">`
    + `<title>clipmole report</title><style>\n${style}</style></head>${body.outerHTML}</html>\n`;
}

/** Download `items` as "csv", "json" or "html". */
export async function save(items, kind, detector, options = {}) {
  const name = `clipmole-${items.length === 1 ? plain(items[0].file.name) : `${items.length}-images`}.${kind}`;
  if (kind === "csv") download(name, "text/csv", csv(items));
  else if (kind === "json") download(name, "application/json", JSON.stringify(items.length === 1 ? record(items[0]) : items.map(record), null, 2));
  else download(name, "text/html", await page(items, detector, options));
}
