// Live figures as small line charts, of the last two minutes.

const EVERY = 2; // seconds between two readings
const POINTS = 60;
const [WIDTH, HEIGHT] = [240, 48];

const TILES = [
  {title: "Latency", unit: "ms", lines: [["p50", "p50"], ["p99", "p99"]]},
  {title: "Requests", unit: "/s", lines: [["rate", "all"], ["failures", "failed"]]},
  {title: "Wait for a batch", unit: "ms", lines: [["queue", "mean"]]},
  {title: "Rows per batch", unit: "", lines: [["rows", "mean"]]},
];

class Charts {
  constructor() {
    this.points = [];
    this.tiles = TILES.map((tile) => new Tile(tile));
    this.element = element("div", {class: "tiles"}, this.tiles.map((tile) => tile.element));
  }

  add(figures) {
    this.points = [...this.points, figures].slice(-POINTS);
    for (const tile of this.tiles) tile.draw(this.points);
  }
}

class Tile {
  constructor({title, unit, lines}) {
    [this.title, this.unit, this.lines] = [title, unit, lines];
    this.values = lines.map(([name, text], at) => ({
      value: element("b", {"data-figure": name}, "–"),
      label: element("span", {class: `line${at}`}, text),
    }));
    this.most = element("span", {class: "most"});
    this.svg = drawn("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img"});
    this.element = element("div", {class: "tile"},
      element("h4", {}, title, unit && element("small", {}, ` ${unit}`)),
      element("div", {class: "numbers"}, this.values.map(({value, label}) => element("span", {}, value, " ", label))),
      this.svg, this.most);
  }

  draw(points) {
    const now = points.at(-1);
    this.lines.forEach(([name], at) => (this.values[at].value.textContent = figure(now[name])));
    const most = Math.max(...points.flatMap((point) => this.lines.map(([name]) => point[name] ?? 0)));
    this.most.textContent = most > 0 ? `up to ${figure(most)}` : "nothing yet";
    this.svg.setAttribute("aria-label", `${this.title}: ${this.lines.map(([name, text]) => `${text} ${figure(now[name])}`).join(", ")}`);
    this.svg.replaceChildren(...this.lines.flatMap(([name], at) => line(points.map((point) => point[name]), most || 1, at)));
  }
}

// One line, broken where there is no value, the newest at the right edge; under the first one its area.
function line(values, most, number) {
  const x = (at) => WIDTH - (values.length - 1 - at) * (WIDTH / (POINTS - 1));
  const y = (value) => HEIGHT - 2 - (value / most) * (HEIGHT - 6);
  const pieces = [];
  values.forEach((value, at) => {
    if (value === null) return;
    if (at && values[at - 1] !== null && pieces.length) pieces.at(-1).push([x(at), y(value)]);
    else pieces.push([[x(at), y(value)]]);
  });
  return pieces.flatMap((piece) => {
    // one value alone is a short line
    const whole = piece.length > 1 ? piece : [[piece[0][0] - 3, piece[0][1]], piece[0]];
    const points = whole.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(" ");
    const stroke = drawn("polyline", {points, class: `stroke${number}`});
    if (number) return [stroke];
    return [drawn("polygon", {points: `${whole[0][0].toFixed(1)},${HEIGHT} ${points} ${whole.at(-1)[0].toFixed(1)},${HEIGHT}`, class: "area"}), stroke];
  });
}
