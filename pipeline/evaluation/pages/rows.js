(() => {
  const table = document.querySelector("#rows table");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows], filters = document.querySelector("#filters");
  const told = JSON.parse(document.querySelector("#completions").textContent);
  const closeAll = () => body.querySelectorAll("tr.open").forEach((row) => row.remove());

  function filter() {
    closeAll();
    const wanted = new FormData(filters), text = wanted.get("text").trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = ["variables", "relation", "label"].every((key) => !wanted.get(key) || row.dataset[key] === wanted.get(key));
      const tagged = !wanted.get("tag") || row.dataset.tags.split(" ").includes(wanted.get("tag"));
      row.hidden = !(fits && tagged && row.textContent.toLowerCase().includes(text));
      shown += !row.hidden;
    }
    document.querySelector("#shown").textContent = `${shown} of ${rows.length} rows`;
  }

  function sort(header) {
    closeAll();
    const place = header.cellIndex, numbers = header.dataset.type === "number";
    const down = header.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("th").forEach((each) => each.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[place].textContent;
    const order = (a, b) => (numbers ? value(a) - value(b) : value(a).localeCompare(value(b)));
    rows.sort((a, b) => (down ? order(b, a) : order(a, b)));
    body.append(...rows);
  }

  const element = (name, className, text) => Object.assign(document.createElement(name), { className, textContent: text ?? "" });

  function open(row) {
    const next = row.nextElementSibling;
    if (next?.classList.contains("open")) return next.remove();
    const line = element("tr", "open"), cell = element("td", "more"), pair = element("div", "pair");
    cell.colSpan = row.cells.length;
    const own = told.rows[row.dataset.place];
    cell.append(element("p", "premise", own ? told.premises[own.premise] : "The completions of this row are in the prediction files only."));
    for (const [model, [answer, pieces]] of Object.entries(own?.models ?? {})) {
      const side = element("div", ""), said = element("div", "said");
      for (const piece of pieces) {
        if (typeof piece === "string") said.append(piece);
        else said.append(Object.assign(element("span", piece[1] ? "false" : "true", piece[0]), { title: piece[1] ?? "true" }));
      }
      const wrong = pieces.filter((piece) => typeof piece !== "string" && piece[1]).slice(0, 5);
      const reasons = wrong.map(([text, reason]) => element("p", "note", `${text}: ${reason}`));
      side.append(element("h3", "", `${model}: ${answer}`), said, ...reasons);
      pair.append(side);
    }
    cell.append(pair);
    line.append(cell);
    row.after(line);
  }

  filters.addEventListener("input", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  table.tHead.addEventListener("click", (event) => event.target.closest("button") && sort(event.target.closest("th")));
  body.addEventListener("click", (event) => event.target.closest("tr.one") && open(event.target.closest("tr.one")));
  body.addEventListener("keydown", (event) => event.key === "Enter" && event.target.matches("tr.one") && open(event.target));
  filter();
})();
