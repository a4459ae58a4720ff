// What every page does: theme, menus, copying, dialogs. All of it is an extra; links and forms work without.
(() => {
  const root = document.documentElement;

  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  if (zone && !document.cookie.includes(`timezone=${zone}`)) {
    document.cookie = `timezone=${zone};path=/;max-age=31536000;samesite=lax`;
  }

  for (const button of document.querySelectorAll("[data-theme-toggle]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      const next = (root.dataset.theme || system) === "dark" ? "light" : "dark";
      root.dataset.theme = next;
      try {
        localStorage.setItem("theme", next);
      } catch {
        // Then it lasts for this page.
      }
    });
  }

  const nav = document.getElementById("nav");
  for (const button of document.querySelectorAll("[data-nav]")) {
    button.addEventListener("click", () => {
      const open = nav.classList.toggle("open");
      button.setAttribute("aria-expanded", String(open));
      if (open) nav.querySelector("a")?.focus();
    });
  }

  const copy = async (button) => {
    const from = button.dataset.copyFrom;
    const text = from ? document.getElementById(from).textContent : button.dataset.copy;
    await navigator.clipboard.writeText(text);
    const label = button.querySelector("span");
    const before = label.textContent;
    label.textContent = button.dataset.done;
    setTimeout(() => { label.textContent = before; }, 2000);
  };

  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details[data-menu][open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
    const copying = event.target.closest("[data-copy], [data-copy-from]");
    if (copying) copy(copying);
    const opening = event.target.closest("[data-dialog]");
    if (opening) document.getElementById(opening.dataset.dialog).showModal();
  });

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of document.querySelectorAll("details[data-menu][open]")) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
    if (nav?.classList.contains("open")) document.querySelector("[data-nav]").click();
  });

  // A form that is sent twice would do twice.
  document.addEventListener("submit", (event) => {
    if (event.target.dataset.sent) event.preventDefault();
    else if (event.target.method === "post") event.target.dataset.sent = "yes";
  });
  addEventListener("pageshow", () => {
    for (const form of document.forms) delete form.dataset.sent;
  });
})();
