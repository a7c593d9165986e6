// Tables whose columns sort, page by page.

const collator = new Intl.Collator("en", { numeric: true });
const missing = (value) => value === null || value === undefined || value === "";

function sorted(rows, value, down) {
  const keyed = rows.map((row) => [value(row), row]);
  keyed.sort(([a], [b]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    const order = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
    return down ? -order : order;
  });
  return keyed.map(([, row]) => row);
}

/**
 * Return a table that is empty at first, and the function that fills it with rows.
 *
 * A column has a `title`, the `value` of a row by which it sorts, and may have `show`, which writes the value, or `cell`,
 * which returns the children of a row's cell. Numbers stand at the right and sort downwards first. A column is left out
 * while its `hidden` returns true. The first one is the rows' header. `size` rows are shown at a time.
 */
function sortable(caption, columns, size = Infinity) {
  let rows = [], shown = [], first = 0, by = null, down = false;
  const head = made("tr", {}), body = made("tbody", {});
  const table = made("table", {}, made("caption", { className: "hidden" }, caption), made("thead", {}, head), body);
  const scroll = made("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: caption }, table);
  const place = made("p", { className: "soft" }), back = pageButton("Previous", -1), on = pageButton("Next", 1);
  place.setAttribute("role", "status");
  const pages = made("div", { className: "pages", hidden: true }, back, on, place);

  function pageButton(title, by) {
    const button = made("button", { type: "button" }, title);
    button.addEventListener("click", () => {
      const next = first + by * size;
      if (next < 0 || next >= rows.length) return;
      first = next;
      draw();
    });
    return button;
  }

  function header(column) {
    const button = made("button", { type: "button" }, column.title);
    const cell = made("th", { scope: "col", className: column.number ? "number" : "" }, button);
    button.addEventListener("click", () => {
      down = by === column ? !down : Boolean(column.number);
      by = column;
      first = 0;
      draw();
    });
    return cell;
  }

  function line(row) {
    return made("tr", {}, ...shown.map((column, n) => {
      const children = column.cell ? column.cell(row) : [(column.show ?? written.text)(column.value(row))];
      const name = column.number ? "number" : "";
      return n ? made("td", { className: name }, ...children) : made("th", { scope: "row" }, ...children);
    }));
  }

  function draw() {
    shown.forEach((column, n) => {
      head.children[n].ariaSort = by === column ? (down ? "descending" : "ascending") : "none";
    });
    const ordered = by ? sorted(rows, by.value, down) : rows;
    body.replaceChildren(...ordered.slice(first, first + size).map(line));
    pages.hidden = rows.length <= size;
    back.ariaDisabled = String(first === 0);
    on.ariaDisabled = String(first + size >= rows.length);
    const last = Math.min(first + size, rows.length);
    place.textContent = `${written.count(first + 1)} to ${written.count(last)} of ${written.count(rows.length)}`;
  }

  return {
    element: made("div", {}, scroll, pages),
    fill(found) {
      [rows, first] = [found, 0];
      shown = columns.filter((column) => !column.hidden?.());
      head.replaceChildren(...shown.map(header));
      draw();
    },
  };
}
