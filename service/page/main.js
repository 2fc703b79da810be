// The front page: which model is shown, and what can be done with it.

import { apiKey, loadModels, useKey } from "./api.js";
import { describe, listModels, markChosen, showFilm } from "./models.js";
import { Sample } from "./sample.js";
import { Score } from "./score.js";
import { Walk } from "./walk.js";

const element = (id) => document.getElementById(id);
const loading = element("loading");

async function start() {
  const { models, default: preferred } = await loadModels((detail) => (loading.textContent = detail));
  if (!models.length) {
    loading.textContent = "There is no model in the store yet.";
    return;
  }
  const parts = [new Sample(element("sample")), new Walk(element("walk"), models), new Score(element("score"), models)];
  let shown;

  const show = (name) => {
    const model = models.find((each) => each.name === name);
    if (!model || model === shown) return;
    shown = model;
    markChosen(element("models"), name);
    describe(model);
    element("model").append(element("walk"), element("score"));
    for (const part of parts) part.show(model);
  };

  listModels(element("models"), models, (name) => {
    history.replaceState(null, "", `#${name}`);
    show(name);
  });
  element("film-button").addEventListener("click", () => showFilm(shown, element("film").hidden));
  addEventListener("hashchange", () => {
    show(location.hash.slice(1));
    scrollTo(0, 0);
  });
  element("model").hidden = false;
  loading.hidden = true;
  const wanted = [location.hash.slice(1), preferred?.split("@")[0], models[0].name];
  show(wanted.find((name) => models.some((model) => model.name === name)));
}

function begin() {
  start().catch((error) => {
    const wantsKey = error.type === "unauthenticated";
    element("key").hidden = !wantsKey;
    loading.textContent = wantsKey && !apiKey() ? "This server asks for an API key." : error.message;
  });
}

element("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(event.target.elements.key.value.trim());
  event.target.hidden = true;
  begin();
});
begin();
