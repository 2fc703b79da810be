// Requests to this server, and what it says when it refuses one.

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

/** Fetch; throws a Problem where the answer is none. */
export async function ask(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ type: "unreachable", detail: "The server does not answer." });
  }
  if (response.ok) return response;
  const retryAfterS = Number(response.headers.get("Retry-After")) || 1;
  const content = await response.json().catch(() => ({ detail: `${response.status} ${response.statusText}` }));
  throw new Problem(content, retryAfterS);
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
