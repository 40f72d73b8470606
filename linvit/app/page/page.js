// The page of `linvit app`. What a person gave and chose lives in this tab alone; the server keeps images by secret names.
"use strict";

const $ = (id) => document.getElementById(id);
const state = { image: null, width: 0, height: 0, x: 0, y: 0, start: null, layer: [null, null], turn: 0 };

async function ask(path, body, raw = false) {
  const options = body === undefined ? {} : { method: "POST", body: raw ? body : JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: is `linvit app` still running?");
  }
  const found = await answer.json();
  if (found.error) throw new Error(found.error);
  return found;
}

function say(text) {
  $("status").textContent = text;
}

function complain(error) {
  $("message").textContent = error ? error.message : "";
  $("message").hidden = !error;
  if (error) say("");
}

async function attempt(what, work) {
  complain(null);
  say(`${what} …`);
  try {
    await work();
  } catch (error) {
    complain(error);
  }
}

function make(kind, attributes = {}, ...children) {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "style") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function bar(name, share, text) {
  const fill = make("span", { className: "fill" });
  fill.style.width = `${100 * share}%`;
  return make("div", { className: "bar" },
    make("span", { title: name }, name), make("span", { className: "track" }, fill), make("span", {}, text));
}

// The image

async function give(file) {
  await attempt("reading the image", async () => {
    if (file.size > 20 * 2 ** 20) throw new Error(`the file has ${Math.round(file.size / 2 ** 20)} MB; at most 20 MB are taken`);
    await shown(await ask("api/image", file, true));
  });
}

async function shown(found) {
  Object.assign(state, { image: found.image, width: found.width, height: found.height });
  $("picture").src = `api/image/${found.image}`;
  $("original").hidden = false;
  $("target").setAttribute("aria-valuemax", String(found.width * found.height - 1));
  choose(Math.floor(found.width / 2), Math.floor(found.height / 2));
  await compare();
  if (found.note) say(found.note);
}

function choose(x, y) {
  state.x = Math.min(Math.max(x, 0), state.width - 1);
  state.y = Math.min(Math.max(y, 0), state.height - 1);
  $("cross").style.left = `${(100 * (state.x + 0.5)) / state.width}%`;
  $("cross").style.top = `${(100 * (state.y + 0.5)) / state.height}%`;
  const text = `column ${state.x}, row ${state.y}`;
  $("place").textContent = `Now ${text}.`;
  $("target").setAttribute("aria-valuenow", String(state.y * state.width + state.x));
  $("target").setAttribute("aria-valuetext", text);
}

// The models

async function compare() {
  if (!state.image) return;
  const turn = ++state.turn;
  const models = [$("model-0").value, $("model-1").value].filter(Boolean);
  const results = $("results");
  if (!models.length) {
    results.replaceChildren();
    say("Open a model to see what it makes of the image.");
    return;
  }
  await attempt("looking", async () => {
    const cards = [];
    for (const [side, id] of [$("model-0").value, $("model-1").value].entries()) {
      if (id) cards.push(await card(side, id));
    }
    if (turn !== state.turn) return; // a newer question was asked meanwhile
    results.replaceChildren(...cards);
    say("done");
  });
}

async function card(side, id) {
  const option = $(`model-${side}`).selectedOptions[0];
  const asked = { image: state.image, model: id };
  const said = await ask("api/predict", asked);
  const box = make("article", { className: "result" }, make("h3", {}, option.textContent));
  if (said.classes) {
    for (const each of said.classes) box.append(bar(each.class, each.probability, `${(100 * each.probability).toFixed(1)} %`));
  } else {
    box.append(picture(said.picture, `${option.textContent}: what was found`, "found"));
    if (said.legend.length) box.append(make("ul", { className: "legend", "aria-label": "Classes" }, ...said.legend.map(chip)));
    box.append(make("p", { className: "note" }, Object.entries(said.found).map(([k, v]) => `${k}: ${v}`).join("; ")));
  }
  try {
    const looked = await ask("api/look", { ...asked, x: state.x, y: state.y, kind: $("kind").value });
    box.append(layers(side, looked.layers));
  } catch (error) {
    box.append(make("p", { className: "note" }, error.message));
  }
  return box;
}

function chip(each) {
  const colour = make("span", { className: "colour" });
  colour.style.background = each.colour;
  return make("li", {}, colour, `${each.class} ${(100 * each.share).toFixed(1)} %`);
}

function picture(source, text, name) {
  const figure = make("figure", { className: "map" }, make("img", { src: source, alt: text }));
  figure.append(make("a", { href: source, download: `${name}.png` }, "download"));
  return figure;
}

function layers(side, found) {
  const place = make("div", {});
  const strip = make("div", { className: "layers", role: "group", "aria-label": "Layers" });
  const chosen = Math.min(state.layer[side] ?? found.length - 1, found.length - 1);
  const show = (index) => {
    state.layer[side] = index;
    const layer = found[index];
    const text = `layer ${index + 1} of ${found.length}: ${layer.name}, ${layer.mechanism}, ${layer.grid.join(" x ")} positions`;
    const numbers = `entropy ${layer.entropy.toFixed(2)} nats, mean distance ${layer.distance.toFixed(0)} pixels`;
    place.replaceChildren(picture(layer.picture, `${$("kind").selectedOptions[0].textContent}, ${text}`, `${layer.name}_${$("kind").value}`),
      make("p", { className: "note" }, `${text}; ${numbers}`));
    [...strip.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
  };
  found.forEach((layer, index) => {
    const button = make("button", { type: "button", title: layer.name, "aria-label": `layer ${index + 1}, ${layer.name}` },
      make("img", { src: layer.picture, alt: "" }));
    button.addEventListener("click", () => show(index));
    strip.append(button);
  });
  show(chosen);
  return make("div", {}, strip, place);
}

function offer(models) {
  for (const side of [0, 1]) {
    const select = $(`model-${side}`);
    for (const model of models) select.append(make("option", { value: model.id }, model.name));
  }
}

async function openModel(event) {
  event.preventDefault();
  await attempt("opening the model", async () => {
    const model = await ask("api/model", { path: $("path").value });
    const known = [...$("model-0").options].some((option) => option.value === model.id);
    if (!known) offer([model]);
    const side = $("model-0").value ? 1 : 0;
    $(`model-${side}`).value = model.id;
    say(`${model.name} is open`);
    await compare();
  });
}

// The cost

async function measure() {
  $("size-text").textContent = $("size").value;
  await attempt("measuring", async () => {
    const found = await ask("api/cost", { size: Number($("size").value) });
    const cost = $("cost");
    cost.replaceChildren(make("p", { className: "note" }, `${found.tokens} tokens`));
    for (const [key, unit, title] of [["milliseconds", "ms", "time"], ["megabytes", "MB", "memory"]]) {
      const most = Math.max(...found.rows.map((row) => row[key] ?? 0), 1e-9);
      const bars = found.rows.map((row) => bar(row.kind, (row[key] ?? 0) / most, row[key] === null ? "not known here" : `${row[key].toFixed(1)} ${unit}`));
      cost.append(make("h3", {}, title), make("div", { className: "wide" }, ...bars));
    }
    say("measured");
  });
}

// What is wired to what

async function begin() {
  const start = (state.start = await ask("api/start"));
  $("model-1").append(make("option", { value: "" }, "none"));
  if (!start.models.length) $("model-0").append(make("option", { value: "" }, "none"));
  offer(start.models);
  if (start.models.length > 1) $("model-1").value = start.models[1].id;
  const [least, most, step] = start.sizes;
  Object.assign($("size"), { min: least, max: most, step, value: 512 });
  $("samples").append("Samples:");
  for (const name of start.samples) {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => attempt("reading the sample", async () => shown(await ask("api/sample", { name }))));
    $("samples").append(button);
  }
}

$("file").addEventListener("change", () => {
  if ($("file").files.length) give($("file").files[0]);
  $("file").value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) give(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files][0];
  if (file) give(file);
});
$("target").addEventListener("click", (event) => {
  const box = $("picture").getBoundingClientRect();
  choose(Math.floor(((event.clientX - box.left) * state.width) / box.width), Math.floor(((event.clientY - box.top) * state.height) / box.height));
  compare();
});
let waiting = 0;
$("target").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const far = Math.max(1, Math.round(Math.max(state.width, state.height) / 100)) * (event.shiftKey ? 10 : 1);
  choose(state.x + far * step[0], state.y + far * step[1]);
  clearTimeout(waiting);
  waiting = setTimeout(compare, 300);
});
for (const id of ["model-0", "model-1", "kind"]) $(id).addEventListener("change", compare);
$("open").addEventListener("submit", openModel);
$("size").addEventListener("input", () => ($("size-text").textContent = $("size").value));
$("size").addEventListener("change", measure);
$("measure").addEventListener("click", measure);
begin().catch(complain);
