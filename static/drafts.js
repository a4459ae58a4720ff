// What was typed in a form that did not arrive: its session had ended, or its token was old.
//
// A form is kept when it is sent. When the next page is the login, or this one again with #unsent, it
// did not arrive: once its page is there again, it is filled in as it was, for the person to send.
// Nothing is sent from here. Kept are visible fields only, no password and no file; in this tab, for
// the same person, for an hour. A form with data-draft is kept while it is typed, and filled in always.
addEventListener("DOMContentLoaded", () => {
  const NAME = "drafts";
  const HOUR = 3600000;
  const SECRET = /^(hidden|password|file|submit|button|image|reset)$/;
  const person = document.body.dataset.person ?? "";
  const read = () => {
    try {
      return JSON.parse(sessionStorage.getItem(NAME)) ?? {};
    } catch {
      return {};
    }
  };
  const write = (drafts) => {
    try {
      sessionStorage.setItem(NAME, JSON.stringify(drafts));
    } catch {
      // A browser that keeps nothing, or nothing more.
    }
  };

  const named = (form) => {
    const url = new URL(form.getAttribute("action") || location.href, location.href);
    return url.pathname + url.search;
  };
  const fields = (form) =>
    [...form.elements].filter(
      (one) => one.name && !SECRET.test(one.type) && !/^one-time-code|^cc-/.test(one.autocomplete),
    );
  const isTicked = (one) => one.type === "checkbox" || one.type === "radio";
  const keep = (form) => {
    const drafts = read();
    const values = fields(form).flatMap((one) => {
      if (isTicked(one)) return one.checked ? [[one.name, one.value]] : [];
      return [[one.name, one.value]];
    });
    delete drafts[named(form)];
    if (values.length) {
      drafts[named(form)] = { person, at: Date.now(), lost: "draft" in form.dataset, values };
    }
    write(drafts);
  };
  const fill = (form, values) => {
    for (const one of fields(form)) {
      const mine = values.filter(([name]) => name === one.name).map(([, value]) => value);
      if (isTicked(one)) one.checked = mine.includes(one.value);
      else if (mine.length) one.value = mine[0];
    }
    form.closest("details")?.setAttribute("open", "");
    form.dispatchEvent(new Event("input", { bubbles: true }));
  };

  const back = location.hash === "#unsent";
  const unsent = back || document.querySelector("[data-unsent]") !== null;
  if (back) history.replaceState(null, "", location.pathname + location.search);
  const entrance = /^\/(login|accounts\/)/.test(location.pathname);
  const forms = new Map(
    [...document.forms].filter((one) => one.method === "post").map((one) => [named(one), one]),
  );
  const drafts = read();
  for (const [name, draft] of Object.entries(drafts)) {
    const form = forms.get(name);
    const others = person ? draft.person !== person : !entrance && draft.person;
    if (others || Date.now() - draft.at > HOUR) delete drafts[name];
    else if (form && draft.person === person) {
      if (draft.lost || unsent) fill(form, draft.values);
      if (!("draft" in form.dataset)) delete drafts[name];
    } else if (entrance || unsent) draft.lost = true;
    else if (!draft.lost) delete drafts[name];
  }
  write(drafts);
  const leadsBack = entrance && new URLSearchParams(location.search).has("next");
  if (leadsBack && Object.values(drafts).some((one) => one.lost)) {
    document.querySelector("[data-kept]")?.removeAttribute("hidden");
  }

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    if (/\/logout\/?$/.test(named(form))) write({});
    else keep(form);
  });
  document.addEventListener("input", (event) => {
    const form = event.target.form;
    if (form && "draft" in form.dataset) keep(form);
  });
});
