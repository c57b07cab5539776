"use strict";
// Keys go to the server; chunks come back, a message and then its pictures, which are shown in turn.

const KEYS = {
  KeyW: "w", KeyA: "a", KeyS: "s", KeyD: "d",
  ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down",
};
const FASTEST = 30, SLOWEST = 250; // milliseconds a picture is shown

const element = (id) => document.getElementById(id);
const map = new FromAbove(element("map"));
const picture = element("picture").getContext("2d");
const play = { held: new Set(), accelerated: true, chunk: null, steps: 0, times: { true: [], false: [] }, waiting: [], pace: 60 };

const address = new URL("/walk", location.href);
address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
const socket = new WebSocket(address);
socket.binaryType = "blob";
socket.onmessage = ({ data }) => (typeof data === "string" ? heard(JSON.parse(data)) : play.waiting.push(createImageBitmap(data)));
socket.onclose = () => { if (element("status").dataset.kind !== "replaced") say("the connection has ended: load the page again", "closed"); };

function say(words, kind) {
  element("status").textContent = words;
  element("status").dataset.kind = kind;
}

function send(message) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function heard(message) {
  if (message.kind === "hello") greeted(message);
  else if (message.kind === "chunk") showChunk(message);
  else say(message.says, message.kind);
}

function greeted(message) {
  play.steps = message.steps;
  play.waiting.length = 0;
  element("model").textContent = `${message.model} · ${message.device} · preset ${message.preset}`;
  document.title = `lightint play · ${message.name}`;
  map.begin(message.walls);
}

function showChunk(message) {
  play.chunk = message;
  say("walking", "walking");
  document.body.classList.toggle("plain", !message.accelerated);
  map.add(message.made[0], message.places, message.half_view);
  element("chunk").textContent = `${message.chunk}, latent frames ${message.made[0]} to ${message.made[1] - 1}`;
  element("decision").textContent = message.says;
  if (message.milliseconds !== null) showTime(message);
  cells(message);
  const reused = new Set(message.reused);
  boxes("steps", play.steps, (step) => (reused.has(step) ? "reused" : ""));
}

function showTime(message) {
  element("time").textContent = `${message.milliseconds.toFixed(0)} ms, ${message.accelerated ? "accelerated" : "as the model is"}`;
  const times = play.times[message.accelerated];
  times.push(message.milliseconds);
  if (times.length > 15) times.shift();
  const typical = (values) => (values.length ? `${[...values].sort((a, b) => a - b)[values.length >> 1].toFixed(0)} ms` : "–");
  element("typical").textContent = `${typical(play.times.true)} accelerated, ${typical(play.times.false)} without`;
  play.pace = Math.min(SLOWEST, Math.max(FASTEST, message.milliseconds / message.pictures));
}

// The newest frames, one cell each: those looked back at, and the chunk's own.
function cells(message) {
  const [first, end] = message.made, looked = new Set(message.context), from = Math.max(0, end - 64);
  boxes("context", end - from, (number) => (number + from >= first ? "made" : looked.has(number + from) ? "looked" : ""));
}

function boxes(id, count, kind) {
  element(id).replaceChildren(...Array.from({ length: count }, (_, number) => {
    const box = document.createElement("i");
    box.className = kind(number);
    return box;
  }));
}

async function showPictures() {
  const next = play.waiting.shift();
  if (next) {
    const shown = await next, { canvas } = picture;
    canvas.height = Math.round(canvas.width * shown.height / shown.width);
    picture.imageSmoothingEnabled = shown.width >= 64;
    picture.drawImage(shown, 0, 0, canvas.width, canvas.height);
    canvas.dataset.shown = Number(canvas.dataset.shown || 0) + 1;
  }
  setTimeout(showPictures, next ? play.pace : FASTEST);
}

function keysChanged() {
  send({ kind: "keys", keys: [...play.held] });
}

function accelerate(on) {
  play.accelerated = on;
  element("accelerate").setAttribute("aria-pressed", String(on));
  element("accelerate").textContent = `acceleration: ${on ? "on" : "off"}`;
  send({ kind: "accelerate", on });
}

function again() {
  play.waiting.length = 0;
  send({ kind: "again" });
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = KEYS[event.code];
  if (key) {
    event.preventDefault();
    if (!play.held.has(key)) { play.held.add(key); keysChanged(); }
  } else if (event.repeat) {
    if (event.code === "Space") event.preventDefault();
  } else if (event.code === "Space") {
    event.preventDefault();
    accelerate(!play.accelerated);
  } else if (event.code === "KeyR") again();
});
addEventListener("keyup", (event) => {
  if (event.code === "Space") event.preventDefault(); // a focused button would be pressed as well
  if (play.held.delete(KEYS[event.code])) keysChanged();
});
addEventListener("blur", () => { play.held.clear(); keysChanged(); });
element("accelerate").onclick = () => accelerate(!play.accelerated);
element("again").onclick = again;
showPictures();
