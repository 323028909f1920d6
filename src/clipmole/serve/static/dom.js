// Builds elements. Text only ever becomes text nodes: a file name cannot become markup.

/** An element with attributes and children. Functions become listeners, `style` is an object; null and false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "style") for (const property in value) element.style.setProperty(property, value[property]);
    else if (value !== null && value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A file name. Marks that turn the direction of writing show as such: exe.png is not to be read as gnp.exe. */
export const nameOf = ({ file, region }) => h("span", {},
  h("bdi", {}, file.name.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd") || "pasted image"),
  region ? `, part ${region[0]}–${region[2]} × ${region[1]}–${region[3]}` : null);

/** A table from a caption, heads and rows of cells (text or nodes); `numbers` names the right-aligned columns. */
export function grid(caption, heads, rows, numbers = []) {
  const kind = (column) => (numbers.includes(column) ? "number" : null);
  const line = (row) => row.map((cell, i) => h(i ? "td" : "th", { class: kind(i), scope: i ? null : "row" }, cell));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {},
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, heads.map((text, i) => h("th", { scope: "col", class: kind(i) }, text)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, line(row))))));
}
