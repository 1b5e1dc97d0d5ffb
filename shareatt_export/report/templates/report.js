"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const reveal = (element) => { element.hidden = false; };
  const cell = (tag, text, classes = "") =>
    Object.assign(document.createElement(tag), { textContent: text, className: classes });

  // ------------------------------------------------------------ light and dark
  const theme = document.getElementById("theme");
  const root = document.documentElement;
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  nameTheme();
  reveal(theme);

  addEventListener("beforeprint", () => { for (const details of all("details")) details.open = true; });

  // ------------------------------------------------------------ maps
  const showMap = (id) => {
    const figure = document.getElementById(id);
    if (!figure) return;
    const maps = figure.closest(".maps");
    for (const other of all("figure.map", maps)) other.hidden = other !== figure;
    maps.querySelector("select").value = id;
  };
  for (const maps of all(".maps")) {
    const select = maps.querySelector("select"), about = maps.querySelector(".about");
    select.addEventListener("change", () => showMap(select.value));
    reveal(about);
    maps.querySelector(".choice").hidden = select.options.length < 2;
    showMap(select.value);
    for (const figure of all("figure.map", maps)) {
      const rows = all(".layer", figure).map((layer) => all("button", layer));
      const cells = rows.flat();
      cells.forEach((cell, i) => { cell.tabIndex = i ? -1 : 0; });
      const tell = (event) => {
        if (!cells.includes(event.target)) return;
        about.textContent = event.target.title;
        if (event.type !== "focusin") return;
        for (const cell of cells) cell.tabIndex = cell === event.target ? 0 : -1;
      };
      figure.addEventListener("focusin", tell);
      figure.addEventListener("pointerover", tell);
      figure.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        const y = rows.findIndex((row) => row.includes(event.target));
        if (!step || y < 0) return;
        event.preventDefault();
        const row = rows[y + step[0]];
        if (row) row[Math.min(rows[y].indexOf(event.target) + step[1], row.length - 1)]?.focus();
      });
    }
  }

  // ------------------------------------------------------------ the budget
  const copyText = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // a page from the disk may lack the permission
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  const least = (points) => points.reduce((best, each) => !best || each.kl < best.kl ? each : best, null);
  const number = (n) => n.toLocaleString("en-US");

  for (const front of all(".front")) {
    const chooser = front.querySelector(".chooser");
    if (!chooser) continue;
    const { budgets, points } = data[front.dataset.front];
    const slider = chooser.querySelector("input"), code = chooser.querySelector("code");
    const copy = chooser.querySelector(".copy"), more = chooser.querySelector(".more");
    const show = () => {
      const budget = budgets[slider.value];
      const within = points.filter((point) => point.bytes <= budget);
      const best = least(within.filter((point) => point.is_map));
      const rival = least(within.filter((point) => point.kl < best.kl));
      chooser.querySelector(".budget").textContent = `at most ${number(budget)} bytes of KV cache per token`;
      slider.setAttribute("aria-valuetext", `${number(budget)} bytes per token`);
      chooser.querySelector(".best").textContent = `The best map is ${best.mark}, ${best.name}: ${best.words}.`;
      chooser.querySelector(".rival").textContent =
        rival ? `Less is lost with ${rival.mark}, ${rival.name}: ${rival.words}.` : "";
      // each word is a box, so that a line does not break after the hyphens of an option
      const words = (best.command ?? "").split(" ").map((word) => cell("span", word));
      code.replaceChildren(...words.flatMap((word, i) => i ? [" ", word] : [word]));
      chooser.querySelector(".command").hidden = !best.command;
      copy.textContent = "Copy";
      more.textContent = `${best.note} `;
      const map = best.map && document.getElementById(best.map)?.dataset.map;
      if (map && best.command?.includes(" --map ")) {
        const href = `data:application/json,${encodeURIComponent(map)}`;
        more.append(Object.assign(document.createElement("a"), { href, download: "MAP.json", textContent: "save the map" }));
      }
      for (const mark of all(".mark", front)) mark.classList.toggle("chosen", mark.id === `${front.dataset.front}-${best.mark}`);
      const see = chooser.querySelector(".see");
      see.hidden = !best.map;
      Object.assign(see.querySelector("a"), { href: `#${best.map}`, textContent: "See what each layer does in this map" });
      if (best.map) showMap(best.map);
    };
    slider.addEventListener("input", show);
    copy.addEventListener("click", async () => { await copyText(code.textContent); copy.textContent = "Copied"; });
    reveal(chooser);
    show();
  }

  // ------------------------------------------------------------ heatmaps
  all(".hint").forEach(reveal);
  const nColours = Number(document.body.dataset.colours);
  const colour = (value) => Math.min(Math.max(Math.floor(nColours * value), 0), nColours - 1);

  const showHeads = (article, id, source, follower) => {
    const place = article.querySelector(".heads");
    const rows = place && data[`${id}-heads`][`${source}-${follower}`];
    if (!rows) return;
    const table = document.createElement("table");
    table.append(cell("caption", `Similarity of the heads of layer ${source} (down) and of layer ${follower} (across)`));
    const head = document.createElement("tr");
    head.append(cell("th", ""), ...rows[0].map((_, i) => cell("th", i)));
    table.append(head, ...rows.map((row, i) => {
      const line = document.createElement("tr");
      line.append(cell("th", i), ...row.map((value) => cell("td", value?.toFixed(2) ?? "", `h${colour(value)} n${colour(value)}`)));
      return line;
    }));
    place.replaceChildren(table);
  };

  for (const svg of all("[data-heatmap]")) {
    const values = data[svg.dataset.heatmap], says = svg.parentElement.querySelector("output");
    const cursor = svg.querySelector(".cursor");
    let x = 0, y = 0;
    const go = (column, row) => {
      if (row < 0 || row >= values.length || column < 0 || column >= values[row].length) return;
      [x, y] = [column, row];
      cursor.setAttribute("d", `M${x} ${y}h1v1h-1z`);
      const value = values[y][x] ?? "not measured";
      const names = svg.dataset.row === svg.dataset.column ? `layers ${y} and ${x}`
        : `${svg.dataset.row} ${y}, ${svg.dataset.column} ${x}`;
      says.textContent = `${names}: ${value}`;
    };
    const place = (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      go(Math.floor(point.x), Math.floor(point.y));
    };
    const heads = () => {
      const id = svg.dataset.heatmap.slice(0, svg.dataset.heatmap.lastIndexOf("-"));
      showHeads(svg.closest("article"), id, Math.min(x, y), Math.max(x, y));
    };
    svg.addEventListener("pointermove", place);
    svg.addEventListener("click", (event) => { place(event); heads(); });
    svg.addEventListener("focus", () => go(x, y));
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (step) go(x + step[0], y + step[1]);
      if (event.key === "Enter") heads();
      if (step || event.key === "Enter") event.preventDefault();
    });
  }
})();
