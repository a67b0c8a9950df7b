// Without this script the page is a plain list; with it the list can be searched and filtered.
(() => {
  const form = document.querySelector("form.filters");
  const claims = [...document.querySelectorAll("article")].map((element) => ({
    element,
    text: element.textContent.toLowerCase(),
  }));
  const sections = [...document.querySelectorAll("section.claims")];

  const update = () => {
    const fields = new FormData(form);
    const words = fields.get("search").toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = ["verdict", "kind", "section", "ablation"].filter((name) => fields.get(name));
    let shown = 0;
    for (const { element, text } of claims) {
      const matches =
        words.every((word) => text.includes(word)) &&
        wanted.every((name) => element.dataset[name] === fields.get(name)) &&
        (!fields.has("surprise") || element.dataset.surprise === "yes");
      element.hidden = !matches;
      shown += matches;
    }
    for (const section of sections) section.hidden = !section.querySelector("article:not([hidden])");
    form.querySelector("output").textContent = `${shown} of ${claims.length} claims`;
    document.querySelector(".nothing").hidden = shown > 0;
  };

  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  update(); // a browser may restore what was typed before a reload
})();
