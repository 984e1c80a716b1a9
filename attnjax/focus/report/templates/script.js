"use strict";
(() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const digits = (value, unit) => {
    if (value === null) return "not finite, or not recorded";
    const size = Math.abs(value);
    const text = size !== 0 && (size >= 1e6 || size < 1e-4)
      ? value.toExponential(2) : Number(value.toPrecision(3)).toLocaleString("en-US", { maximumFractionDigits: 6 });
    return unit ? `${text} ${unit}` : text;
  };

  // Tables: a button in each heading sorts by its column; a second press turns the order round.
  const key = (row, column) => {
    const cell = row.cells[column];
    if (!("v" in cell.dataset)) return cell.textContent.trim();
    return cell.dataset.v === "" ? null : Number(cell.dataset.v);
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  for (const button of all("table.sortable th button")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th"), table = heading.closest("table"), body = table.tBodies[0];
      const numeric = heading.dataset.kind === "number";
      const now = heading.getAttribute("aria-sort");
      const order = now === "none" ? (numeric ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
      all("th[aria-sort]", table).forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keyed = [...body.rows].map((row) => [key(row, heading.cellIndex), row]);
      // What has no number comes last, whichever way round.
      keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)));
      body.append(...keyed.map(([, row]) => row));
      const said = document.getElementById(`${table.id}-said`);
      if (said) said.textContent = `Sorted by ${button.textContent}, ${order}.`;
    });
  }

  // Statistics: one at a time.
  const choose = (value) => all("[data-statistic]").forEach((panel) => { panel.hidden = panel.dataset.statistic !== value; });
  all("input[name=statistic]").forEach((radio) => {
    radio.addEventListener("change", () => choose(radio.value));
    if (radio.checked) choose(radio.value);
  });

  // Heat maps: values are read out under the pointer, or by the arrow keys.
  const stored = document.getElementById("heat-data");
  const runs = stored ? JSON.parse(stored.textContent) : [];
  const levels = (text) => {
    const bytes = atob(text), found = new Uint16Array(bytes.length / 2);
    for (let i = 0; i < found.length; i += 1) found[i] = bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1);
    return found;
  };
  for (const field of all(".field")) {
    const data = runs[Number(field.dataset.run)], about = data.statistics[field.dataset.name];
    const columns = data.steps.length, rows = data.heads.length;
    const cursor = field.querySelector(".cursor"), readout = document.getElementById(field.dataset.readout);
    let column = columns - 1, row = 0, numbers = null;
    const value = () => {
      numbers ??= levels(about.levels);
      const level = numbers[column * rows + row];
      if (level > 65534) return null;
      const place = level / 65534;
      return about.log ? about.low * (about.high / about.low) ** place : about.low + (about.high - about.low) * place;
    };
    const show = () => {
      const [module, head] = data.heads[row], step = data.steps[column];
      const before = column > 0 ? data.steps[column - 1] : -1;
      // A warning holds until it is over, a remedy was applied at one step.
      const words = data.events.filter(([first, last, begun, over, what]) => first <= row && row <= last && begun <= step
        && (what.startsWith("warning") ? over === null || over > step : begun > before)).map((event) => event[4]);
      readout.textContent = `${module}, head ${head}, step ${step.toLocaleString("en-US")}: ${digits(value(), about.unit)}`
        + (words.length ? `; ${[...new Set(words)].join("; ")}` : "");
      Object.assign(cursor.style, {
        left: `${100 * column / columns}%`, width: `${100 / columns}%`,
        top: `${row * data.rowHeight}px`, height: `${data.rowHeight}px`,
      });
      cursor.hidden = false;
    };
    field.addEventListener("pointermove", (event) => {
      const box = field.getBoundingClientRect();
      column = Math.min(columns - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * columns)));
      row = Math.min(rows - 1, Math.max(0, Math.floor((event.clientY - box.top) / data.rowHeight)));
      show();
    });
    field.addEventListener("focus", show);
    field.addEventListener("blur", () => { cursor.hidden = true; });
    field.addEventListener("pointerleave", () => { cursor.hidden = document.activeElement !== field; });
    field.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
        PageUp: [0, -10], PageDown: [0, 10], Home: [-columns, 0], End: [columns, 0] };
      const move = moves[event.key];
      if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      column = Math.min(columns - 1, Math.max(0, column + move[0]));
      row = Math.min(rows - 1, Math.max(0, row + move[1]));
      show();
    });
  }

  // Examples: one at a time, and one map of it.
  const examples = all(".example"), picker = document.getElementById("example-choice");
  const pick = (place) => {
    const chosen = (place + examples.length) % examples.length;
    examples.forEach((example, i) => { example.hidden = i !== chosen; });
    picker.value = String(chosen);
  };
  const pickMap = (example, place) => {
    all(".map", example).forEach((map, i) => { map.hidden = i !== place; });
    const chooser = example.querySelector(".map-choice");
    if (chooser) chooser.value = String(place);
  };
  if (picker) {
    const step = (by) => pick(Number(picker.value) + by);
    picker.addEventListener("change", () => pick(Number(picker.value)));
    document.getElementById("example-before").addEventListener("click", () => step(-1));
    document.getElementById("example-next").addEventListener("click", () => step(1));
    document.getElementById("examples").addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("select, input, .scroll")) return;
      event.preventDefault();
      step(by);
    });
    examples.forEach((example) => {
      const chooser = example.querySelector(".map-choice");
      if (chooser) chooser.addEventListener("change", () => {
        const name = chooser.selectedOptions[0].dataset.map;
        pickMap(example, Number(chooser.value));
        // The same method stays chosen in examples that have it.
        examples.filter((other) => other !== example).forEach((other) => {
          const option = all(".map-choice option", other).find((x) => x.dataset.map === name);
          if (option) pickMap(other, Number(option.value));
        });
      });
      pickMap(example, 0);
      const strength = example.querySelector(".strength");
      if (strength) strength.addEventListener("input", () => example.style.setProperty("--strength", String(strength.value / 100)));
    });
    pick(0);
  }

  // In a notebook's frame a link to a place on the page would load the notebook into the frame.
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    const target = link && document.getElementById(link.getAttribute("href").slice(1));
    if (!target) return;
    event.preventDefault();
    target.setAttribute("tabindex", "-1");
    target.focus({ preventScroll: true });
    target.scrollIntoView();
  });
})();
