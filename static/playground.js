// The playground: the exact price before, each model drawing on its own, the request as code.
(() => {
  const form = document.getElementById("playground");
  if (!form) return;
  const results = document.getElementById("results");
  const status = document.getElementById("progress");
  const wrong = document.getElementById("models-error");
  const boxes = [...form.querySelectorAll("input[name=models]")];
  const button = form.querySelector("button.primary");

  const usd = (micro) => {
    const whole = Math.abs(micro);
    const fraction = String(whole % 1e6).padStart(6, "0").replace(/0+$/, "").padEnd(2, "0");
    return `${micro < 0 ? "-" : ""}$${Math.floor(whole / 1e6).toLocaleString("en")}.${fraction}`;
  };
  const complain = (text) => {
    wrong.replaceChildren();
    if (!text) return;
    const line = document.createElement("p");
    line.textContent = text;
    wrong.append(line);
  };
  const chosen = () => boxes.filter((box) => box.checked);

  let drawing = false;
  const price = () => {
    const each = chosen().reduce((sum, box) => sum + Number(box.dataset.micro), 0);
    return form.elements.sandbox.checked ? 0 : each * Number(form.elements.n.value);
  };
  const uncovered = () => {
    const total = price();
    const left = Number(form.dataset.available);
    if (!total || total <= left) return "";
    return form.dataset.uncovered.replace("TOTAL", usd(total)).replace("LEFT", usd(left));
  };
  // What is chosen, what it costs, and whether it can be drawn.
  const check = () => {
    const many = chosen().length;
    const odd = many > Number(form.dataset.most) ? form.dataset.tooMany : many ? "" : form.dataset.none;
    const text = odd || uncovered();
    document.getElementById("total").textContent = usd(price());
    complain(text);
    button.disabled = drawing || Boolean(text);
    return !text;
  };

  const settle = () => {
    button.disabled = drawing || Boolean(uncovered());
  };
  const spend = (answer) => {
    const left = answer.headers.get("X-Available-Micro");
    if (left === null) return;
    form.dataset.available = left;
    document.getElementById("available").textContent = usd(Number(left));
    settle();
  };
  const part = (html) => {
    const made = document.createElement("template");
    made.innerHTML = html;
    return made.content;
  };
  let leaving = false;
  // Who logs out has left already: an answer that comes too late may not load this page again.
  document.addEventListener("submit", (event) => {
    if (event.target !== form) leaving = true;
  });
  const send = async (url, body) => {
    const headers = { "X-Requested-With": "fetch" };
    const answer = await fetch(url, { method: "POST", body, headers, redirect: "manual" });
    // The session has ended, or the form is of an earlier one; what was typed is kept in drafts.js.
    if (answer.type === "opaqueredirect" && !leaving) {
      leaving = true;
      location.reload();
    }
    spend(answer);
    return answer;
  };

  // --- The request as code ---------------------------------------------------------------------

  let waiting;
  let asked = 0;
  const showCode = async () => {
    if (!form.elements.prompt.value.trim() || !chosen().length) return;
    asked += 1;
    const mine = asked;
    const answer = await send(form.dataset.code, new FormData(form));
    if (answer.status === 200 && mine === asked) {
      document.getElementById("code").replaceChildren(part(await answer.text()));
    }
  };
  form.addEventListener("input", () => {
    check();
    clearTimeout(waiting);
    waiting = setTimeout(showCode, 400);
  });
  if (chosen().length) check();
  showCode();

  // --- Drawing ---------------------------------------------------------------------------------

  const running = () => [...results.querySelectorAll("[data-state=running]")];
  let all = running().length;
  const tell = () => {
    const left = running().length;
    status.textContent = all
      ? form.dataset.progress.replace("DONE", all - left).replace("ALL", all)
      : "";
    if (!left) all = 0;
  };
  const since = new WeakMap();
  const tick = () => {
    for (const one of results.querySelectorAll(".drawing")) {
      // The server's and the browser's clocks need not agree.
      if (!since.has(one)) since.set(one, performance.now() - 1000 * Number(one.dataset.age));
      const seconds = (performance.now() - since.get(one)) / 1000;
      one.querySelector(".elapsed").textContent = `${Math.round(seconds)} s ·`;
      // It slows down towards the end, and never says it is there.
      one.querySelector("progress").value = 100 * (1 - Math.exp((-1.5 * seconds) / Number(one.dataset.usual)));
    }
  };

  let asking = false;
  const ask = async () => {
    tick();
    const ids = running().map((one) => one.id).slice(0, 9);
    if (!ids.length || asking) return;
    asking = true;
    try {
      const url = new URL(form.dataset.results, location.href);
      for (const id of ids) url.searchParams.append("id", id);
      const answer = await fetch(url, { headers: { "X-Requested-With": "fetch" } });
      if (answer.ok && !answer.redirected) {
        spend(answer);
        for (const one of part(await answer.text()).querySelectorAll("article")) {
          if (one.dataset.state !== "running") document.getElementById(one.id).replaceWith(one);
        }
        tell();
      }
    } catch {
      // The network is away for a moment; the next round asks again.
    }
    asking = false;
  };
  setInterval(ask, 1000);
  tick();

  const draw = async (body, model) => {
    body.delete("models");
    body.append("models", model);
    try {
      const answer = await send(form.dataset.draw, body);
      const made = part(await answer.text());
      if (answer.status === 200) results.prepend(made);
      else complain(made.textContent.trim() || form.dataset.lost);
    } catch {
      complain(form.dataset.lost);
    }
  };
  const fresh = () =>
    [...crypto.getRandomValues(new Uint8Array(16))].map((one) => one.toString(16).padStart(2, "0")).join("");

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!check()) return;
    drawing = button.disabled = true;
    // One press is one run: what is sent twice is drawn once.
    form.elements.run.value = fresh();
    await Promise.all(chosen().reverse().map((box) => draw(new FormData(form), box.value)));
    all = running().length;
    tell();
    tick();
    drawing = false;
    settle();
  });
})();
