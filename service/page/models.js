// The list of models, and what is told of the chosen one.

import { address, apiKey, showPicture } from "./api.js";

const MEANING = {
  exact: "says exactly how likely an image is",
  bound: "says how likely an image is at least",
  implicit: "cannot say how likely an image is",
};

/** Fill the list; `onchoose` gets the name of a model that is chosen by hand. */
export function listModels(form, models, onchoose) {
  for (const data of new Set(models.map(dataOf))) {
    const group = document.createElement("fieldset");
    form.lastElementChild.before(group);
    group.appendChild(document.createElement("legend")).textContent = data;
    const members = models.filter((model) => dataOf(model) === data);
    for (const model of members.sort(byLikelihood)) group.append(choice(model));
  }
  form.addEventListener("change", (event) => onchoose(event.target.value));
}

export function markChosen(form, name) {
  for (const radio of form.querySelectorAll("[type=radio]")) radio.checked = radio.value === name;
  form.querySelector(":checked").parentElement.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/** Tell of a model above its pictures. */
export function describe(model) {
  const set = (id, text) => (document.getElementById(id).textContent = text);
  set("name", model.name);
  set("description", model.description);
  const density = document.getElementById("density");
  density.textContent = model.density;
  density.className = `badge ${model.density}`;
  set("meaning", MEANING[model.density]);
  document.getElementById("facts").replaceChildren(...facts(model).flatMap(entry));
  const card = document.getElementById("card");
  card.hidden = !model.links.card || Boolean(apiKey()); // a link carries no key
  if (model.links.card) card.href = address(model.links.card);
  showFilm(model, false);
}

/** Open or close the film of the training; it is not even fetched before. */
export function showFilm(model, isOpen) {
  const button = document.getElementById("film-button");
  const film = document.getElementById("film");
  const image = film.querySelector("img");
  button.hidden = !model.links.film;
  button.setAttribute("aria-expanded", String(isOpen));
  film.hidden = !isOpen;
  if (isOpen) showPicture(image, address(model.links.film)).catch(() => {});
  else image.removeAttribute("src");
  image.alt = `Images of ${model.name} at points of its training`;
}

/** The test set's negative log-likelihood in nats per image; undefined where there is none. */
export function testNats(model) {
  return model.metrics.find((metric) => metric.unit === "nats" && metric.name.startsWith("nll"));
}

function facts(model) {
  const [channels, height, width] = model.image.shape;
  const colour = channels === 3 ? " in colour" : "";
  const list = [];
  const nats = testNats(model);
  const bits = model.metrics.find((metric) => metric.name === "bits_per_dim");
  if (nats) {
    const spread = nats.std_error === null ? "" : ` ± ${nats.std_error.toFixed(2)}`;
    list.push([`Test images, ${nats.protocol}`, `${sign(model)}${nats.value.toFixed(2)}${spread} nats each`]);
  }
  if (bits) list.push(["Bits per dim", `${sign(model)}${bits.value.toFixed(3)}`]);
  list.push(["Images", `${width} × ${height}${colour}, ${model.image.values}`]);
  list.push(["Parameters", model.num_parameters.toLocaleString("en")]);
  return list;
}

function sign(model) {
  return model.density === "bound" ? "≤ " : "";
}

function dataOf(model) {
  return model.training.data.name;
}

function byLikelihood(a, b) {
  const bits = (model) => model.metrics.find((metric) => metric.name === "bits_per_dim")?.value ?? Infinity;
  return bits(a) === bits(b) ? a.name.localeCompare(b.name) : bits(a) - bits(b);
}

// Four images of seed 0: a kilobyte or two, kept for ever, where previews have some fifty.
function thumbnail({ name, version, image }) {
  const scale = Math.max(1, Math.min(16, Math.floor(24 / image.shape[2])));
  const fields = { model: `${name}@${version}`, seed: 0, n: 4, columns: 2, scale, format: "png" };
  return address("sample", fields);
}

function choice(model) {
  const label = document.createElement("label");
  label.className = "choice";
  const radio = label.appendChild(document.createElement("input"));
  Object.assign(radio, { type: "radio", name: "model", value: model.name });
  const thumb = label.appendChild(document.createElement("span"));
  thumb.className = "thumb";
  const image = thumb.appendChild(document.createElement("img"));
  Object.assign(image, { loading: "lazy", alt: "" });
  showPicture(image, thumbnail(model)).catch(() => {}); // the list does without
  const nats = testNats(model);
  add(label, "name", model.name);
  add(label, `badge ${model.density}`, model.density);
  add(label, "figure", nats ? `${sign(model)}${nats.value.toFixed(2)} nats` : "");
  return label;
}

function add(parent, className, text) {
  const span = parent.appendChild(document.createElement("span"));
  span.className = className;
  span.textContent = text;
}

function entry([term, value]) {
  const pair = document.createElement("div");
  pair.appendChild(document.createElement("dt")).textContent = term;
  pair.appendChild(document.createElement("dd")).textContent = value;
  return [pair];
}
