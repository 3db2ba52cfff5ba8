// Elements from data. Text becomes text nodes, never markup.

/** element("p", {class: "soft", click: act}, "text", child): functions are listeners; what is false or undefined is
 *  left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      made.addEventListener(name, value);
    } else if (value !== false && value !== undefined) {
      made.setAttribute(name, value === true ? "" : value);
    }
  }
  made.append(...children.flat().filter((child) => child !== false && child !== undefined && child !== null));
  return made;
}

export const byId = (id) => document.getElementById(id);
