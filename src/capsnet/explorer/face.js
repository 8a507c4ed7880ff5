// A face whose parts are dragged about. The value is {number, kind, parts, picture, places, back}: what is where, a
// picture of it, where on it the parts are, and the matrix that makes a move on the picture one in the face. "input" when
// a part was moved, turned or removed.
const paper = element.querySelector(".paper");
const image = element.querySelector("img");
const handles = [...element.querySelectorAll(".part")];
const remove = element.querySelector("[data-do=there]");
const REACH = 1.4;
const STEP = 0.02; // of the picture, with an arrow key
const WAIT = 50; // milliseconds between two updates while dragging
const PATIENCE = 2000; // milliseconds until an answer is no longer awaited
let parts = null;
let chosen = 0;
let last = null; // where the pointer was
let changes = 0; // by hand
let asked = null; // of how many changes an answer is awaited, and since when; Gradio would take back what is asked meanwhile
let waiting = false;

function show() {
  if (!props.value) return;
  image.src = props.value.picture;
  const answered = props.value.answers ?? changes; // a face that was not changed by hand knows of all changes
  if (asked && answered >= asked.changes) asked = null;
  const late = answered < changes;
  if (late) send();
  if (!last && !late) parts = props.value.parts.map((part) => ({ ...part }));
  handles.forEach((handle, k) => {
    if ((last || late) && k === chosen) return; // the hand is quicker than the answer
    handle.style.left = `${100 * props.value.places[k][0]}%`;
    handle.style.top = `${100 * props.value.places[k][1]}%`;
  });
  mark();
}

function mark() {
  handles.forEach((handle, k) => {
    handle.classList.toggle("chosen", k === chosen);
    handle.classList.toggle("gone", !parts?.[k].there);
  });
  remove.innerText = parts?.[chosen].there === false ? "put it back" : "remove it";
}

function change() {
  changes += 1;
  mark();
  send();
}

function send() {
  if (waiting || (asked && Date.now() - asked.since < PATIENCE)) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    asked = { changes, since: Date.now() };
    props.value = { ...props.value, parts, changes };
    trigger("input");
  }, WAIT);
}

function move(right, down) {
  const back = props.value.back;
  const limit = (x) => Math.min(Math.max(x, -REACH), REACH);
  const part = parts[chosen];
  part.right = limit(part.right + back[0][0] * right + back[0][1] * down);
  part.down = limit(part.down + back[1][0] * right + back[1][1] * down);
  change();
}

function act(what) {
  const part = parts[chosen];
  if (what === "there") part.there = !part.there;
  else part.turn = ((part.turn + (what === "left" ? 15 : -15) + 540) % 360) - 180;
  change();
}

handles.forEach((handle, k) => {
  handle.onpointerdown = (event) => {
    if (!parts) return;
    chosen = k;
    last = [event.clientX, event.clientY];
    handle.setPointerCapture(event.pointerId);
    mark();
  };
  handle.onpointermove = (event) => {
    if (!last) return;
    const box = paper.getBoundingClientRect();
    const moved = [event.clientX - last[0], event.clientY - last[1]];
    last = [event.clientX, event.clientY];
    handle.style.left = `calc(${handle.style.left} + ${moved[0]}px)`;
    handle.style.top = `calc(${handle.style.top} + ${moved[1]}px)`;
    move(moved[0] / box.width, moved[1] / box.height);
  };
  handle.onpointerup = handle.onpointercancel = () => {
    last = null;
  };
  handle.onfocus = () => {
    chosen = k;
    mark();
  };
  handle.onkeydown = (event) => {
    const step = { ArrowUp: [0, -STEP], ArrowDown: [0, STEP], ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0] }[event.key];
    const action = { ",": "left", ".": "right", Delete: "there" }[event.key];
    if (!parts || (!step && !action)) return;
    event.preventDefault();
    if (step) move(...step);
    else act(action);
  };
});
element.querySelectorAll("[data-do]").forEach((button) => {
  button.onclick = () => parts && act(button.dataset.do);
});
watch("value", show);
show();
