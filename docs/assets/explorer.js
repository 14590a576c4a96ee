// The explorer's page: native selects and radio buttons, so that keyboards, phones and screen readers know them.
"use strict";

(() => {
  const place = document.getElementById("picker");
  if (!place) return;
  const choice = {
    architecture: "mlp", bias: "huber", retention: "l2", algorithm: "momentum", chunk: 16, read: "after", width: 64,
  };
  const options = {
    ...Object.fromEntries(AXES.map((axis) => [axis, DESIGN.axes[axis].map((item) => item.name)])),
    chunk: DESIGN.chunks, read: DESIGN.reads, width: DESIGN.widths,
  };
  const titles = { chunk: "chunk size", width: "head size" };

  /** An element with attributes and children. */
  function element(name, attributes, ...children) {
    const made = Object.assign(document.createElement(name), attributes);
    made.append(...children);
    return made;
  }

  function tex(formula, displayMode = false) {
    const made = element("span", {});
    katex.render(formula, made, { displayMode, throwOnError: false });
    return made;
  }

  /** Text in which formulas stand between dollars, as docstrings have it. */
  function words(text) {
    return text.split(/\$(.+?)\$/).map((part, i) => (i % 2 ? tex(part) : part.replaceAll("``", "")));
  }

  function picker(name) {
    const select = element("select", { id: `pick-${name}` }, ...options[name].map((o) => element("option", { value: o }, `${o}`)));
    select.addEventListener("change", () => {
      choice[name] = typeof choice[name] === "number" ? Number(select.value) : select.value;
      show();
    });
    return element("div", { className: "pick" },
      element("label", { htmlFor: select.id }, titles[name] ?? name), select, element("p", { id: `says-${name}` }));
  }

  function size(bytes) {
    return bytes < 1024 ? `${bytes} B` : bytes < 2 ** 20 ? `${(bytes / 1024).toPrecision(3)} KiB` : `${(bytes / 2 ** 20).toPrecision(3)} MiB`;
  }

  function named(published) {
    const links = published.flatMap(([name, title]) => [", ", element("a", { href: `zoo/${name}.html` }, title)]).slice(1);
    return links.length ? links : ["nobody has published this one"];
  }

  function table(rows) {
    const cells = ([title, ...content]) => element("tr", {}, element("th", { scope: "row" }, title), element("td", {}, ...content));
    return element("div", { className: "wide", tabIndex: 0 }, element("table", {}, element("tbody", {}, ...rows.map(cells))));
  }

  function pasted(title, text) {
    const button = element("button", { type: "button", className: "md-button" }, `Copy ${title}`);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    });
    const code = element("code", { id: `spec-${title}` }, text);
    return element("div", { className: "paste" }, element("pre", { tabIndex: 0 }, code), button);
  }

  function verdict(found) {
    if (found.reason) return [element("p", { className: "no", id: "verdict" }, `Does not combine: ${found.reason}.`)];
    return [
      table([
        ["published with these", ...named(found.published)],
        ["path", element("strong", { id: "verdict" }, found.path)],
        ...Object.entries(found.refused).map(([path, why]) => [path, why.replace(/(.*) needs a CUDA device$/, "on a CUDA device: $1").replace(/^(?!on a CUDA)/, "no: ")]),
        ["state", `${size(found.state)} a head and row, float32`],
        ["cost", `${(found.flops / 1e6).toPrecision(3)} MFLOP a token and head, forward`],
      ]),
      pasted("Python", spec(choice).python),
      pasted("JSON", spec(choice).json),
    ];
  }

  const result = element("div", { id: "result", ariaLive: "polite" });

  function show() {
    for (const name of Object.keys(options)) document.getElementById(`pick-${name}`).value = choice[name];
    for (const axis of AXES) {
      const item = DESIGN.axes[axis].find((each) => each.name === choice[axis]);
      document.getElementById(`says-${axis}`).replaceChildren(...words(item.says));
    }
    const formulas = rules(DESIGN, choice).map(([title, formula]) => [title, tex(formula)]);
    result.replaceChildren(table(formulas), ...verdict(answer(DESIGN, choice)));
    history.replaceState(null, "", `#${new URLSearchParams(choice)}`);
  }

  for (const [name, value] of new URLSearchParams(location.hash.slice(1)))
    if (options[name]?.some((o) => `${o}` === value)) choice[name] = typeof choice[name] === "number" ? Number(value) : value;
  place.replaceChildren(element("form", { className: "picks" }, ...Object.keys(options).map(picker)), result);
  show();
})();
