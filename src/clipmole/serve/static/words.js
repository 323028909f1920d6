// What the page says: verdicts, probabilities, errors, the sentence to quote. Knows nothing of the document or the network.

/** Whether percentages are shown; without them there are verdicts alone. */
export const show = { percentages: true };

export const VERDICTS = {
  real: { words: "likely photograph", sign: "●" },
  uncertain: { words: "uncertain", sign: "◐" },
  ai_generated: { words: "likely AI-generated", sign: "▲" },
};

export const verdictOf = (detection) => VERDICTS[detection?.verdict] ?? { words: "no verdict", sign: "○" };

const whole = (probability) => Math.min(99, Math.max(1, Math.round(100 * probability)));

/** A probability as a person should read it; never 0 % and never 100 %, which no detector can know. */
export function percent(probability) {
  if (probability === null || probability === undefined) return "–";
  if (probability < 0.01) return "under 1 %";
  return probability > 0.99 ? "over 99 %" : `${whole(probability)} %`;
}

/** The same with what it is the probability of: "18 % AI" cannot be read as "18 % photograph". */
export const ofAI = (probability) => (percent(probability) === "–" ? "–" : `${percent(probability)} AI`);

const share = (value) => `${Number((100 * value).toPrecision(2))} %`;

/** The share of the image's pixels that the detector looked at. */
export const seen = ({ coverage, tiles }) =>
  `${coverage < 0.01 ? (100 * coverage).toFixed(1) : Math.round(100 * coverage)} % of the image's pixels, in ${tiles} ${tiles === 1 ? "crop" : "crops"}`;

/** What the probability means, in one sentence. */
export function meaning(detection, calibration) {
  if (detection.reason) return `The detector cannot tell: ${detection.reason}. Its probability means nothing here.`;
  if (detection.probability === null)
    return `This detector is not calibrated: its score is ${signed(detection.logit)}, and nobody can say how likely that makes it.`;
  const data = calibration ? `: ${calibration.real} photographs and ${calibration.generated} generated images` : "";
  const about = detection.probability < 0.01 ? "at most about" : detection.probability > 0.99 ? "at least about" : "about";
  return `Of 100 images scored like this, ${about} ${whole(detection.probability)} were AI-generated, on the calibration data${data}.`;
}

/** The likely family of generators, where the detector was trained to tell: one careful sentence, or nothing. */
export const family = ({ family: found }) => (found
  ? `Likely family of generators, if it is AI-generated: ${found.name}`
    + `${show.percentages ? ` (${percent(found.share)} among the families that it knows)` : ""}; on validation images `
    + `${found.right} of ${found.answers} such answers were right. Never a proof.` : "");

/** What the verdict rests on, what it is not, and what to do with an uncertain one. */
export function caution(detection, calibration) {
  const { verdict } = detection;
  if (verdict === "real") {
    const miss = !calibration ? ""
      : ` On the calibration data at most ${share(calibration.max_miss)} of the generated images got it; of other generators, more may.`;
    return `This does not prove a photograph: generated images get this verdict too.${miss}`;
  }
  if (verdict === "ai_generated") {
    const alarm = calibration ? ` On the calibration data at most ${share(calibration.max_false_alarm)} of the photographs got it.` : "";
    return [...oftenWrong(calibration), `This is no proof: photographs get this verdict too.${alarm}`, ...alarms(calibration), "Do not accuse anybody with it."].join(" ");
  }
  return verdict === "uncertain" ? UNCERTAIN : "";
}

export const UNCERTAIN = "The detector cannot tell, and that is an answer. What to do: find the original file and who "
  + "published it first, read its metadata, and do not count this verdict for either side.";

export const RARE =
  "The percentage is meant for as many generated images as photographs. Where generated images are rarer, more of the alarms are false.";

/** The kinds of images of which this verdict says nothing: one sentence, or none. */
export const oftenWrong = (calibration) => {
  const kinds = calibration?.often_wrong ?? [];
  return kinds.length ? [`Ignore this verdict on ${kinds.join(", ")}: the detector often calls them AI-generated although people made them.`] : [];
};

/** How often images that people made, of unknown sources, were called AI-generated: one sentence, or none. */
export const alarms = (calibration) => {
  const counts = (calibration?.false_alarms ?? []).map(({ kind, photographs, called_generated: called }) =>
    `${called} of ${photographs} ${kind} (${share(called / photographs)})`);
  return counts.length ? [`Images made by people that the detector wrongly called AI-generated, from sources it had never seen: ${counts.join(", ")}.`] : [];
};

/** What the metadata found, in a few words: the finding that says most, and how many more there are. */
export function found(findings) {
  if (!findings.length) return "nothing";
  const rank = ({ points_to: points, strength }) => (points === "neither" ? 0 : { strong: 3, moderate: 2 }[strength] ?? 1);
  const best = findings.reduce((first, next) => (rank(next) > rank(first) ? next : first));
  return best.title + (findings.length > 1 ? `, and ${findings.length - 1} more` : "");
}

/** The ready sentence to quote: verdict, detector, date, file, thresholds, and what it is not. */
export function quote({ at, result: { detection, sha256, region } }, calibration) {
  const { probability, thresholds, verdict } = detection, date = at.toISOString().slice(0, 10);
  const what = region ? `a part of the file (pixels ${region[0]}–${region[2]} × ${region[1]}–${region[3]})` : "the file";
  const rule = {
    real: `below ${percent(thresholds?.real)} counts as a photograph`,
    ai_generated: `above ${percent(thresholds?.ai)} counts as AI-generated, which at most ${share(calibration?.max_false_alarm ?? 1)} of its calibration photographs did`,
    uncertain: `${percent(thresholds?.real)} to ${percent(thresholds?.ai)} counts as uncertain`,
  }[verdict];
  const score = detection.reason ? ` because ${detection.reason}`
    : show.percentages && rule ? ` (probability of being AI-generated ${percent(probability)}; ${rule})` : "";
  return `clipmole (${detection.detector}, ${date}) rates ${what} with SHA-256 ${sha256} as “${verdictOf(detection).words}”${score}. `
    + "This is a statistical likelihood and no proof; edits, screenshots and recompression can mislead it.";
}

export const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** A score with its sign; what rounds to nothing has none. */
export function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return `${Number(text) === 0 ? "" : value < 0 ? "−" : "+"}${text}`;
}

export function bytes(count) {
  if (count < 1e3) return `${count} bytes`;
  if (count < 1e6) return `${Math.round(count / 1e3)} kB`;
  return `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} MB`;
}

const SMALLER = "Save a smaller copy of it and choose that; note that a smaller copy can get another verdict.";
const LATER = "Wait a moment, then try again.";
const ANEW = "Choose the original file if you have it, or open this one in an image editor and save it as a new PNG.";

/** Code of an error -> what to say, what to do next, and whether trying again can help. */
const ERRORS = {
  empty: { headline: "The file is empty", next: "Choose another file; the download or copy may not have finished." },
  unreadable: { headline: "Not readable as an image", next: ANEW },
  too_large: { headline: "Too large", next: SMALLER },
  decoder_timeout: { headline: "It took too long to read", next: SMALLER },
  decoder_crashed: { headline: "Not readable as an image", next: ANEW },
  invalid_query: { headline: "This part cannot be looked at", next: "Mark a part that lies within the image." },
  folder: { headline: "Not a file", next: "Choose the image file itself." },
  timeout: { headline: "It took too long", next: LATER, again: true },
  slow_body: { headline: "It took too long to send", next: "Check the connection, then try again.", again: true },
  busy: { headline: "The server was busy for too long", next: LATER, again: true },
  broken: { headline: "The connection broke", next: "Check the connection, then try again.", again: true },
  internal: { headline: "The server failed", next: "Try again once; if it happens again, tell whoever runs the server.", again: true },
};
const OTHER = { headline: "No answer for this image", next: "Tell whoever runs the server.", again: true };

/** {headline, next, again} of an error's code. */
export const errorOf = (code) => ERRORS[code === "no_images" ? "empty" : code] ?? OTHER;
export const headline = (code) => errorOf(code).headline;
