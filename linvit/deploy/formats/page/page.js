// The page's own code: decode, resize exactly as Pillow does, run, show. It has no network and needs none.
const element = (id) => document.getElementById(id);
const settings = JSON.parse(element("settings").textContent);
const colours = ["#2563eb", "#f59e0b", "#10b981", "#ec4899", "#8b5cf6", "#ef4444", "#14b8a6", "#a16207", "#64748b"];
const colourOf = (index) => colours[index % colours.length];

function decodeBase64(text) {
  const binary = atob(text.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function embedded(id) {
  const packed = new Blob([decodeBase64(element(id).textContent)]);
  element(id).textContent = "";
  return new Uint8Array(await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

// --- Images as linvit prepares them -----------------------------------------------------------------------------

const filters = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    const a = -0.5;
    x = Math.abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
  }],
  lanczos: [3, (x) => {
    const sinc = (t) => (t === 0 ? 1 : Math.sin(t * Math.PI) / (t * Math.PI));
    return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
  }],
};

// Weights of one axis in fixed point with 22 bits: what Pillow's resampling of 8-bit images uses.
function weightsOf(from, to, name) {
  const [reach, filter] = filters[name];
  const scale = from / to;
  const spread = Math.max(scale, 1);
  const support = reach * spread;
  const all = [];
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(from, Math.trunc(centre + support + 0.5)) - first;
    const exact = [];
    for (let j = 0; j < count; j++) exact.push(filter((j + first - centre + 0.5) / spread));
    const total = exact.reduce((a, b) => a + b, 0) || 1;
    const fixed = exact.map((w) => Math.trunc((w / total) * 4194304 + (w < 0 ? -0.5 : 0.5)));
    all.push([first, fixed]);
  }
  return all;
}

const clip = (sum) => Math.min(255, Math.max(0, Math.floor(sum / 4194304)));

// RGB, 3 bytes a pixel; first along rows, then along columns, with 8 bits between them.
function resize(image, width, height, name) {
  let { data } = image;
  if (width !== image.width) {
    const weights = weightsOf(image.width, width, name);
    const out = new Uint8Array(width * image.height * 3);
    for (let y = 0; y < image.height; y++) {
      for (let x = 0; x < width; x++) {
        const [first, fixed] = weights[x];
        const start = (y * image.width + first) * 3;
        for (let c = 0; c < 3; c++) {
          let sum = 2097152;
          for (let j = 0; j < fixed.length; j++) sum += data[start + 3 * j + c] * fixed[j];
          out[(y * width + x) * 3 + c] = clip(sum);
        }
      }
    }
    data = out;
  }
  if (height !== image.height) {
    const weights = weightsOf(image.height, height, name);
    const out = new Uint8Array(width * height * 3);
    for (let y = 0; y < height; y++) {
      const [first, fixed] = weights[y];
      for (let x = 0; x < width * 3; x++) {
        let sum = 2097152;
        for (let j = 0; j < fixed.length; j++) sum += data[(first + j) * width * 3 + x] * fixed[j];
        out[y * width * 3 + x] = clip(sum);
      }
    }
    data = out;
  }
  return { data, width, height };
}

const roundHalfToEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

function crop(image, width, height) {
  const data = new Uint8Array(width * height * 3);
  const left = roundHalfToEven((image.width - width) / 2);
  const top = roundHalfToEven((image.height - height) / 2);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [row, column] = [y + top, x + left];
      if (row < 0 || column < 0 || row >= image.height || column >= image.width) continue; // black outside
      for (let c = 0; c < 3; c++) data[(y * width + x) * 3 + c] = image.data[(row * image.width + column) * 3 + c];
    }
  }
  return { data, width, height };
}

// Returns what the model takes, and the rectangle of the photo that it sees, in pixels of the photo.
function prepare(image) {
  const { height, width, shorter, interpolation, mean, std } = settings;
  let seen = { left: 0, top: 0, width: image.width, height: image.height };
  let pixels;
  if (shorter) {
    const tall = image.height >= image.width;
    const longer = Math.trunc((shorter * Math.max(image.width, image.height)) / Math.min(image.width, image.height));
    pixels = resize(image, tall ? shorter : longer, tall ? longer : shorter, interpolation);
    const scale = image.width / pixels.width;
    seen = {
      left: ((pixels.width - width) / 2) * scale, top: ((pixels.height - height) / 2) * scale,
      width: width * scale, height: height * scale,
    };
    pixels = crop(pixels, width, height);
  } else {
    pixels = resize(image, width, height, interpolation);
  }
  const input = new Float32Array(3 * width * height);
  for (let c = 0; c < 3; c++) {
    const [m, s] = [Math.fround(mean[c]), Math.fround(std[c])];
    for (let i = 0; i < width * height; i++) {
      input[c * width * height + i] = Math.fround(Math.fround(pixels.data[3 * i + c] / 255) - m) / s;
    }
  }
  return { input, seen };
}

async function decode(blob) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(() => {
    throw new Error("this file is no image that the browser can read");
  });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // transparent pixels lie on white
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const data = new Uint8Array(canvas.width * canvas.height * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4, j += 3) {
    [data[j], data[j + 1], data[j + 2]] = [rgba[i], rgba[i + 1], rgba[i + 2]];
  }
  return { data, width: canvas.width, height: canvas.height, canvas };
}

// --- The model --------------------------------------------------------------------------------------------------

const TOLERANCE = 1e-3; // of the largest output, between WebGPU and WebAssembly

const sample = () => new Blob([decodeBase64(settings.sample)], { type: "image/png" });

const model = (async () => {
  const script = new Blob([await embedded("runtime")], { type: "text/javascript" });
  const ort = await import(URL.createObjectURL(script));
  ort.env.wasm.wasmBinary = (await embedded("wasm")).buffer;
  ort.env.wasm.numThreads = 1; // more would need headers that a file has not
  ort.env.logLevel = "error";
  const bytes = await embedded("model");
  const open = (provider) => ort.InferenceSession.create(bytes, { executionProviders: [provider] });
  const onCpu = { ort, session: await open("wasm"), runtime: "WebAssembly" };
  if (!settings.webgpu) return onCpu;
  try {
    const onGpu = { ort, session: await open("webgpu"), runtime: "WebGPU" };
    const { input } = prepare(await decode(sample()));
    checkEqual(await compute(onGpu, input), await compute(onCpu, input));
    await onCpu.session.release();
    return onGpu;
  } catch (error) {
    console.warn(`WebGPU is not used: ${error.message}`);
    return onCpu;
  }
})();

async function compute({ ort, session }, input) {
  const found = await session.run({ images: new ort.Tensor("float32", input, [1, 3, settings.height, settings.width]) });
  return Object.fromEntries(Object.entries(found).map(([name, { data, dims }]) => [name, { data, dims }]));
}

function checkEqual(outputs, expected) {
  for (const [name, { data }] of Object.entries(expected)) {
    const largest = data.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    const close = (x, i) => Math.abs(x - outputs[name].data[i]) <= TOLERANCE * largest; // not so for NaN
    if (!data.every(close)) throw new Error(`its ${name} differ from WebAssembly's`);
  }
}

let previous = Promise.resolve();

// One image after the other: a session computes one at a time.
function predict(blob) {
  const result = previous.then(async () => {
    const opened = await model;
    const image = await decode(blob);
    const { input, seen } = prepare(image);
    const begin = performance.now();
    const outputs = await compute(opened, input);
    return { image, seen, outputs, ms: performance.now() - begin, runtime: opened.runtime };
  });
  previous = result.catch(() => {});
  return result;
}

const plain = (outputs) => Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, Array.from(data)]));

function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (x) => Math.exp(x - top));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / total);
}

// --- Boxes ------------------------------------------------------------------------------------------------------

function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

function detections({ boxes, scores }) {
  const classes = scores.dims[2];
  const candidates = [];
  for (let i = 0; i < scores.data.length; i++) {
    if (scores.data[i] < settings.min_score) continue;
    const anchor = Math.floor(i / classes);
    candidates.push({ score: scores.data[i], label: i % classes, box: Array.from(boxes.data.subarray(4 * anchor, 4 * anchor + 4)) });
  }
  candidates.sort((a, b) => b.score - a.score);
  const kept = [];
  for (const each of candidates.slice(0, 3000)) {
    if (kept.length < 100 && !kept.some((k) => k.label === each.label && overlap(k.box, each.box) > 0.5)) kept.push(each);
  }
  return kept;
}

// --- What is shown ----------------------------------------------------------------------------------------------

const nameOf = (index) => settings.classes[index] ?? `class ${index}`;
let shown = null;

function bars(rows) {
  element("results").replaceChildren(...rows.map(([name, share, colour]) => {
    const row = document.createElement("div");
    row.className = "row";
    const [label, bar, value] = [document.createElement("span"), document.createElement("div"), document.createElement("span")];
    if (colour) {
      const swatch = document.createElement("i");
      swatch.className = "swatch";
      swatch.style.background = colour;
      label.append(swatch);
    }
    label.append(name);
    bar.className = "bar";
    const inside = document.createElement("i");
    inside.style.width = `${100 * share}%`;
    bar.append(inside);
    value.textContent = `${(100 * share).toFixed(1)} %`;
    row.append(label, bar, value);
    return row;
  }));
}

function overlay(context, map, rows, columns, paint, smooth, to) {
  const small = document.createElement("canvas");
  [small.width, small.height] = [columns, rows];
  const pixels = small.getContext("2d").createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) pixels.data.set(paint(map[i], i), 4 * i);
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = smooth;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, to.left, to.top, to.width, to.height);
}

const rgb = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

function draw() {
  const { image, seen, outputs, found, classMap } = shown;
  const view = element("view");
  const scale = Math.min(1, 1024 / Math.max(image.width, image.height));
  [view.width, view.height] = [Math.round(image.width * scale), Math.round(image.height * scale)];
  const context = view.getContext("2d");
  context.drawImage(image.canvas, 0, 0, view.width, view.height);
  view.hidden = false;
  if (!element("show").checked) return;
  context.save();
  context.scale(view.width / image.width, view.height / image.height);
  if (outputs.looks) {
    const [, rows, columns] = outputs.looks.dims;
    const [least, most] = [Math.min(...outputs.looks.data), Math.max(...outputs.looks.data)];
    const strength = (x) => (200 * (x - least)) / (most - least || 1);
    context.fillStyle = "#0006";
    context.fillRect(0, 0, image.width, image.height);
    context.beginPath();
    context.rect(seen.left, seen.top, seen.width, seen.height);
    context.clip();
    overlay(context, outputs.looks.data, rows, columns, (x) => [255, 160, 0, strength(x)], true, seen);
  } else if (classMap) {
    const [, , rows, columns] = outputs.logits.dims;
    overlay(context, classMap, rows, columns, (index) => [...rgb(colourOf(index)), 130], false, seen);
  } else if (found) {
    const dot = image.width / view.clientWidth; // of the screen, in pixels of the photo
    const [across, down] = [image.width / settings.width, image.height / settings.height];
    context.lineWidth = 2 * dot;
    context.font = `${13 * dot}px system-ui, sans-serif`;
    context.textBaseline = "bottom";
    for (const { box, label, score } of found.toReversed()) { // the best lie on top
      const [x, y, w, h] = [box[0] * across, box[1] * down, (box[2] - box[0]) * across, (box[3] - box[1]) * down];
      const text = `${nameOf(label)} ${(100 * score).toFixed(0)} %`;
      const bottom = Math.max(y, 17 * dot);
      context.strokeStyle = context.fillStyle = colourOf(label);
      context.strokeRect(x, y, w, h);
      context.fillRect(x - dot, bottom - 17 * dot, context.measureText(text).width + 6 * dot, 17 * dot);
      context.fillStyle = "#fff";
      context.fillText(text, x + 2 * dot, bottom);
    }
  }
  context.restore();
}

function show(result) {
  shown = result;
  const { outputs } = result;
  let [what, rows] = ["", []];
  if (outputs.boxes) {
    result.found = detections(outputs);
    rows = result.found.slice(0, 20).map((each) => [nameOf(each.label), each.score, colourOf(each.label)]);
    what = `show the boxes (${result.found.length} found)`;
  } else if (outputs.logits.dims.length === 4) {
    const [, classes, height, width] = outputs.logits.dims;
    const { data } = outputs.logits;
    result.classMap = new Uint16Array(height * width);
    const counts = new Array(classes).fill(0);
    for (let i = 0; i < height * width; i++) {
      let best = 0;
      for (let c = 1; c < classes; c++) if (data[c * height * width + i] > data[best * height * width + i]) best = c;
      result.classMap[i] = best;
      counts[best]++;
    }
    rows = counts.map((n, c) => [nameOf(c), n / (height * width), colourOf(c)]).filter((row) => row[1] > 0);
    rows.sort((a, b) => b[1] - a[1]);
    what = "show the masks (and below, each class's share of the image)";
  } else {
    const named = softmax(outputs.logits.data).map((probability, i) => [nameOf(i), probability]);
    rows = named.sort((a, b) => b[1] - a[1]).slice(0, 5);
    if (outputs.looks) what = `show where it looks (a map of ${outputs.looks.dims[1]} x ${outputs.looks.dims[2]} positions)`;
  }
  element("what").textContent = what;
  element("toggle").hidden = !what;
  bars(rows);
  if (!rows.length) element("results").textContent = "nothing was found";
  draw();
}

function say(status, error = "") {
  element("status").textContent = status;
  element("error").textContent = error;
  element("error").hidden = !error;
}

async function take(blob) {
  say("Looking ...");
  try {
    const result = await predict(blob);
    show(result);
    say(`${result.ms.toFixed(0)} ms for this image on this device, in ${result.runtime}`);
  } catch (error) {
    say("", error.message);
  }
}

function takeFirst(files) {
  const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
  if (file) take(file);
}

async function photograph() {
  const [dialog, video] = [element("viewfinder"), element("video")];
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  } catch (error) {
    say("", `the camera cannot be used: ${error.message}`);
    return;
  }
  video.srcObject = stream;
  await video.play();
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  stream.getTracks().forEach((track) => track.stop());
  if (dialog.returnValue === "photo") canvas.toBlob(take);
}

for (const id of ["file", "camera"]) {
  element(id).addEventListener("change", (event) => {
    takeFirst(event.target.files);
    event.target.value = ""; // so that the same file can be chosen again
  });
}
// A phone's own camera app takes the photo; elsewhere the page shows what the camera sees.
if (!matchMedia("(pointer: coarse)").matches) {
  element("camera").parentElement.hidden = !navigator.mediaDevices;
  element("camera").addEventListener("click", (event) => {
    event.preventDefault();
    photograph();
  });
}
element("show").addEventListener("change", draw);
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") takeFirst(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => takeFirst(event.clipboardData.files));

// --- For programs -----------------------------------------------------------------------------------------------

async function selftest() {
  const result = await predict(sample());
  show(result);
  const times = [];
  for (let i = 0; i < 5; i++) times.push((await predict(sample())).ms);
  const ms = times.sort((a, b) => a - b)[2];
  say(`${ms.toFixed(0)} ms for the embedded picture on this device, in ${result.runtime}`);
  return { ms, runtime: result.runtime, classes: settings.classes, ...plain(result.outputs) };
}

async function measure(rounds = 30, warmup = 3) {
  const seconds = [];
  const { runtime } = await model;
  for (let i = -warmup; i < rounds; i++) {
    say(`Measuring: ${Math.max(0, i)} of ${rounds} ...`);
    const { ms } = await predict(sample());
    if (i >= 0) seconds.push(ms / 1000);
  }
  const file = decodeURIComponent(location.pathname.split("/").pop());
  const browser = navigator.userAgent.match(/(Firefox|Edg|Chrome|Version)\/[\d.]+/)?.[0] ?? "browser";
  const device = `${navigator.userAgentData?.platform ?? navigator.platform}, ${browser}`;
  const result = { device, threads: 1, files: [{ file, runtime: `onnxruntime-web, ${runtime}`, seconds }] };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(result, null, 1)], { type: "application/json" }));
  link.download = "result.json";
  link.textContent = "download result.json";
  say(`${(1000 * seconds.toSorted((a, b) => a - b)[Math.floor(rounds / 2)]).toFixed(0)} ms for an image, in ${runtime}: `);
  element("status").append(link);
  return result;
}

globalThis.linvit = {
  async predict(blob) {
    const { outputs, ms } = await predict(blob);
    return { ms, outputs: plain(outputs) };
  },
};

// What the part of the address behind # asks for goes into the element "selftest", as JSON.
async function answer() {
  try {
    await model;
    say("Ready.");
    const result = await { "#selftest": selftest, "#measure": measure }[location.hash]?.();
    if (result) element("selftest").textContent = JSON.stringify(result);
  } catch (error) {
    say("", `The model does not run in this browser: ${error.message}`);
    element("selftest").textContent = JSON.stringify({ error: error.message });
  }
}

window.addEventListener("hashchange", answer);
answer();
