// One image's answer as an <article>: verdict, what it means, maps, metadata, numbers. Also the body of a saved report.

import { compression } from "./compression.js";
import { grid, h, nameOf } from "./dom.js";
import { place } from "./geometry.js";
import { EvidenceMap } from "./map.js";
import { RARE, alarms, bytes, capital, caution, errorOf, family, meaning, ofAI, percent, quote, seen, show, signed, verdictOf } from "./words.js";

const soft = (text) => h("p", { class: "soft" }, text);

/** The probability on a line from 0 to 100 % AI, with the zones of the three verdicts. */
function gauge({ probability, thresholds: { real, ai } }) {
  const at = (share) => `${100 * share}%`;
  const style = { "--low": at(real), "--high": at(ai), "--mark": at(Math.min(0.99, Math.max(0.01, probability))) };
  return h("div", {},
    h("div", { class: "gauge", style, role: "img", "aria-label": `${ofAI(probability)}, on a scale from 0 to 100 % AI` }),
    h("p", { class: "soft ends", "aria-hidden": "true" }, h("span", {}, "0 % AI"), h("span", {}, "100 % AI")),
    soft(`below ${ofAI(real)}: likely photograph · ${percent(real)} to ${ofAI(ai)}: uncertain · above: likely AI-generated`));
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
    : h("p", {}, "Nothing was found that says where the image comes from."),
  unchecked.map((text) => soft(`Not checked: ${text}`)));

function numbers(item) {
  const { detection, sha256, region } = item.result, { thresholds } = detection;
  return h("details", {}, h("summary", {}, "Numbers to quote"), grid("What was looked at, by what, and when", ["", "Value"], [
    ["File", nameOf(item)],
    ["Size", `${bytes(item.file.size)}, ${detection.width} × ${detection.height} pixels`],
    ...(region ? [["Part that was looked at", `pixels ${place(region)}`]] : []),
    ["SHA-256 of the file", sha256],
    ["Detector", detection.detector],
    ["Verdict", verdictOf(detection).words],
    ...(detection.reason ? [["Why uncertain", detection.reason]] : []),
    ...(show.percentages ? [
      ["Probability of being AI-generated", detection.probability === null ? "none: not calibrated" : percent(detection.probability)],
      ...(thresholds ? [["Counts as AI-generated", `above ${percent(thresholds.ai)}`], ["Counts as a photograph", `below ${percent(thresholds.real)}`]] : []),
      ["Score", `${signed(detection.logit)} (positive towards AI-generated)`],
    ] : []),
    ["Seen", seen(detection)],
    ["Looked at", `${item.at.toISOString().slice(0, 16).replace("T", " ")} UTC`],
    ["Request", item.request],
  ]));
}

/** The sentence to quote, and on the page a button that copies it. */
function quoted(item) {
  const text = quote(item, item.about.calibration);
  const copy = h("button", { type: "button", "data-screen": "", click: async () => {
    copy.textContent = await navigator.clipboard.writeText(text).then(() => "Copied", () => "Copying is not allowed here: mark the text");
  } }, "Copy the sentence");
  return h("section", {}, h("h3", {}, "To quote"), h("blockquote", {}, text), copy);
}

const JUDGMENTS = ["", "a photograph", "AI-generated", "a photograph that was edited", "cannot be told"];

/** What a person thinks of the image: to be written on the page, to be read in a report. */
function judgment(item, live) {
  const own = (item.human ??= { verdict: "", note: "" });
  if (!live) {
    return !own.verdict && !own.note ? null : h("section", {}, h("h3", {}, "Judgement of a person"),
      own.verdict ? h("p", {}, capital(own.verdict), ".") : null, own.note ? h("p", { class: "note" }, own.note) : null);
  }
  const verdict = h("select", { change: () => { own.verdict = verdict.value; } },
    JUDGMENTS.map((text) => h("option", { value: text, selected: text === own.verdict }, capital(text || "no judgement yet"))));
  const note = h("textarea", { rows: 2, maxlength: 4000, placeholder: " ", input: () => { own.note = note.value; } });
  note.value = own.note;
  return h("section", { class: "judgment" }, h("h3", {}, "Your own judgement"),
    soft("It stays in this page, changes no score, and is written into what you save."),
    h("div", { class: "row" }, h("label", {}, "The image is ", verdict)), h("label", { class: "wide-label" }, "Note", note));
}

/** The limits of a detector. */
export const limits = ({ detector, limitations, calibration }) => h("section", {},
  h("h2", {}, "What this detector does not know"),
  h("ul", {}, [...limitations, ...alarms(calibration)].map((text) => h("li", {}, text))),
  soft(`Detector ${detector}.`));

const article = (item, kind, sign, words, share, ...content) => h("article", { class: `card ${kind}`, "aria-label": item.file.name },
  h("h2", { tabindex: "-1" }, nameOf(item)),
  h("p", { class: "row verdict" }, h("span", { "aria-hidden": "true" }, sign), h("span", {}, words),
    share === null || !show.percentages ? null : h("span", { class: "aside percent" }, ofAI(share))),
  content);

/** What could not be scored, with the reason and what to do; what a message advises is meant for programs, not for this page. */
function failed(item, again) {
  const { headline, next, again: helps } = errorOf(item.error.code);
  return article(item, "failed", "✕", headline, null,
    h("p", {}, `${capital(item.error.message.split("; ")[0]).replace(/\.$/, "")}.`), h("p", {}, next),
    helps ? h("button", { type: "button", "data-screen": "", click: () => again(item) }, "Try again") : null);
}

/**
 * {element, map} of an item that is done or failed. `act` has what the page can do: `again` retries it, `save(kind,
 * options)` downloads it, `part(region)` looks at a part of it. A report has none of them.
 */
export function card(item, act = null, view = {}) {
  if (item.error) return { element: failed(item, act?.again), map: null };
  const { detection, provenance, region } = item.result, { calibration } = item.about, { sign, words } = verdictOf(detection);
  const calibrated = detection.probability !== null && !detection.reason, keep = h("input", { type: "checkbox" });
  const map = new EvidenceMap(item, act?.part), other = !act && view.kind && view.kind !== "crops" ? new EvidenceMap(item) : null;
  other?.show(view);
  const traces = compression(item, map, Boolean(act));
  const strong = provenance.findings.find(({ strength, points_to: points }) => strength === "strong" && points !== "neither");
  const element = article(item, detection.verdict ?? "none", sign, capital(words), detection.reason ? null : detection.probability,
    region ? h("p", { class: "banner" }, `Only a part of the image was looked at: pixels ${place(region)}.`) : null,
    calibrated && show.percentages ? gauge(detection) : null,
    show.percentages || detection.reason ? h("p", { class: "meaning" }, meaning(detection, calibration)) : null,
    soft(`The detector looked at ${seen(detection)}.`),
    strong ? h("p", { class: "banner" },
      "The file's metadata also say something (see below): ", h("bdi", {}, strong.title), ".") : null,
    detection.family ? h("p", {}, family(detection)) : null,
    h("p", {}, caution(detection, calibration), calibrated && show.percentages ? ` ${RARE}` : null),
    h("div", { class: "row", "data-screen": "" },
      h("button", { type: "button", click: () => act.save("html", { picture: keep.checked, view: map.choice }) }, "Save report"),
      h("button", { type: "button", click: () => act.save("json") }, "Save JSON"),
      h("button", { type: "button", click: () => window.print() }, "Print or PDF"),
      h("label", {}, keep, "with the image in the report")),
    detection.reason
      ? h("details", {}, h("summary", {}, "Where the score comes from, which means nothing here"), map.element, other ? other.element : null)
      : h("section", {}, h("h3", {}, "Where the score comes from"), map.element, other ? other.element : null),
    traces,
    metadata(provenance),
    judgment(item, Boolean(act)),
    quoted(item),
    numbers(item));
  return { element, map, other };
}
