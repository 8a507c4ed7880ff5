// A pad to draw on. Its value is a PNG of what is on it, as a data URL. Events: "input" after a stroke, "upload" when a
// picture was opened or dropped (with the picture, or only its size if that is too large).
const canvas = element.querySelector("canvas");
const cursor = element.querySelector(".pen");
const picker = element.querySelector("input");
const pen = canvas.getContext("2d");
const SIDE = canvas.width;
const WAIT = 50; // milliseconds between two updates while drawing
let last = null; // where the pointer was
let at = [SIDE / 2, SIDE / 2]; // where the keyboard's pen is
let down = false;
let sent = null; // the value that came from here
let waiting = false;

function wipe() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, SIDE, SIDE);
}

function line(from, to) {
  pen.strokeStyle = "#fff";
  pen.lineWidth = SIDE / 13;
  pen.lineCap = "round";
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
  send();
}

function send() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    sent = canvas.toDataURL("image/png");
    props.value = sent;
    trigger("input");
  }, WAIT);
}

function show() {
  if (props.value === sent) return;
  wipe();
  if (!props.value) return;
  const image = new Image();
  image.onload = () => {
    pen.imageSmoothingEnabled = false;
    pen.drawImage(image, 0, 0, SIDE, SIDE);
  };
  image.src = props.value;
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
}

function clear() {
  wipe();
  sent = "";
  props.value = "";
  trigger("input");
}

function open(file) {
  if (!file) return;
  if (file.size > props.most) return trigger("upload", { size: file.size });
  const reader = new FileReader();
  reader.onload = () => trigger("upload", { picture: reader.result });
  reader.readAsDataURL(file);
}

canvas.onpointerdown = (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  line(last, last);
};
canvas.onpointermove = (event) => {
  if (!last) return;
  for (const each of event.getCoalescedEvents?.() ?? [event]) {
    line(last, place(each));
    last = place(each);
  }
};
canvas.onpointerup = canvas.onpointercancel = () => {
  last = null;
};

const STEPS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
canvas.onkeydown = (event) => {
  const step = STEPS[event.key];
  if (step) {
    const to = at.map((x, axis) => Math.min(Math.max(x + (step[axis] * SIDE) / 28, 0), SIDE));
    if (down) line(at, to);
    at = to;
  } else if (event.key === " ") {
    down = !down;
    if (down) line(at, at);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else {
    return;
  }
  event.preventDefault();
  cursor.style.left = `${(100 * at[0]) / SIDE}%`;
  cursor.style.top = `${(100 * at[1]) / SIDE}%`;
  cursor.classList.toggle("down", down);
};

element.querySelector(".clear").onclick = clear;
element.querySelector(".open").onclick = () => picker.click();
picker.onchange = () => {
  open(picker.files[0]);
  picker.value = "";
};
element.ondragover = (event) => event.preventDefault();
element.ondrop = (event) => {
  event.preventDefault();
  open(event.dataTransfer.files[0]);
};
watch("value", show);
wipe();
show();
