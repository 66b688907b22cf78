// Elements of the page.  Text goes in as text, whoever wrote it: nothing here, or that uses this, parses HTML.

const SVG = "http://www.w3.org/2000/svg";

// element("label", {class: "wide", for: id}, "Rows", input): functions are listeners, true and false are attributes without value.
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

let identities = 0;

// A label and its field, tied together.
function labelled(text, field, note = "") {
  field.id ||= `field-${++identities}`;
  return element("div", {class: "field"},
    element("label", {for: field.id}, text, note && element("small", {}, ` ${note}`)), field);
}
