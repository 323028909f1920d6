// Talks to the server that this page came from, and to nobody else.

let token = "";
export const useToken = (value) => { token = value; };

/** An answer that is not the wished one. `code` is the server's, or "gone", "token", "busy", "aborted". */
export class Failure extends Error {
  constructor(code, message, retryAfter = null) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

function failure(status, text, retryAfter) {
  let error = null;
  try { error = JSON.parse(text).error; } catch { /* not from clipmole: a proxy in between */ }
  const message = error?.message ?? `The server answered with status ${status}.`;
  if (status === 401) return new Failure("token", message);
  if (retryAfter || status === 429) return new Failure("busy", message, Number(retryAfter) || 2);
  return new Failure(error?.code ?? (status === 413 ? "too_large" : `status ${status}`), message);
}

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

/** What the server says of its detector: name, calibration, limits. */
export async function describe() {
  let response, text;
  try {
    response = await fetch("v1/detectors", { headers: headers() });
    text = await response.text();
  } catch { throw new Failure("gone", "The server does not answer."); }
  if (!response.ok) throw failure(response.status, text, response.headers.get("Retry-After"));
  const { detectors } = JSON.parse(text);
  return detectors.find((one) => one.default) ?? detectors[0];
}

export async function alive() {
  try { return (await fetch("healthz")).ok; } catch { return false; }
}

/** Score one file: {request_id, detector, result}. `onSent` is told the share of the file that is sent. */
export function detect(file, { evidence = "tiles", onSent = () => {}, signal = null } = {}) {
  const query = new URLSearchParams({ evidence, provenance: "true" });
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();  // fetch does not tell how much is sent
    request.open("POST", `v1/detect/bytes?${query}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onSent(event.loaded / event.total);
    request.upload.onload = () => onSent(1);
    request.onload = () => {
      if (request.status !== 200) return reject(failure(request.status, request.responseText, request.getResponseHeader("Retry-After")));
      try { resolve(JSON.parse(request.responseText)); } catch { reject(new Failure("broken", "The answer was cut off.")); }
    };
    request.onerror = () => reject(new Failure("gone", "The server does not answer."));
    request.onabort = () => reject(new Failure("aborted", "Stopped."));
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
