// Requests to this server, and what it says when it refuses one.

// Kept until the tab is closed, and by nobody else.
const KEY = "api-key";
// What each image is to show: an answer that comes late is dropped.
const wanted = new WeakMap();

/** An error that the server told of as problem+json (RFC 9457), or that nobody answered. */
export class Problem extends Error {
  constructor(content, retryAfterS = 1) {
    super(content.detail);
    this.type = content.type;
    this.retryAfterS = retryAfterS;
  }
}

/**
 * The absolute address of a route, also behind a proxy that adds a prefix.
 * Fields that are undefined are left out.
 */
export function address(path, fields = {}) {
  const query = Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name}=${encodeURIComponent(value).replace(/%40/g, "@").replace(/%2C/g, ",")}`)
    .join("&");
  const url = new URL(path.replace(/^\//, ""), document.baseURI);
  url.hash = "";
  return url.href + (query && `?${query}`);
}

export function apiKey() {
  return sessionStorage.getItem(KEY);
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Fetch; throws a Problem where the answer is none. */
export async function ask(url, options = {}) {
  const headers = { ...options.headers, ...(apiKey() && { Authorization: `Bearer ${apiKey()}` }) };
  let response;
  try {
    response = await fetch(url, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ type: "unreachable", detail: "The server does not answer." });
  }
  if (response.ok) return response;
  const retryAfterS = Number(response.headers.get("Retry-After")) || 1;
  const content = await response.json().catch(() => ({ detail: `${response.status} ${response.statusText}` }));
  throw new Problem(content, retryAfterS);
}

/** Show a picture of the server. For an image, a browser sends no key: then the page fetches it. */
export async function showPicture(image, url, options) {
  wanted.set(image, url);
  if (!apiKey()) {
    image.src = url;
    return;
  }
  const picture = URL.createObjectURL(await (await ask(url, options)).blob());
  if (wanted.get(image) !== url) return;
  image.addEventListener("load", () => URL.revokeObjectURL(picture), { once: true });
  image.src = picture;
}

export function post(path, body, options = {}) {
  const headers = { "Content-Type": "application/json" };
  return ask(address(path), { method: "POST", body: JSON.stringify(body), headers, ...options });
}

/** The models of the server; waits while it loads them. */
export async function loadModels(onWait) {
  for (;;) {
    try {
      return await (await ask(address("models"))).json();
    } catch (error) {
      if (error.type !== "model-loading") throw error;
      onWait(error.message);
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfterS));
    }
  }
}

/** A seed as JSON carries it: as text where JavaScript would round the number. */
export function seedForJson(text) {
  return Number.isSafeInteger(Number(text)) ? Number(text) : text;
}

export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] % 100_000;
}

/**
 * A function that waits until it has not been called for a while, then runs `work` with a signal
 * that aborts when it is called again or cancelled: late answers never overwrite newer ones.
 */
export function latest(work, delayMs = 0) {
  let controller = new AbortController();
  let timer;
  const cancel = () => {
    clearTimeout(timer);
    controller.abort();
  };
  const call = () => {
    cancel();
    controller = new AbortController();
    const { signal } = controller;
    timer = setTimeout(async () => {
      try {
        await work(signal);
      } catch (error) {
        if (error.name !== "AbortError") throw error;
      }
    }, delayMs);
  };
  return Object.assign(call, { cancel });
}
