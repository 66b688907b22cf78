// What a person types → JSON text.  As text, since numbers of this language round what INT64 and UINT64 hold.

const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;
const UNUSUAL = {nan: "NaN", infinity: "Infinity", inf: "Infinity", "-infinity": "-Infinity", "-inf": "-Infinity"};

// The JSON of one element.  What does not fit its datatype goes as a string: the server says best what is wrong with it.
function literal(typed, {datatype, nullable}) {
  const text = typed.trim();
  if (datatype === "BYTES") return typed === "" && nullable ? "null" : JSON.stringify(typed);
  if (datatype === "BOOL") return /^(true|false)$/.test(text) ? text : JSON.stringify(typed);
  if (NUMBER.test(text)) return text;
  if (!/^(FP|BF)/.test(datatype)) return JSON.stringify(typed);
  if (text === "") return "null";
  return UNUSUAL[text.toLowerCase()] ?? (Number.isFinite(Number(text)) ? String(Number(text)) : JSON.stringify(typed));
}

// ["1", "2", "3", "4"] of shape [2, 2] → "[[1,2],[3,4]]"
function nested(literals, shape) {
  if (!shape.length) return literals[0] ?? "null";
  const width = shape.slice(1).reduce((a, b) => a * b, 1);
  const rows = Array.from({length: shape[0]}, (_, row) => nested(literals.slice(row * width, (row + 1) * width), shape.slice(1)));
  return `[${rows.join(",")}]`;
}

// The shape of a nest of lists by its first elements, as [[1,2],[3,4]] has [2, 2]; `otherwise` where the text is no JSON.
function shapeOf(text, otherwise) {
  let value;
  try {
    value = JSON.parse(text.replace(/-?\bInfinity\b|\bNaN\b/g, "0"));
  } catch {
    return otherwise;
  }
  const shape = [];
  for (; Array.isArray(value); value = value[0]) shape.push(value.length);
  return shape;
}

// In single quotes no shell looks for anything.
function shellQuoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
}

function pythonQuoted(text) {
  return /['\\\n\r]/.test(text) ? JSON.stringify(text) : `'${text}'`;
}

function asCurl(url, body) {
  return `curl -s ${shellQuoted(url)} -d ${shellQuoted(body)}`;
}

function asPython(url, body) {
  return [
    "import urllib.request",
    "",
    `body = ${pythonQuoted(body)}`,
    `request = urllib.request.Request(${pythonQuoted(url)}, body.encode(), {"content-type": "application/json"})`,
    "with urllib.request.urlopen(request) as answer:",
    "    print(answer.read().decode())",
  ].join("\n");
}

// JSON text spread over lines, lists of plain values left on one; as it is where it is none.  Digits stay as they are.
function spread(text) {
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[[\]{},:]|[^\s"[\]{},:]+/g) ?? [];
  let out = "", indent = "";
  for (let at = 0; at < tokens.length; at++) {
    const one = tokens[at];
    if (one === "[" || one === "{") {
      const end = plainUntil(tokens, at);
      if (end) {
        out += tokens.slice(at, end + 1).map((t) => (t === "," || t === ":" ? `${t} ` : t)).join("");
        at = end;
        continue;
      }
      indent += "  ";
      out += `${one}\n${indent}`;
    } else if (one === "]" || one === "}") {
      indent = indent.slice(2);
      out += `\n${indent}${one}`;
    } else if (one === ",") out += `,\n${indent}`;
    else out += one === ":" ? ": " : one;
  }
  return out;
}

// Where the list or object that begins at `start` ends, if nothing nests in it and it is short; else 0.
function plainUntil(tokens, start) {
  let length = 0;
  for (let at = start + 1; at < tokens.length; at++) {
    if (tokens[at] === "]" || tokens[at] === "}") return at;
    length += tokens[at].length + 1;
    if (tokens[at] === "[" || tokens[at] === "{" || length > 400) return 0;
  }
  return 0;
}
