// One image's answer as an <article>: verdict, what it means, map, metadata, numbers. Also the body of a saved report.

import { grid, h, nameOf } from "./dom.js";
import { EvidenceMap } from "./map.js";
import { RARE, bytes, capital, caution, headline, meaning, percent, signed, verdictOf } from "./words.js";

const day = (date) => `${date.toISOString().slice(0, 16).replace("T", " ")} UTC`;

/** The probability on a line from 0 to 100 %, with the zones of the three verdicts. */
function gauge({ probability, thresholds }) {
  const zones = [["real", thresholds.real], ["uncertain", thresholds.ai - thresholds.real], ["ai_generated", 1 - thresholds.ai]].map(([kind, size]) => {
    const zone = h("span", { class: `zone ${kind}` });
    zone.style.flexGrow = String(size);
    return zone;
  });
  const mark = h("span", { class: "mark" });
  mark.style.left = `${100 * Math.min(0.99, Math.max(0.01, probability))}%`;
  return h("div", {},
    h("div", { class: "gauge", role: "img", "aria-label": `${percent(probability)} on a scale from 0 to 100 %` }, zones, mark),
    h("ul", { class: "zones" },
      h("li", { class: "real" }, `below ${percent(thresholds.real)}: likely photograph`),
      h("li", { class: "uncertain" }, `${percent(thresholds.real)} to ${percent(thresholds.ai)}: uncertain`),
      h("li", { class: "ai_generated" }, `above ${percent(thresholds.ai)}: likely AI-generated`)));
}

const POINTS = { "ai-generated": "▲ speaks for AI-generated", photograph: "● speaks for a photograph", edited: "◆ speaks for an edit", neither: "context" };

function findings(provenance) {
  const list = provenance?.findings ?? [];
  return h("section", { class: "apart" },
    h("h3", {}, "Metadata of the file"),
    h("p", { class: "soft" }, provenance?.caution ?? "Apart from the score, which knows nothing of it."),
    !provenance ? h("p", {}, "Not read by this server.")  : list.length ? null : h("p", {}, "Nothing found that tells where the image comes from."),
    list.length ? h("ul", { class: "findings" }, list.map((finding) => h("li", {},
      h("strong", {}, finding.title), h("span", { class: "tag" }, `${POINTS[finding.points_to] ?? finding.points_to}, ${finding.strength}`),
      finding.detail ? h("p", {}, h("bdi", {}, finding.detail)) : null, finding.key ? h("p", { class: "soft" }, finding.key) : null))) : null,
    (provenance?.not_checked ?? []).map((text) => h("p", { class: "soft" }, `Not checked: ${text}`)));
}

function numbers(item) {
  const { detection } = item.result;
  return h("details", {}, h("summary", {}, "Numbers to quote"), grid("What was looked at, by what, and when", ["", "Value"], [
    ["File", nameOf(item)],
    ["Size", `${bytes(item.file.size)}, ${detection.width} × ${detection.height} pixels`],
    ["SHA-256 of the file", item.sha256 ?? "not computed: the browser does that only over https or on this computer"],
    ["Detector", detection.detector],
    ["Score", `${signed(detection.logit)} (positive towards AI-generated)`],
    ["Probability", detection.probability === null ? "none: not calibrated" : percent(detection.probability)],
    ["Verdict", verdictOf(detection).words],
    ["Looked at", day(item.at)],
    ["Request", item.request],
  ]));
}

/** The limits of a detector, as a list. */
export function limits(detector) {
  return h("div", {},
    h("ul", {}, (detector?.limitations ?? []).map((text) => h("li", {}, text))),
    h("p", { class: "soft" }, `Detector ${detector?.detector ?? "unknown"}.`));
}

/** What could not be scored, with the reason and what to do. */
function failed(item, again) {
  return h("article", { class: "card failed", "aria-labelledby": "card-title" },
    h("h2", { id: "card-title", tabindex: "-1" }, nameOf(item)),
    h("p", { class: "verdict" }, h("span", { "aria-hidden": "true" }, "✕"), headline(item.error.code)),
    h("p", {}, item.error.message),
    h("div", { class: "buttons", "data-screen": "" }, h("button", { type: "button", click: () => again(item) }, "Try again")));
}

/** {element, map} of an item that is done or failed. `again` retries it, `save(kind, options)` downloads it. */
export function card(item, again, save) {
  if (item.error) return { element: failed(item, again), map: null };
  const { detection, provenance } = item.result, { calibration } = item.about;
  const verdict = verdictOf(detection), map = new EvidenceMap(item);
  const keep = h("input", { type: "checkbox" });
  const strong = provenance?.findings.find(({ strength, points_to: points }) => strength === "strong" && points !== "neither");
  const element = h("article", { class: `card ${detection.verdict ?? "none"}`, "aria-labelledby": "card-title" },
    h("h2", { id: "card-title", tabindex: "-1" }, nameOf(item)),
    h("p", { class: "verdict" }, h("span", { "aria-hidden": "true" }, verdict.sign), h("span", {}, capital(verdict.words)),
      detection.probability === null ? null : h("span", { class: "percent" }, percent(detection.probability))),
    detection.thresholds ? gauge(detection) : null,
    h("p", { class: "meaning" }, meaning(detection, calibration)),
    strong ? h("p", { class: "banner" }, "Apart from this score, the metadata of the file say something, below: ", h("bdi", {}, strong.title), ".") : null,
    h("p", {}, caution(detection, calibration), detection.probability === null ? null : ` ${RARE}`),
    h("div", { class: "buttons", "data-screen": "" },
      h("button", { type: "button", click: () => save("html", { picture: keep.checked, view: map.choice }) }, "Save report"),
      h("button", { type: "button", click: () => save("json") }, "Save JSON"),
      h("label", {}, keep, "with the image in the report")),
    h("section", {}, h("h3", {}, "Where the score comes from"), map.element),
    findings(provenance),
    numbers(item));
  return { element, map };
}
