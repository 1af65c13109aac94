// Light or dark: as the system has it, unless somebody has chosen. Runs before the page is drawn, so it is no module.
(() => {
  const root = document.documentElement;
  const KEY = `${root.dataset.application}-theme`;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is switched off: the choice lasts as long as the page
    }
  };
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const changed = () => {
    document.getElementById("theme")?.setAttribute("aria-pressed", String(isDark()));
    window.dispatchEvent(new Event("theme"));
  };

  if (["light", "dark"].includes(chosen())) root.dataset.theme = chosen();
  system.addEventListener("change", changed);
  document.addEventListener("DOMContentLoaded", () => {
    changed();
    document.getElementById("theme").addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try {
        localStorage.setItem(KEY, root.dataset.theme);
      } catch {
        // see above
      }
      changed();
    });
  });
})();
