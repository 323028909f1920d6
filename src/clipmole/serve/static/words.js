// What the page says: verdicts, probabilities, errors. Knows nothing of the document or the network.

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

const share = (value) => `${Number((100 * value).toPrecision(3))} %`;

/** The share of the image's pixels that the detector looked at. */
export const seen = ({ coverage, tiles }) =>
  `${coverage < 0.01 ? (100 * coverage).toFixed(1) : Math.round(100 * coverage)} % of the image's pixels, in ${tiles} ${tiles === 1 ? "crop" : "crops"}`;

/** What the probability means, in one sentence. */
export function meaning(detection, calibration) {
  if (detection.probability === null)
    return `This detector is not calibrated: its score is ${signed(detection.logit)}, and nobody can say how likely that makes it.`;
  const data = calibration ? `: ${calibration.real} photographs and ${calibration.generated} generated images` : "";
  const about = detection.probability < 0.01 ? "at most about" : detection.probability > 0.99 ? "at least about" : "about";
  return `Of 100 images scored like this, ${about} ${whole(detection.probability)} were AI-generated, on the calibration data${data}.`;
}

/** What the verdict rests on and what it is not, in two sentences. */
export function caution(detection, calibration) {
  const { verdict } = detection;
  if (verdict === "real") {
    const miss = !calibration ? ""
      : ` On the calibration data at most ${share(calibration.max_miss)} of the generated images got it; of newer generators most may.`;
    return `This is no clearance: generated images get this verdict too.${miss}`;
  }
  if (verdict === "ai_generated") {
    const alarm = calibration ? ` On the calibration data at most ${share(calibration.max_false_alarm)} of the photographs got it.` : "";
    return `This is no proof: photographs get this verdict too.${alarm} Do not accuse anybody with it.`;
  }
  if (detection.reason) return `The detector cannot tell: ${detection.reason}. Its probability means nothing here.`;
  return verdict === "uncertain" ? "The detector cannot tell. That is an answer too: look for other evidence." : "";
}

export const RARE =
  "As many generated images as photographs were counted. Where generated images are rarer than that, so is a true alarm.";

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

const HEADLINES = {
  unreadable: "Not readable as an image",
  too_large: "Too large",
  timeout: "It took too long",
  slow_body: "It took too long to send",
  decoder_timeout: "It took too long to decode",
  decoder_crashed: "Not readable as an image",
  busy: "The server was busy for too long",
  broken: "The connection broke",
  folder: "Not a file",
};

export const headline = (code) => HEADLINES[code] ?? "No answer for this image";
