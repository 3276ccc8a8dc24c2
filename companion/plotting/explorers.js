(() => {
  "use strict";

  /** Make an element; text becomes a text node, whatever is in it. */
  function make(name, properties = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in element) element[key] = value;
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  function draw(name, attributes, text = "") {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  }

  function token(text) {
    return make("span", { className: "explorer-token", dir: "auto" }, text);
  }

  /** Radio buttons under a heading; `choose` is called with the place of the one that is chosen. */
  function choices(title, name, faces, chosen, choose, kind = "") {
    const labels = faces.map((face, place) => {
      const input = make("input", { type: "radio", name, checked: place === chosen, autocomplete: "off" });
      input.addEventListener("change", () => choose(place));
      const drawn = make("span", { className: "explorer-face" }, ...face);
      return make("label", { className: `explorer-choice ${kind}`.trim() }, input, drawn);
    });
    const legend = make("legend", { className: "explorer-title" }, title);
    return make("fieldset", {}, legend, make("div", { className: "explorer-row" }, ...labels));
  }

  /** Fill a canvas, a pixel a cell: red above 0, blue below, or blue alone; the fuller the larger. */
  function paint(canvas, rows, columns, shade, colour) {
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    for (let cell = 0; cell < rows * columns; cell++) {
      const value = shade(Math.floor(cell / columns), cell % columns);
      image.data.set([...colour(value), Math.round(255 * Math.min(1, Math.abs(value)))], 4 * cell);
    }
    context.putImageData(image, 0, 0);
  }

  const BLUE = [47, 128, 208];
  const RED = [208, 74, 60];

  function attention(data) {
    const { layers, heads, queries, keys } = data;
    const bytes = Uint8Array.from(atob(data.weights), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const [Q, K] = [queries.length, keys.length];
    const mean = heads; // the place of the mean among the heads
    const stored = (layer, head, query, key) =>
      view.getUint16(2 * (((layer * heads + head) * Q + query) * K + key), true) / 10000;
    function weight(layer, head, query, key) {
      if (head < mean) return stored(layer, head, query, key);
      let sum = 0;
      for (let each = 0; each < heads; each++) sum += stored(layer, each, query, key);
      return sum / heads;
    }
    let largest = 0;
    for (let place = 0; place < view.byteLength; place += 2) largest = Math.max(largest, view.getUint16(place, true));
    largest = largest / 10000 || 1;

    const shade = (value) => Math.sqrt(Math.min(1, value / largest)); // small weights are seen, too

    const state = { layer: data.layer, head: heads === 1 ? 0 : data.head ?? mean, pinned: data.query, preview: null };
    const inform = make("p", { className: "explorer-readout", role: "status" });

    const cell = 60 / Math.max(Q, K);
    const maps = Array.from({ length: heads === 1 ? 0 : heads + 1 }, (_, head) => {
      const canvas = make("canvas", { "aria-hidden": "true" });
      const marker = make("span", { className: "explorer-marker" });
      marker.style.cssText = `left: -2px; right: -2px; height: ${Math.max(4, cell)}px; translate: 0 -50%`;
      const pixels = make("span", { className: "explorer-pixels" }, canvas, marker);
      pixels.style.cssText = `width: ${Math.max(8, K * cell)}px; height: ${Math.max(8, Q * cell)}px`;
      return { canvas, marker, face: [pixels, head === mean ? "mean" : String(head + 1)] };
    });

    const buttons = queries.map((text, query) => {
      const button = make("button", { type: "button" }, token(text));
      button.setAttribute("aria-label", `${text || "empty token"}, query ${query + 1} of ${Q}`);
      button.addEventListener("pointerenter", (event) => {
        if (event.pointerType !== "touch") show({ preview: query });
      });
      button.addEventListener("pointerleave", (event) => {
        if (event.pointerType !== "touch") show({ preview: null });
      });
      button.addEventListener("focus", () => {
        if (button.matches(":focus-visible")) show({ preview: query });
      });
      button.addEventListener("blur", () => show({ preview: null }));
      button.addEventListener("click", () => show({ pinned: state.pinned === query ? null : query, preview: null }));
      return button;
    });
    const toolbar = make("div", { className: "explorer-row", role: "toolbar", "aria-label": "Query tokens" });
    toolbar.append(...buttons);
    toolbar.addEventListener("keydown", (event) => {
      const here = buttons.indexOf(event.target.closest("button"));
      const places = {
        ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: Q - 1,
      };
      if (event.key in places) {
        event.preventDefault();
        buttons[(places[event.key] + Q) % Q].focus();
      }
    });

    const chips = keys.map((text) => {
      const number = make("span", { className: "explorer-number" });
      return { number, chip: make("div", { className: "explorer-key", role: "listitem" }, token(text), number) };
    });

    const written = (value) => (value === 0 ? "0" : value < 0.005 ? "<0.01" : value.toFixed(2));
    const place = () =>
      [
        layers > 1 ? `layer ${state.layer + 1}` : "",
        heads === 1 ? "" : state.head === mean ? "mean over heads" : `head ${state.head + 1}`,
      ].filter(Boolean).join(", ");

    function show(change = {}) {
      Object.assign(state, change);
      const query = state.preview ?? state.pinned;
      const tabbed = query ?? Math.max(0, buttons.findIndex((button) => button.tabIndex === 0));
      buttons.forEach((button, each) => {
        button.tabIndex = each === tabbed ? 0 : -1;
        button.classList.toggle("explorer-shown", each === query);
        button.setAttribute("aria-pressed", String(each === state.pinned));
      });
      maps.forEach(({ marker }) => {
        marker.hidden = query === null;
        marker.style.display = query === null ? "none" : "";
        marker.style.top = `${((query ?? 0) + 0.5) * cell}px`;
      });
      const row = query === null ? [] : keys.map((_, key) => weight(state.layer, state.head, query, key));
      chips.forEach(({ chip, number }, key) => {
        chip.style.setProperty("--shade", query === null ? 0 : shade(row[key]));
        chip.style.setProperty("--length", query === null ? 0 : Math.min(1, row[key] / largest));
        number.textContent = query === null ? "–" : written(row[key]);
      });
      inform.replaceChildren(...sentence(query, row));
    }

    function sentence(query, row) {
      if (query === null) return ["Point at a query, tap it, or reach it with Tab and the arrow keys."];
      const where = place() ? ` (${place()})` : "";
      const strong = (text) => make("strong", {}, token(text));
      if (row.every((value) => value === 0)) {
        return [strong(queries[query]), ` attends nowhere: its weights are all 0${where}.`];
      }
      const order = row.map((_, key) => key).sort((a, b) => row[b] - row[a] || a - b);
      const said = order.filter((key) => row[key] >= 0.005).slice(0, 5);
      const parts = (said.length ? said : order.slice(0, 1)).flatMap((key, rank) =>
        [rank ? ", " : "", token(keys[key]), ` ${written(row[key])}`]);
      return [strong(queries[query]), " attends to ", ...parts, `${where}.`];
    }

    function paintMaps() {
      maps.forEach(({ canvas }, head) =>
        paint(canvas, Q, K, (query, key) => shade(weight(state.layer, head, query, key)), () => BLUE));
    }

    const form = make("form", { autocomplete: "off" });
    if (layers > 1) {
      const faces = Array.from({ length: layers }, (_, layer) => [String(layer + 1)]);
      form.append(choices("Layer", "layer", faces, state.layer, (layer) => { show({ layer }); paintMaps(); }));
    }
    if (heads > 1) {
      const faces = maps.map((map) => map.face);
      form.append(choices("Head", "head", faces, state.head, (head) => show({ head }), "explorer-map"));
    }
    const keyList = make("div", { className: "explorer-row", role: "list", "aria-label": "Key tokens, weights" });
    keyList.append(...chips.map(({ chip }) => chip));
    const titled = (title, element) => make("div", {}, make("span", { className: "explorer-title" }, title), element);
    form.append(titled("Query", toolbar), titled("Keys, and the weight that the query gives each", keyList), inform);
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") show({ pinned: null, preview: null });
    });
    paintMaps();
    show();
    return form;
  }

  function positions(data) {
    const tables = data.tables.map((table) => {
      const flat = table.values.flat();
      const [low, high] = [flat.reduce((a, b) => Math.min(a, b), 0), flat.reduce((a, b) => Math.max(a, b), 0)];
      return { ...table, limit: Math.max(-low, high) || 1, range: low === high ? [-1, 1] : [low, high] };
    });
    const state = { table: 0, row: data.row, column: data.column };
    const canvas = make("canvas", { role: "img" });
    const [across, down] = ["across", "down"].map(() => make("span", { className: "explorer-marker" }));
    const pixels = make("div", { className: "explorer-pixels" }, canvas, across, down);
    const rowAxis = make("span", { className: "explorer-axis explorer-upright" });
    const columnAxis = make("span", { className: "explorer-axis explorer-level" });
    const inform = make("p", { className: "explorer-readout", role: "status" });
    const written = (value) => (value === 0 ? "0" : String(Number(value.toPrecision(3)))).replace("-", "\u2212");

    function slider(axis) {
      const title = make("span", { className: "explorer-title" });
      const input = make("input", { type: "range", min: 0, step: 1, autocomplete: "off" });
      const output = make("span", { className: "explorer-place" });
      input.addEventListener("input", () => show({ [axis]: Number(input.value) }));
      return { title, input, output, label: make("label", { className: "explorer-slider" }, title, input, output) };
    }
    const sliders = { row: slider("row"), column: slider("column") };

    function point(event) {
      const box = canvas.getBoundingClientRect();
      const table = tables[state.table];
      const place = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
      show({
        row: place((event.clientY - box.top) / box.height, table.values.length),
        column: place((event.clientX - box.left) / box.width, table.values[0].length),
      });
    }
    pixels.addEventListener("click", point);
    pixels.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" && event.buttons === 1) point(event);
    });

    function drawing(viewBox) {
      const title = make("span", { className: "explorer-title" });
      const svg = draw("svg", { viewBox, role: "img" });
      return { svg, title, block: make("div", {}, title, svg) };
    }
    const along = { row: drawing("0 0 240 120"), column: drawing("0 0 240 120") };
    const dial = drawing("-70 -70 140 140");
    dial.block.className = "explorer-dial";

    function plot({ svg, title }, values, at, [low, high], axis, name) {
      const [left, right, top, bottom] = [38, 234, 6, 100];
      const x = (place) => left + ((right - left) * place) / Math.max(1, values.length - 1);
      const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low);
      title.textContent = name;
      const extremes = [Math.min, Math.max].map((extreme) => written(extreme(...values)));
      svg.setAttribute("aria-label", `${name}: from ${extremes.join(" to ")}`);
      const points = values.map((value, place) => `${x(place)},${y(value)}`).join(" ");
      const zero = draw("path", { class: "explorer-frame", "stroke-dasharray": "2 3", d: `M${left} ${y(0)}H${right}` });
      svg.replaceChildren(
        draw("path", { class: "explorer-frame", d: `M${left} ${top}V${bottom}H${right}` }),
        ...(low < 0 && high > 0 ? [zero] : []),
        draw("text", { x: left - 4, y: top + 5, "text-anchor": "end" }, written(high)),
        draw("text", { x: left - 4, y: bottom, "text-anchor": "end" }, written(low)),
        draw("text", { x: left, y: bottom + 14 }, "0"),
        draw("text", { x: (left + right) / 2, y: bottom + 14, "text-anchor": "middle" }, axis),
        draw("text", { x: right, y: bottom + 14, "text-anchor": "end" }, String(values.length - 1)),
        draw("polyline", { class: "explorer-curve", points }),
        draw("circle", { class: "explorer-dot", r: 4.5, cx: x(at), cy: y(values[at]) }),
      );
    }

    /** Return the pair of a column and its hand, as a point with y upwards. */
    function hand(table, row, column) {
      if (table.hand === "angle") {
        const angle = table.values[row][column];
        const said = `turned by ${written(angle)} radians, counter-clockwise from the right`;
        return { pair: column, x: Math.cos(angle), y: Math.sin(angle), said };
      }
      const pair = Math.floor(column / 2);
      const [sine, cosine] = table.values[row].slice(2 * pair, 2 * pair + 2);
      const said = `sine ${written(sine)} to the right, cosine ${written(cosine)} upwards`;
      return { pair, x: sine, y: cosine, said };
    }

    function show(change = {}) {
      Object.assign(state, change);
      const table = tables[state.table];
      const { values } = table;
      const [rows, columns] = [values.length, values[0].length];
      state.row = Math.min(state.row, rows - 1);
      state.column = Math.min(state.column, columns - 1);
      const value = values[state.row][state.column];
      for (const [axis, count] of [["row", rows], ["column", columns]]) {
        const { title, input, output } = sliders[axis];
        title.textContent = table[axis];
        input.max = count - 1;
        input.value = state[axis];
        output.textContent = String(state[axis]);
        input.setAttribute("aria-valuetext", `${table[axis]} ${state[axis]}, value ${written(value)}`);
      }
      const percent = (share) => `${100 * share}%`;
      const thick = (count) => `max(4px, ${percent(1 / count)})`;
      Object.assign(across.style, { left: 0, right: 0, top: percent(state.row / rows), height: thick(rows) });
      Object.assign(down.style, { top: 0, bottom: 0, left: percent(state.column / columns), width: thick(columns) });

      const through = values.map((entries) => entries[state.column]);
      const [here, there] = [`${table.row} ${state.row}`, `${table.column} ${state.column}`];
      plot(along.row, values[state.row], state.column, table.range, table.column, `${here}, by ${table.column}`);
      plot(along.column, through, state.row, table.range, table.row, `${there}, by ${table.row}`);

      const strong = (text) => make("strong", {}, text);
      const parts = [strong(table.name), `, ${here}, ${there}: `, strong(written(value)), "."];
      dial.block.hidden = !table.hand;
      if (table.hand) {
        const { pair, x, y, said } = hand(table, state.row, state.column);
        dial.title.textContent = `the hand of pair ${pair}`;
        dial.svg.setAttribute("aria-label", `The hand of pair ${pair}: ${said}`);
        dial.svg.replaceChildren(
          draw("circle", { class: "explorer-frame", r: 60 }),
          draw("path", { class: "explorer-frame", d: "M-60 0H60M0 -60V60", "stroke-dasharray": "2 4" }),
          draw("line", { class: "explorer-hand", x1: 0, y1: 0, x2: 60 * x, y2: -60 * y }),
          draw("circle", { class: "explorer-dot", r: 5, cx: 60 * x, cy: -60 * y }),
        );
        parts.push(` The hand of pair ${pair}: ${said}.`);
      }
      inform.replaceChildren(...parts);
    }

    function choose(place) {
      show({ table: place });
      const { name, values, row, column, limit } = tables[place];
      const shade = (y, x) => values[y][x] / limit;
      paint(canvas, values.length, values[0].length, shade, (value) => (value < 0 ? BLUE : RED));
      const map = `a map with a row for each ${row} and a column for each ${column}, blue below 0 and red above`;
      canvas.setAttribute("aria-label", `${name}: ${map}`);
      rowAxis.textContent = row;
      columnAxis.textContent = `${column}; blue is below 0, red above, full at ±${written(limit)}`;
    }

    const form = make("form", { autocomplete: "off" });
    if (tables.length > 1) form.append(choices("Encoding", "table", tables.map(({ name }) => [name]), 0, choose));
    form.append(
      make("div", { className: "explorer-table" }, rowAxis, pixels, columnAxis),
      make("div", {}, sliders.row.label, sliders.column.label),
      make("div", { className: "explorer-plots" }, along.row.block, along.column.block, dial.block),
      inform,
    );
    choose(0);
    return form;
  }

  const kinds = { attention, positions };
  for (const root of document.querySelectorAll(".companion-explorer:not([data-started])")) {
    const form = kinds[root.dataset.explorer](JSON.parse(root.dataset.content));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves the keys to what is inside
    root.append(form);
    root.dataset.started = "";
  }
})();
