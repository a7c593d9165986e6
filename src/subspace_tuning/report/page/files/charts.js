// A chart with its heading, its caption and the table of what it shows; drawn when it comes into view.

const DRAWING = { actions: false, renderer: "svg", ast: true }; // ast: nothing is evaluated, as the policy asks
const drawn = new Map(); // by their elements
const near = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    const one = drawn.get(target);
    one.visible = isIntersecting;
    if (isIntersecting && one.stale) one.draw();
  }
}, { rootMargin: "200px" });

/**
 * Put a chart at the end of an element.
 *
 * `values` returns what it shows, `spec` its specification for a width in pixels, `caption` its text, and `columns` are
 * those of its table. `open` is called with the value that is clicked.
 */
function chart(parent, { title, values, spec, caption, columns, open }) {
  const picture = made("div", {}); // the library gives it a role of its own
  const place = made("div", { className: "chart", role: "img" }, picture);
  const text = made("figcaption", { className: "soft" });
  const table = sortable(title, columns);
  const details = made("details", {}, made("summary", {}, "The same as a table"), table.element);
  const figure = made("figure", {}, text, place, details);
  const one = { stale: true, busy: false, visible: false, view: null, width: 0, draw, update };
  parent.append(figure);
  drawn.set(place, one);
  near.observe(place);
  details.addEventListener("toggle", () => details.open && table.fill(values()));

  /** Draw until what is drawn is what is shown: the filters may change meanwhile. */
  async function draw() {
    if (one.busy) return;
    one.busy = true;
    while (one.stale) {
      one.stale = false;
      await redraw(values());
    }
    one.busy = false;
    place.dataset.drawn = "true";
  }

  async function redraw(found) {
    one.width = place.clientWidth;
    one.view?.finalize();
    one.view = null;
    if (!found.length) {
      picture.replaceChildren(made("p", { className: "soft" }, "The rows shown have nothing to draw here."));
      return;
    }
    const { view } = await vegaEmbed(picture, spec(found, one.width), DRAWING);
    one.view = view;
    if (open) view.addEventListener("click", (_, item) => item?.datum && open(item.datum));
  }

  function update() {
    const found = values();
    text.textContent = caption(found);
    place.ariaLabel = `${title}. ${text.textContent} The table below has the same values.`;
    one.stale = true;
    place.dataset.drawn = "false";
    if (details.open) table.fill(found);
    if (one.visible) draw();
  }
  return one;
}

let resized = 0;
window.addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => {
    for (const [place, one] of drawn) if (place.clientWidth !== one.width) one.update();
  }, 150);
});
