// Controls that several parts of the page have.

/** Show the controls that a model has, and fill its classes in. */
export function showOptions(root, model, anyLabel) {
  for (const control of root.querySelectorAll("[data-option]")) {
    control.hidden = !model.options.includes(control.dataset.option);
  }
  for (const control of root.querySelectorAll("[data-channels]")) {
    control.hidden = Number(control.dataset.channels) !== model.image.shape[0];
  }
  for (const select of root.querySelectorAll("select[name=labels]")) {
    const options = model.labels.map((label) => new Option(label, label));
    select.replaceChildren(...(anyLabel ? [new Option("any", "")] : []), ...options);
  }
}

/** Say next to each slider where it stands. */
export function showOutputs(root) {
  for (const output of root.querySelectorAll("output")) {
    output.textContent = output.parentElement.querySelector("input").value;
  }
}

/**
 * Where a model cannot do something, say so and which ones can, below all that it can.
 * Returns whether it can.
 */
export function showAbility(section, model, operation, others, refusal) {
  const can = model.operations.includes(operation);
  section.querySelector(".can").hidden = !can;
  const cannot = section.querySelector(".cannot");
  cannot.hidden = can;
  if (can) return true;
  section.parentElement.append(section);
  const links = others.filter((other) => other.operations.includes(operation)).map(link);
  cannot.replaceChildren(`${model.name} ${refusal}`);
  if (links.length) cannot.append(" Models that can: ", ...links.flatMap((each, i) => (i ? [", ", each] : [each])), ".");
  return false;
}

/** Call once, when an element is near the window; returns what can be disconnected before. */
export function whenNear(element, callback) {
  const observer = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      callback();
    },
    { rootMargin: "100px" },
  );
  observer.observe(element);
  return observer;
}

function link(model) {
  const made = document.createElement("a");
  made.href = `#${model.name}`;
  made.textContent = model.name;
  return made;
}
