// One slider for each dimension of a capsule. The value is {number, capsule, offsets}; "input" while one moves.
const inputs = [...element.querySelectorAll("input")];

function show() {
  inputs.forEach((input, k) => {
    input.value = props.value?.offsets?.[k] ?? 0;
    input.disabled = !props.value;
  });
}

function send() {
  if (!props.value) return;
  props.value = { ...props.value, offsets: inputs.map((input) => Number(input.value)) };
  trigger("input");
}

inputs.forEach((input) => (input.oninput = send));
element.querySelector("button").onclick = () => {
  inputs.forEach((input) => (input.value = 0));
  send();
};
watch("value", show);
show();
