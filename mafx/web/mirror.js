// The browser's side of the mirror. It runs in the page with `element` and `props`, see mirror_tab.py.

const LONGEST = 480; // pixels of a frame's longer side: the networks look at 256
const LONGEST_PICTURE = 768; // of a picture that is sent, which a request must hold
const FRAME_QUALITY = 0.85, PICTURE_QUALITY = 0.9; // of JPEG
const AVERAGED = 60; // frames that the numbers are about

const part = Object.fromEntries([...element.querySelectorAll("[data-part]")].map((x) => [x.dataset.part, x]));
const canvas = document.createElement("canvas");
let run = null; // of the camera that is on

for (const name of props.models) part.model.append(new Option(name, name));
part.seed.value = props.seed;
part.toggle.addEventListener("click", () => (run ? stop() : start()));
for (const input of [part.model, part.seed, part.picture]) {
  input.addEventListener("change", () => run && (run.isOpen = false));
}

function say(text, isProblem = false) {
  if (part.status.textContent === text) return; // said already: screen readers would say it again
  part.status.textContent = text;
  part.status.className = isProblem ? "mafx-problem" : "mafx-note";
}

// -- On and off

async function start() {
  const mine = (run = { stream: null, mirror: null, isOpen: false });
  part.toggle.textContent = "Stop the camera";
  try {
    mine.stream = await openCamera();
    for (const track of mine.stream.getTracks()) {
      track.addEventListener("ended", () => run === mine && stop("The camera has stopped."));
    }
    if (run !== mine) return release(mine);
    part.camera.srcObject = mine.stream;
    await part.camera.play();
    await follow(mine);
  } catch (error) {
    run === mine ? stop(sentence(error), true) : release(mine);
  }
}

function stop(text = "The camera is off.", isProblem = false) {
  const ended = run;
  run = null;
  part.camera.srcObject = null;
  part.toggle.textContent = "Start the camera";
  say(text, isProblem);
  release(ended);
}

function release({ stream, mirror }) {
  stream?.getTracks().forEach((track) => track.stop());
  if (mirror) ask("end", { mirror }).catch(() => {}); // it ends by itself, too
}

async function openCamera() {
  if (!navigator.mediaDevices) throw new Error("Browsers give cameras to pages of this machine, or by https, only.");
  return navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, facingMode: "user" }, audio: false });
}

// Opens the mirror that is chosen, in place of the one before.
async function open(mine) {
  say("Opening the mirror. The first time takes a while, since the model is compiled.");
  mine.isOpen = true;
  const opened = await ask("open", await wanted());
  mine.mirror = opened.mirror;
  if (run !== mine) return release(mine);
  await show(opened.picture);
}

async function wanted() {
  const picture = part.picture.files.length ? await sendable(part.picture.files[0]) : "";
  return { model: part.model.value, seed: Number(part.seed.value), picture };
}

async function sendable(file) {
  const picture = await createImageBitmap(file).catch(() => {
    throw new Error("The picture cannot be read by this browser.");
  });
  return draw(picture, picture.width, picture.height, LONGEST_PICTURE, PICTURE_QUALITY);
}

// -- Frames

// One frame at a time: the next one is the newest that the camera has when this one is shown.
async function follow(mine) {
  const seen = [];
  let last = 0;
  while (run === mine) {
    if (!mine.isOpen) {
      await open(mine);
      [seen.length, last] = [0, 0];
      continue;
    }
    const frame = await newFrame(part.camera);
    if (run !== mine) return;
    const skipped = last ? Math.max(0, frame.number - last - 1) : 0;
    last = frame.number;
    const answer = await ask("show", { mirror: mine.mirror, picture: capture(part.camera) });
    if (run !== mine) return;
    if (!answer) continue; // dropped
    await show(answer.picture);
    const now = performance.now();
    seen.push({ now, latency: now - frame.taken, skipped });
    if (seen.length > AVERAGED) seen.shift();
    part.numbers.textContent = summary(seen, answer);
    say(answer.found ? "Move!" : "Nobody is seen: step back, so that the camera sees your shoulders and hips.");
  }
}

function newFrame(video) {
  return new Promise((resolve) => {
    if (video.requestVideoFrameCallback) {
      video.requestVideoFrameCallback((now, about) =>
        resolve({ taken: about.captureTime ?? now, number: about.presentedFrames }),
      );
    } else {
      requestAnimationFrame((now) => resolve({ taken: now, number: 0 }));
    }
  });
}

function capture(video) {
  return draw(video, video.videoWidth, video.videoHeight, LONGEST, FRAME_QUALITY);
}

function draw(source, width, height, longest, quality) {
  const scale = Math.min(1, longest / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", quality);
}

async function show(picture) {
  part.shown.hidden = false;
  part.shown.src = picture;
  await part.shown.decode();
}

function summary(seen, { milliseconds }) {
  const latencies = seen.map((frame) => frame.latency).sort((a, b) => a - b);
  const [middle, late] = [0.5, 0.95].map((share) => Math.round(latencies[Math.floor(share * (seen.length - 1))]));
  const span = seen.at(-1).now - seen[0].now;
  const fps = span > 0 ? (1000 * (seen.length - 1)) / span : 0;
  const skipped = seen.reduce((sum, frame) => sum + frame.skipped, 0);
  const parts = Object.entries(milliseconds).map(([name, x]) => `${name} ${Math.round(x)}`);
  return (
    `${fps.toFixed(1)} frames a second, ${middle} ms from camera to picture (one in twenty takes ${late} ms or more; ` +
    `now ${parts.join(", ")}), ` +
    `${skipped} camera frames left out for the last ${seen.length}`
  );
}

// -- The server

// The answer, null where the frame was dropped.
async function ask(door, content) {
  const body = JSON.stringify(content);
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`.${props.path}/${door}`, { method: "POST", headers, body });
  if (answer.status === 409) return null;
  const text = await answer.text();
  if (answer.ok) return JSON.parse(text);
  throw new Error(problem(text));
}

function problem(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return text;
  }
}

function sentence(error) {
  const known = {
    NotAllowedError: "The camera may not be used: allow it beside the page's address, and start again.",
    NotFoundError: "There is no camera.",
    OverconstrainedError: "There is no camera that fits.",
    NotReadableError: "The camera is in use elsewhere, or broken.",
    TypeError: "The server does not answer.",
  };
  const text = known[error.name] ?? String(error.message ?? error);
  return text.charAt(0).toUpperCase() + text.slice(1);
}
