// Images to pick from. "select" says the number of the one that was picked.
element.onclick = (event) => {
  const button = event.target.closest("button");
  if (button) trigger("select", { number: Number(button.dataset.number) });
};
