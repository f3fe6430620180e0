// The page of one model: picture in, class ids out, all in the browser.
// model.js sets `segkd`: title, classes, palette, longestSide, examples and the ONNX file, as base64. A page that is
// opened as a file may not fetch its neighbors, but it may load their scripts: so everything comes in scripts.
"use strict";

const element = (id) => document.getElementById(id);
const video = element("video");
let session = null; // of onnxruntime-web
let shown = null; // the last result: { pixels, labels, teacher, milliseconds }
let busy = Promise.resolve(); // one run at a time

async function decodeBase64(text) {
  const response = await fetch(`data:application/octet-stream;base64,${text}`);
  return new Uint8Array(await response.arrayBuffer());
}

function loadScript(address) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = resolve;
    script.onerror = () => reject(new Error(`${address} is missing beside this page.`));
    document.head.append(script);
  });
}

// runtime_wasm.js and runtime_webgpu.js each hold a build of onnxruntime-web (`ort`) and its two files (`ortFiles`).
async function startRuntime(kind) {
  say("Loading the model …");
  await loadScript(`runtime_${kind}.js`);
  const module = new Blob([await decodeBase64(ortFiles.module)], { type: "text/javascript" });
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(module) };
  ort.env.wasm.wasmBinary = await decodeBase64(ortFiles.binary);
  // Several threads need headers that only some servers send.
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(await decodeBase64(segkd.model), { executionProviders: [kind] });
  // The first run allocates, and would be shown as slow.
  await run(new ImageData(64, 64));
  say("Open a picture, or choose an example.");
}

// RGBA pixels of something that can be drawn; a picture with a side above `longestSide` is shrunk by the browser.
function pixelsOf(source, width, height) {
  const scale = Math.min(1, segkd.longestSide / Math.max(width, height));
  const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

async function decodePicture(blob) {
  // Pixels as they are in the file, turned as the camera was held: what Python's reader gives.
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const pixels = pixelsOf(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  return pixels;
}

// The model takes bytes (1, height, width, 3) and normalizes them itself.
async function run({ data, width, height }) {
  const bytes = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    bytes[to++] = data[from];
    bytes[to++] = data[from + 1];
    bytes[to++] = data[from + 2];
  }
  const start = performance.now();
  const { labels } = await session.run({ images: new ort.Tensor("uint8", bytes, [1, height, width, 3]) });
  return { labels: labels.data, milliseconds: performance.now() - start };
}

function segment(pixels, teacher = null) {
  busy = busy.then(async () => {
    const { labels, milliseconds } = await run(pixels);
    shown = { pixels, labels, teacher, milliseconds };
    show();
  });
  return busy;
}

function show() {
  const { pixels, labels, teacher, milliseconds } = shown;
  for (const id of ["picture", "left", "right"]) {
    element(id).width = pixels.width;
    element(id).height = pixels.height;
  }
  element("picture").getContext("2d").putImageData(pixels, 0, 0);
  paint(element("right"), labels);
  if (teacher) paint(element("left"), teacher);
  element("compared").textContent = teacher ? "Teacher | student" : "Picture | classes";
  const parts = [`${milliseconds.toFixed(0)} ms`, `${pixels.width} × ${pixels.height} pixels`];
  if (teacher) {
    const equal = labels.reduce((count, label, index) => count + (label === teacher[index]), 0);
    parts.push(`the teacher's class on ${percent(equal, labels.length)} % of them`);
  }
  say(parts.join(" · "));
  fillLegend(labels, teacher);
}

function paint(canvas, labels) {
  const colors = new ImageData(canvas.width, canvas.height);
  for (let index = 0, to = 0; index < labels.length; index += 1) {
    const [red, green, blue] = segkd.palette[labels[index]];
    colors.data[to++] = red;
    colors.data[to++] = green;
    colors.data[to++] = blue;
    colors.data[to++] = 255;
  }
  canvas.getContext("2d").putImageData(colors, 0, 0);
}

function countLabels(labels) {
  const counts = new Array(segkd.classes.length).fill(0);
  labels.forEach((label) => (counts[label] += 1));
  return counts;
}

// Class names are set as text: they come from a repository that anybody may have written.
function fillLegend(labels, teacher) {
  const maps = teacher ? [teacher, labels] : [labels];
  const counts = maps.map(countLabels);
  const total = (index) => counts.reduce((sum, count) => sum + count[index], 0);
  const found = segkd.classes.map((_, index) => index).filter(total);
  found.sort((a, b) => total(b) - total(a));
  const titles = teacher ? ["teacher, %", "student, %"] : ["area, %"];
  const rows = [row("th", ["class", ...titles])];
  for (const index of found) {
    const line = row("td", [segkd.classes[index], ...counts.map((count) => percent(count[index], labels.length))]);
    const swatch = document.createElement("i");
    swatch.style.background = `rgb(${segkd.palette[index].join(" ")})`;
    line.firstChild.prepend(swatch);
    rows.push(line);
  }
  element("legend").replaceChildren(...rows);
}

function row(kind, texts) {
  const line = document.createElement("tr");
  for (const text of texts) {
    const cell = document.createElement(kind);
    cell.textContent = text;
    line.append(cell);
  }
  return line;
}

function percent(part, whole) {
  return ((100 * part) / whole).toFixed(1);
}

function say(text) {
  element("status").textContent = text;
}

function moveSlider() {
  const position = element("position").value;
  const left = element("left");
  const right = element("right");
  left.style.clipPath = `inset(0 ${100 - position}% 0 0)`;
  right.style.clipPath = `inset(0 0 0 ${position}%)`;
  left.style.opacity = right.style.opacity = element("opacity").value / 100;
  element("line").style.left = `${position}%`;
}

async function openBlob(blob) {
  stopWebcam();
  say("Reading the picture …");
  let pixels;
  try {
    pixels = await decodePicture(blob);
  } catch {
    say("This file is no picture that the browser can read, or it is too large. Try a smaller JPEG or PNG.");
    return;
  }
  await segment(pixels);
}

async function openExample({ picture, teacher }) {
  stopWebcam();
  const [pixels, stored] = await Promise.all(
    [picture, teacher].map(async (data) => data && decodePicture(await (await fetch(data)).blob())),
  );
  // The teacher's class ids are stored as gray levels.
  await segment(pixels, stored && stored.data.filter((_, index) => index % 4 === 0));
}

async function startWebcam() {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(`There is no webcam that this page may use (${error.message ?? error}).`);
    return;
  }
  await video.play();
  element("webcam").textContent = "Stop the webcam";
  while (video.srcObject) {
    await segment(pixelsOf(video, video.videoWidth, video.videoHeight));
    await new Promise(requestAnimationFrame);
  }
}

function stopWebcam() {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  element("webcam").textContent = "Start the webcam";
}

// What fails is said on the page, not only in the browser's console.
const reporting = (action) => async (event) => {
  try {
    await action(event);
  } catch (error) {
    busy = Promise.resolve();
    say(`Error: ${error.message ?? error}`);
  }
};

function addExamples() {
  for (const example of segkd.examples) {
    const image = document.createElement("img");
    image.src = example.picture;
    image.alt = "Example";
    const button = document.createElement("button");
    button.type = "button";
    button.append(image);
    button.onclick = reporting(() => openExample(example));
    element("examples").append(button);
  }
}

async function start() {
  document.title = segkd.title;
  element("title").textContent = segkd.title;
  element("file").onchange = reporting(async (event) => {
    const [file] = event.target.files;
    // Otherwise the same name chosen again would be no change.
    event.target.value = "";
    if (file) await openBlob(file);
  });
  element("webcam").onclick = reporting(() => (video.srcObject ? stopWebcam() : startWebcam()));
  element("position").oninput = element("opacity").oninput = moveSlider;
  element("runtime").onchange = reporting(async (event) => {
    const last = shown;
    await startRuntime(event.target.value);
    if (last) await segment(last.pixels, last.teacher);
  });
  moveSlider();
  addExamples();
  if (navigator.gpu) element("runtime").append(new Option("Graphics card (WebGPU)", "webgpu"));
  await startRuntime("wasm");
  if (segkd.examples.length) await openExample(segkd.examples[0]);
}

reporting(start)();
