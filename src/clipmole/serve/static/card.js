// One image's answer as an <article>: verdict, what it means, map, metadata, numbers. Also the body of a saved report.

import { grid, h, nameOf } from "./dom.js";
import { EvidenceMap } from "./map.js";
import { RARE, bytes, capital, caution, headline, meaning, percent, seen, signed, verdictOf } from "./words.js";

const soft = (text) => h("p", { class: "soft" }, text);

/** The probability on a line from 0 to 100 %, with the zones of the three verdicts. */
function gauge({ probability, thresholds: { real, ai } }) {
  const at = (share) => `${100 * share}%`;
  const style = { "--low": at(real), "--high": at(ai), "--mark": at(Math.min(0.99, Math.max(0.01, probability))) };
  return h("div", {},
    h("div", { class: "gauge", style, role: "img", "aria-label": `${percent(probability)} on a scale from 0 to 100 %` }),
    soft(`below ${percent(real)}: likely photograph · ${percent(real)} to ${percent(ai)}: uncertain · above: likely AI-generated`));
}

const POINTS = {
  "ai-generated": "▲ speaks for AI-generated",
  photograph: "● speaks for a photograph",
  edited: "◆ speaks for an edit",
  neither: "context",
};

const finding = ({ title, points_to: points, strength, detail, key }) => h("li", {},
  h("strong", {}, title),
  h("span", { class: "tag" }, `${POINTS[points] ?? points}, ${strength}`),
  detail ? h("p", {}, h("bdi", {}, detail)) : null,
  key ? soft(key) : null);

const metadata = ({ findings, caution, not_checked: unchecked }) => h("section", {},
  h("h3", {}, "Metadata of the file"),
  soft(caution),
  findings.length ? h("ul", { class: "findings" }, findings.map(finding))
    : h("p", {}, "Nothing found that tells where the image comes from."),
  unchecked.map((text) => soft(`Not checked: ${text}`)));

function numbers(item) {
  const { detection, sha256 } = item.result;
  return h("details", {}, h("summary", {}, "Numbers to quote"), grid("What was looked at, by what, and when", ["", "Value"], [
    ["File", nameOf(item)],
    ["Size", `${bytes(item.file.size)}, ${detection.width} × ${detection.height} pixels`],
    ["SHA-256 of the file", sha256],
    ["Detector", detection.detector],
    ["Score", `${signed(detection.logit)} (positive towards AI-generated)`],
    ["Probability", detection.probability === null ? "none: not calibrated" : percent(detection.probability)],
    ["Verdict", verdictOf(detection).words],
    ...(detection.reason ? [["Why uncertain", detection.reason]] : []),
    ["Seen", seen(detection)],
    ["Looked at", `${item.at.toISOString().slice(0, 16).replace("T", " ")} UTC`],
    ["Request", item.request],
  ]));
}

/** The limits of a detector. */
export const limits = ({ detector, limitations }) => h("section", {},
  h("h2", {}, "What this detector does not know"),
  h("ul", {}, limitations.map((text) => h("li", {}, text))),
  soft(`Detector ${detector}.`));

const article = (item, kind, sign, words, share, ...content) => h("article", { class: `card ${kind}`, "aria-label": item.file.name },
  h("h2", { tabindex: "-1" }, nameOf(item)),
  h("p", { class: "row verdict" }, h("span", { "aria-hidden": "true" }, sign), h("span", {}, words),
    share === null ? null : h("span", { class: "aside percent" }, percent(share))),
  content);

/** What could not be scored, with the reason and what to do. */
const failed = (item, again) => article(item, "failed", "✕", headline(item.error.code), null,
  h("p", {}, item.error.message),
  h("button", { type: "button", "data-screen": "", click: () => again(item) }, "Try again"));

/** {element, map} of an item that is done or failed. `again` retries it, `save(kind, options)` downloads it. */
export function card(item, again, save) {
  if (item.error) return { element: failed(item, again), map: null };
  const { detection, provenance } = item.result, { calibration } = item.about, { sign, words } = verdictOf(detection);
  const calibrated = detection.probability !== null, map = new EvidenceMap(item), keep = h("input", { type: "checkbox" });
  const strong = provenance.findings.find(({ strength, points_to: points }) => strength === "strong" && points !== "neither");
  const element = article(item, detection.verdict ?? "none", sign, capital(words), detection.probability,
    calibrated ? gauge(detection) : null,
    h("p", { class: "meaning" }, meaning(detection, calibration)),
    soft(`The detector looked at ${seen(detection)}.`),
    strong ? h("p", { class: "banner" },
      "Apart from this score, the metadata of the file say something, below: ", h("bdi", {}, strong.title), ".") : null,
    h("p", {}, caution(detection, calibration), calibrated ? ` ${RARE}` : null),
    h("div", { class: "row", "data-screen": "" },
      h("button", { type: "button", click: () => save("html", { picture: keep.checked, view: map.choice }) }, "Save report"),
      h("button", { type: "button", click: () => save("json") }, "Save JSON"),
      h("label", {}, keep, "with the image in the report")),
    h("section", {}, h("h3", {}, "Where the score comes from"), map.element),
    metadata(provenance),
    numbers(item));
  return { element, map };
}
