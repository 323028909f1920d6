// Talks to the server that this page came from, and to nobody else.

let token = "";
export const useToken = (value) => { token = value; };

/** An answer that is not the wished one. `code` is the server's, or "gone", "token", "busy", "aborted", "broken". */
export const fail = (code, message, retryAfter = null) => Object.assign(new Error(message), { code, retryAfter });

const gone = () => fail("gone", "The server does not answer.");

function failure(status, text, retryAfter) {
  let error = null;
  try { error = JSON.parse(text).error; } catch { /* not from clipmole: a proxy in between */ }
  const message = error?.message ?? `The server answered with status ${status}.`;
  if (status === 401) return fail("token", message);
  if (retryAfter || status === 429) return fail("busy", message, Math.min(60, Number(retryAfter) || 2));
  return fail(error?.code ?? (status === 413 ? "too_large" : `status ${status}`), message);
}

const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});

/** What the server says of its detector: name, calibration, evidence, limits. */
export async function describe() {
  const response = await fetch("v1/detectors", { headers: headers() }).catch(() => { throw gone(); });
  const text = await response.text().catch(() => { throw gone(); });
  if (!response.ok) throw failure(response.status, text, response.headers.get("Retry-After"));
  return JSON.parse(text).detectors.find((one) => one.default);
}

export const alive = () => fetch("healthz").then(({ ok }) => ok, () => false);

/** Score one file, or the box `region` of it: {request_id, detector, result}. `onSent` is told the share that is sent. */
export function detect(file, { evidence = "tiles", region = null, onSent = () => {}, signal = null } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();  // fetch does not tell how much is sent
    const [left, top, right, bottom] = region ?? [], part = region ? `&region=${left},${top},${right - left},${bottom - top}` : "";
    request.open("POST", `v1/detect/bytes?evidence=${evidence}&provenance=true${part}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onSent(event.loaded / event.total);
    request.upload.onload = () => onSent(1);
    request.onload = () => {
      const { status, responseText: text } = request;
      if (status !== 200) return reject(failure(status, text, request.getResponseHeader("Retry-After")));
      try { resolve(JSON.parse(text)); } catch { reject(fail("broken", "The answer was cut off.")); }
    };
    request.onerror = () => reject(gone());
    request.onabort = () => reject(fail("aborted", "Stopped."));
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
