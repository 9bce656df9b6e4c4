"use strict";
// The table of the report. Its data lies in the page by column, text as levels and codes; rows are numbers into it,
// so that a filter or an order touches no element, and one page of rows alone is ever in the document.
(() => {
  const PAGE = 50;
  const data = JSON.parse(document.getElementById("table-data").textContent);
  const columns = new Map(data.columns.map((column) => [column.name, column]));
  const collator = new Intl.Collator("en", { numeric: true });
  const state = { order: null, descending: false, page: 0, all: false, words: [], choices: new Map(), open: new Set() };
  let visible = [];

  const byId = (id) => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const isText = (column) => "codes" in column;
  const valueOf = (column, row) =>
    !isText(column) ? column.values[row] : column.codes[row] < 0 ? null : column.levels[column.codes[row]];

  const short = (value) => {
    if (value === null) return "–";
    if (typeof value !== "number") return value;
    if (Number.isInteger(value) || !Number.isFinite(value)) return String(value);
    return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
  };

  // numbers by size, text as people count; what is missing comes last in both directions
  const ranks = (column) => {
    if (column.ranks) return column.ranks;
    if (!isText(column)) return (column.ranks = column.values);
    const sorted = column.levels.map((_, code) => code).sort((a, b) => collator.compare(column.levels[a], column.levels[b]));
    const place = [];
    sorted.forEach((code, rank) => (place[code] = rank));
    return (column.ranks = column.codes.map((code) => (code < 0 ? null : place[code])));
  };

  let texts = null;
  const textOf = (row) => {
    if (!texts) {
      const searched = data.columns.filter(isText).map((column) => ({ ...column, levels: column.levels.map((level) => level.toLowerCase()) }));
      texts = Array.from({ length: data.size }, (_, index) => searched.map((column) => valueOf(column, index) ?? "").join("\n"));
    }
    return texts[row];
  };

  const matching = () => {
    const tests = [];
    for (const [name, choice] of state.choices) {
      const column = columns.get(name);
      const wanted = column.levels.map((level) => level === choice || level.split(";").includes(choice));
      tests.push((row) => wanted[column.codes[row]] === true);
    }
    for (const word of state.words) tests.push((row) => textOf(row).includes(word));
    const found = [];
    for (let row = 0; row < data.size; row++) if (tests.every((test) => test(row))) found.push(row);
    return found;
  };

  const sort = (rows) => {
    if (!state.order) return rows;
    const rank = ranks(columns.get(state.order));
    const sign = state.descending ? -1 : 1;
    return rows.sort((a, b) => {
      if (rank[a] === null || rank[b] === null) return (rank[a] === null) - (rank[b] === null);
      return sign * (rank[a] - rank[b]) || a - b;
    });
  };

  const shownColumns = () => data.columns.filter((column) => column.main || state.all);

  const drawHead = () => {
    const cells = shownColumns().map((column) => {
      const button = make("button", { type: "button", title: column.about || column.name },
        make("span", { className: "name", textContent: column.name }), make("span", { className: "unit", textContent: column.unit }));
      button.addEventListener("click", () => {
        state.descending = state.order === column.name && !state.descending;
        state.order = column.name;
        update();
      });
      const cell = make("th", { scope: "col", className: column.name === "command" ? "command-column" : isText(column) ? "" : "number" }, button);
      if (state.order === column.name) cell.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      return cell;
    });
    byId("rows").tHead.replaceChildren(make("tr", {}, ...cells));
  };

  const copyButton = (text) => {
    const button = make("button", { type: "button", textContent: "Copy" });
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        // no clipboard without the user's leave: mark the text instead
        getSelection().selectAllChildren(button.previousElementSibling);
        button.textContent = "Selected";
      }
    });
    return button;
  };

  const details = (row, width) => {
    const card = make("div", { className: "card" });
    const command = columns.has("command") ? valueOf(columns.get("command"), row) : null;
    if (command) card.append(make("div", { className: "command" }, make("code", { textContent: command }), copyButton(command)));
    const list = make("dl");
    for (const column of data.columns) {
      const value = valueOf(column, row);
      if (value === null || value === "" || column.name === "command") continue;
      list.append(make("dt", { textContent: column.name, title: column.about }),
        make("dd", { textContent: column.unit && typeof value === "number" ? `${value} ${column.unit}` : String(value) }));
    }
    card.append(list);
    return make("tr", { className: "details" }, make("td", { colSpan: width }, card));
  };

  const drawRow = (row, shown) => {
    const cells = shown.map((column) => {
      const value = valueOf(column, row);
      const cell = make("td", { className: isText(column) ? "" : "number" });
      if (column.name === "status") cell.append(make("span", { className: `status ${data.failures.includes(value) ? "bad" : ""}`, textContent: short(value) }));
      else if (column.name === "command") cell.append(make("code", { textContent: short(value) }));
      else cell.append(short(value));
      if (typeof value === "string" && value.length > 40) Object.assign(cell, { className: "long", title: value });
      if (column.name === "command") cell.classList.add("command-column");
      return cell;
    });
    const isOpen = state.open.has(row);
    const button = make("button", { type: "button", className: "open", textContent: isOpen ? "▾" : "▸" });
    button.setAttribute("aria-expanded", isOpen);
    button.setAttribute("aria-label", "everything known of this row");
    button.addEventListener("click", () => {
      if (!state.open.delete(row)) state.open.add(row);
      drawBody();
    });
    cells[0].prepend(button);
    const line = make("tr", { className: "row" }, ...cells);
    return isOpen ? [line, details(row, shown.length)] : [line];
  };

  const drawBody = () => {
    const shown = shownColumns();
    const pages = Math.max(1, Math.ceil(visible.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const start = state.page * PAGE;
    const page = visible.slice(start, start + PAGE);
    byId("rows").tBodies[0].replaceChildren(...page.flatMap((row) => drawRow(row, shown)));
    const count = visible.length.toLocaleString("en"), total = data.size.toLocaleString("en");
    const range = page.length ? `${(start + 1).toLocaleString("en")}–${(start + page.length).toLocaleString("en")} of ${count}` : "no rows";
    byId("shown").textContent = visible.length === data.size ? range : `${range}, filtered from ${total}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page >= pages - 1;
  };

  const update = () => {
    visible = sort(matching());
    state.page = 0;
    drawHead();
    drawBody();
  };

  const drawFilters = () => {
    for (const name of data.filters) {
      const choices = new Set(columns.get(name).levels.flatMap((level) => level.split(";")).filter(Boolean));
      const options = [...choices].sort(collator.compare).map((choice) => make("option", { value: choice, textContent: choice }));
      const select = make("select", {}, make("option", { value: "", textContent: "all" }), ...options);
      select.dataset.filter = name;
      select.addEventListener("change", () => {
        if (select.value) state.choices.set(name, select.value);
        else state.choices.delete(name);
        update();
      });
      byId("filters").append(make("label", {}, name, select));
    }
  };

  byId("search").addEventListener("input", (event) => {
    state.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    update();
  });
  byId("all-columns").addEventListener("change", (event) => {
    state.all = event.target.checked;
    update();
  });
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    byId(id).addEventListener("click", () => {
      state.page += step;
      drawBody();
    });
  }
  drawFilters();
  update();
  performance.mark("table");
})();
