// What is on screen, as a request to copy: curl or Python.

import { apiKey } from "./api.js";

let language = "curl";
const boxes = [];

/** A box with a request; all boxes of the page speak the same language. */
export class Code {
  /** @param title What the request does, for those who do not see it. */
  constructor(element, title) {
    this.element = element;
    this.shown = element.appendChild(document.createElement("pre"));
    this.shown.tabIndex = 0;
    this.shown.setAttribute("role", "region");
    const bar = element.appendChild(document.createElement("div"));
    bar.className = "bar";
    this.named = bar.appendChild(document.createElement("span"));
    this.buttons = ["curl", "Python"].map((name) => button(bar, name, () => speak(name)));
    this.copied = button(bar, "Copy", () => this.copy());
    this.said = bar.appendChild(document.createElement("span"));
    this.said.setAttribute("role", "status");
    this.name(title);
    boxes.push(this);
    this.show(undefined);
  }

  name(title) {
    this.named.textContent = title;
    this.shown.setAttribute("aria-label", `${title}, as a request`);
    this.copied.setAttribute("aria-label", `Copy: ${title}`);
  }

  /** @param request { url, body?, file? }: no body is a GET, no file is JSON to print. */
  show(request) {
    this.request = request;
    this.element.hidden = !request;
    if (request) this.shown.textContent = language === "curl" ? asCurl(request) : asPython(request);
    for (const each of this.buttons) each.setAttribute("aria-pressed", String(each.textContent === language));
    this.said.textContent = "";
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.shown.textContent);
    } catch {
      // Without TLS, a host that is not this machine may not write to the clipboard itself.
      getSelection().selectAllChildren(this.shown);
      document.execCommand("copy");
    }
    this.said.textContent = "Copied";
  }
}

function speak(name) {
  language = name;
  for (const box of boxes) box.show(box.request);
}

function button(parent, text, onclick) {
  const made = parent.appendChild(document.createElement("button"));
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", onclick);
  return made;
}

function asCurl({ url, body, file }) {
  const data = body ? ` -d ${quoted(JSON.stringify(body))}` : "";
  const key = apiKey() ? ' -H "Authorization: Bearer $KEY"' : ""; // never the key itself
  // -f: what the server refuses should not lie in a file that is named like a picture.
  return `curl${file ? " -f" : ""}${key} ${quoted(url)}${data}${file ? ` -o ${file}` : ""}`;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function asPython({ url, body, file }) {
  const lines = ["from urllib.request import urlopen", ""];
  if (apiKey()) lines.splice(0, 1, "import os", "from urllib.request import Request, urlopen");
  if (body) lines.unshift("import json");
  if (body) lines.push(`body = ${python(body)}`);
  const asked = `${python(url)}${body ? ", json.dumps(body).encode()" : ""}`;
  if (apiKey()) lines.push('headers = {"Authorization": f"Bearer {os.environ[\'KEY\']}"}');
  lines.push(`answer = urlopen(${apiKey() ? `Request(${asked}, headers=headers)` : asked}).read()`);
  lines.push(file ? `open(${python(file)}, "wb").write(answer)` : 'print(json.loads(answer)["results"][0]["log_prob"])');
  return lines.join("\n");
}

/** A Python literal of a JSON value: but for two words they are the same. */
function python(value) {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each)}`).join(", ")}}`;
}
