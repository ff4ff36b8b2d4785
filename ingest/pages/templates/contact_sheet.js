(() => {
  const form = document.querySelector("form.filter");
  const cards = [...document.querySelectorAll(".sheet > .card")];
  const apply = () => {
    const text = form.elements.text.value.trim().toLowerCase();
    const kind = form.elements.kind?.value ?? "";
    let shown = 0;
    for (const card of cards) {
      card.hidden = !card.dataset.name.includes(text) || (kind && card.dataset.kind !== kind);
      shown += !card.hidden;
    }
    form.querySelector("output").value = `${shown} of ${cards.length} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
