// Answers of the design-space explorer. Nothing is computed here: `DESIGN` holds tables that the build made with
// Python's own planner, and these functions look things up. Runs in browsers and under node.
"use strict";

const AXES = ["architecture", "bias", "retention", "algorithm"];

/** The entry of a table without repeated slices at these indices. */
function lookup(table, where) {
  const place = table.shape.reduce((at, size, axis) => at * size + table.index[axis][where[axis]], 0);
  return table.numbers[table.places[place]];
}

/** All that is known of a choice: {architecture, bias, retention, algorithm, chunk, read, width}. */
function answer(design, choice) {
  const parts = AXES.map((axis) => design.axes[axis].findIndex((item) => item.name === choice[axis]));
  const chunk = design.chunks.indexOf(choice.chunk), read = design.reads.indexOf(choice.read);
  const width = design.widths.indexOf(choice.width);
  const found = design.answers[lookup(design.plans, [...parts, chunk, read])];
  const filled = (text) =>
    text.replace(/\{(\w+)\}/g, (_, what) => (what === "chunk" ? `${choice.chunk}` : `${what} '${choice[what]}'`));
  if (found.reason) return { reason: filled(found.reason) };
  const refused = { kernel: design.answers[lookup(design.kernels, [...parts, chunk, read, width])], ...found.refused };
  return {
    path: found.path,
    refused: Object.fromEntries(Object.entries(refused).map(([path, why]) => [path, filled(why)])),
    published: design.published[AXES.map((axis) => choice[axis]).join("|")] ?? [],
    state: lookup(design.states, [...parts, width]),
    flops: lookup(design.flops, [...parts, chunk, read, width]),
  };
}

/** The rows of the update rule, each with a title and TeX. */
function rules(design, choice) {
  const rule = (axis) => design.axes[axis].find((item) => item.name === choice[axis]).rule;
  const anchor = choice.chunk === 1 ? "W_{t-1}" : "W_\\xi";
  const read = { after: "W_t", previous: "W_{t-1}", anchor }[choice.read];
  return [
    ["memory", rule("architecture")],
    ["inner loss", `\\ell:\\ ${rule("bias")},\\qquad p=\\mathcal M(${anchor};k_t),\\ r=p-v_t`],
    ["gradient", `g_t=\\nabla_W\\,\\ell(${anchor};k_t,v_t)`],
    ["algorithm", rule("algorithm")],
    ["retention", rule("retention")],
    ["answer", `y_t=\\mathcal M(${read};q_t)`],
  ];
}

/** The spec as Python and as JSON. */
function spec(choice) {
  const fields = { ...Object.fromEntries(AXES.map((axis) => [axis, choice[axis]])), chunk_size: choice.chunk, read: choice.read };
  const python = Object.entries(fields).map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`);
  return {
    python: `from miras import MirasSpec\n\nspec = MirasSpec(\n${python.join("")})\n`,
    json: JSON.stringify({ schema: 1, ...fields }, null, 2),
  };
}

if (typeof module !== "undefined") module.exports = { AXES, answer, rules, spec };
