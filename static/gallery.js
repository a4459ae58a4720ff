// The gallery: more pictures without leaving, a picture in front of the others, what is selected.
(() => {
  const tiles = document.getElementById("tiles");
  if (!tiles) return;

  const load = async (url) => {
    const answer = await fetch(url);
    if (!answer.ok || answer.redirected) throw new Error(answer.status);
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  };

  document.getElementById("more")?.addEventListener("click", async (event) => {
    event.preventDefault();
    const link = event.currentTarget;
    if (link.ariaBusy === "true") return;
    link.ariaBusy = "true";
    try {
      const page = await load(link.href);
      const fresh = [...page.querySelectorAll("#tiles > .tile")].map((tile) => document.adoptNode(tile));
      tiles.append(...fresh);
      fresh[0]?.querySelector("a").focus();
      const next = page.getElementById("more");
      if (next) link.href = next.href;
      else link.remove();
      link.ariaBusy = "false";
    } catch {
      location.href = link.href;
    }
  });

  const box = document.getElementById("lightbox");
  tiles.addEventListener("click", async (event) => {
    const link = event.target.closest("a.frame");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    try {
      const picture = (await load(link.href)).getElementById("picture");
      box.querySelector("div").replaceChildren(document.adoptNode(picture));
      box.showModal();
    } catch {
      location.href = link.href;
    }
  });
  box.addEventListener("click", (event) => {
    if (event.target === box) box.close();
  });

  const all = document.getElementById("select-all");
  const chosen = document.getElementById("chosen");
  const before = chosen.textContent;
  const boxes = () => [...tiles.querySelectorAll("input[name=picture]")];
  const tell = () => {
    const many = boxes().filter((one) => one.checked).length;
    chosen.textContent = many ? chosen.dataset.some.replace("COUNT", many) : before;
  };
  all.hidden = false;
  all.addEventListener("click", () => {
    const every = boxes().every((one) => one.checked);
    for (const one of boxes()) one.checked = !every;
    tell();
  });
  tiles.addEventListener("change", tell);
  tell();
})();
