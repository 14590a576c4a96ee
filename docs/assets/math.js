// Renders the formulas that pymdownx.arithmatex marks. KaTeX lies beside this file, so no network is needed.
document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll(".arithmatex")) {
    const marked = place.textContent.trim();
    katex.render(marked.slice(2, -2), place, { displayMode: marked.startsWith("\\["), throwOnError: false });
  }
});
