// The page: which models there are, one of them in full, and what it does now.

// Whatever is in front of the server, the page is its root.
const BASE = location.pathname.replace(/\/*$/, "/");
const LOOK_AGAIN = {loading: 1, ready: 5}; // seconds until models are asked for again

const at = (id) => document.getElementById(id);
const key = (model) => `${model.name}@${model.version}`;

let shown = null; // the Page of the chosen model
let told = ""; // what was last told of the models, as text

async function ask(path, options = {}) {
  const answer = await fetch(BASE + path, {cache: "no-store", ...options});
  return {answer, text: await answer.text()};
}

async function look() {
  let server = null;
  try {
    const {answer, text} = await ask("page/models");
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    server = JSON.parse(text);
    if (text !== told) show(server);
    told = text;
    trouble("");
  } catch (error) {
    told = "";
    trouble(`The server can't be asked what it serves: ${error.message}. Trying again.`);
  }
  setTimeout(look, 1000 * (server?.ready ? LOOK_AGAIN.ready : LOOK_AGAIN.loading));
}

function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
}

function show({version, ready, models}) {
  at("version").textContent = version;
  at("server").textContent = ready ? "ready" : "not ready";
  at("server").className = `state ${ready ? "good" : "waiting"}`;
  const named = (name) => models.find((model) => `#${encodeURIComponent(key(model))}` === name);
  // whoever has chosen nothing stays with what answers
  const before = shown && models.find((model) => key(model) === key(shown.model) && model.state === "READY");
  const chosen = named(location.hash) ?? before ?? models.find(({state}) => state === "READY") ?? models[0];
  at("models").hidden = models.length < 2;
  at("models").replaceChildren(...models.map((model) => element("a", {
    href: `#${encodeURIComponent(key(model))}`, "aria-current": model === chosen ? "true" : undefined,
  }, model.name, model.version && element("small", {}, ` ${model.version}`), " ", state(model))));
  document.title = chosen ? `${chosen.name} · Serveplane` : "Serveplane";
  if (!chosen) at("model").replaceChildren(element("p", {}, "No model is loaded."));
  else if (shown && key(shown.model) === key(chosen) && same(shown.model, chosen)) shown.update(chosen);
  else {
    shown = new Page(chosen);
    at("model").replaceChildren(...shown.elements);
  }
}

function same(one, other) {
  return JSON.stringify(one.signatures) === JSON.stringify(other.signatures);
}

function state({state}) {
  const kind = {READY: "good", LOADING: "waiting", WARMING: "waiting"}[state] ?? "bad";
  return element("span", {class: `state ${kind}`}, state);
}

// One model: what it is, a form, live figures, its signatures.
class Page {
  constructor(model) {
    this.model = model;
    this.recent = new Recent(model.name, model.version);
    this.charts = new Charts();
    this.head = element("section", {class: "card", "aria-label": "Model"});
    this.update(model);
    this.trial = model.signatures ? new Trial(model, () => this.read()) : null;
    this.elements = [
      this.head,
      this.trial?.element,
      element("section", {class: "card", "aria-labelledby": "live"},
        element("h3", {id: "live"}, "Now", element("small", {}, ` the last ${WINDOW} s, of all clients`)), this.charts.element),
      model.signatures && element("section", {class: "card", "aria-labelledby": "signatures"},
        element("h3", {id: "signatures"}, model.signatures.length > 1 ? "Signatures" : "Signature"), model.signatures.map(signature)),
    ].filter(Boolean);
    this.read();
  }

  update(model) {
    this.model = model;
    const facts = Object.entries({runtime: model.runtime, batching: model.batching, ...model.properties}).filter(([, value]) => value);
    const [first, more] = [facts.slice(0, 2), facts.slice(2)];
    this.head.replaceChildren(...[
      element("h2", {}, model.name, model.version && element("small", {}, ` version ${model.version}`), " ", state(model)),
      model.reason && element("p", {class: "notice"}, model.reason),
      list(first, "short"),
      more.length && element("details", {}, element("summary", {}, "More about it"), list(more)),
    ].filter(Boolean));
  }

  // Read the metrics page once.
  async read() {
    try {
      const {answer, text} = await ask("metrics");
      if (answer.ok) this.charts.add(this.recent.take(text, performance.now() / 1000));
    } catch {
      // `look` says it where the server can't be asked
    }
  }
}

function list(pairs, kind = "") {
  return element("dl", {class: `about ${kind}`}, pairs.flatMap(([name, value]) => [
    element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, value),
  ]));
}

function signature({name, batched, inputs, outputs, defaults}) {
  const row = (kind, {name, datatype, shape, optional, nullable}, notes) => element("tr", {},
    element("td", {}, kind), element("td", {}, element("code", {}, name)), element("td", {}, datatype),
    element("td", {class: "shape"}, shapeText(shape, batched)),
    element("td", {}, [optional && "optional", nullable && "null is a value", ...notes].filter(Boolean).join(", ")));
  return element("div", {class: "scroll", tabindex: 0, role: "group", "aria-label": `Signature ${name}`}, element("table", {},
    element("caption", {}, name),
    element("thead", {}, element("tr", {}, ["", "Name", "Datatype", "Shape", ""].map((text) => element("th", {scope: "col"}, text)))),
    element("tbody", {},
      inputs.map((spec) => row("input", spec, [])),
      outputs.map((spec) => row("output", spec, defaults.includes(spec.name) ? [] : ["when asked for"])))));
}

// The form, and what it sends.
class Trial {
  constructor(model, sent) {
    [this.model, this.sent] = [model, sent];
    this.protocol = choice("Protocol", "protocol", [["v2", "Open Inference V2"], ["v1", "KServe and TF Serving V1"]], () => this.refill());
    this.mode = choice("Write it as", "mode", [["form", "a form"], ["json", "JSON"]], () => this.refill());
    this.signature = element("select", {change: () => this.start()}, model.signatures.map(({name}) => element("option", {value: name}, name)));
    this.fields = element("div", {});
    this.hint = element("p", {class: "hint"});
    this.text = element("textarea", {rows: 14, spellcheck: "false", "aria-label": "The request's body", input: () => this.retell()});
    this.outputs = element("fieldset", {class: "choice"});
    this.send = element("button", {type: "submit", class: "primary", disabled: true}, "Send");
    this.where = element("code", {id: "where"});
    this.answer = element("div", {id: "result", "aria-live": "polite"}, element("p", {class: "hint"}, "The answer will be here."));
    this.curl = snippet("curl", () => asCurl(this.url, this.body()));
    this.python = snippet("Python", () => asPython(this.url, this.body()));
    this.element = element("section", {class: "card", "aria-labelledby": "try"},
      element("h3", {id: "try", tabindex: -1}, "Try it"),
      element("form", {submit: (event) => (event.preventDefault(), this.submit())},
        element("div", {class: "bar"}, this.protocol.element, this.mode.element,
          model.signatures.length > 1 ? labelled("Signature", this.signature) : null),
        this.outputs,
        element("div", {class: "sides"},
          element("div", {}, this.hint, this.fields, element("div", {class: "actions"}, this.send,
            element("button", {type: "button", class: "quiet", click: () => this.start()}, "Reset"), this.where),
            this.curl.element, this.python.element),
          element("div", {}, this.answer))));
    this.start();
  }

  // The form as it was, with a sample from the server.
  async start() {
    const {name, version, signatures} = this.model;
    const chosen = signatures.find((one) => one.name === this.signature.value);
    let sample = {inputs: []};
    try {
      const {answer, text} = await ask(`page/sample?${new URLSearchParams({model: name, version, signature: chosen.name})}`);
      if (answer.ok) sample = JSON.parse(text);
      else sample.reason = errorOf(text);
    } catch (error) {
      sample.reason = `no sample could be had: ${error.message}`;
    }
    this.hint.textContent = sample.reason ?? "";
    this.form = new Form(chosen, sample.inputs, chosen === signatures[0], () => this.retell());
    if (!chosen.inputs.length) this.mode.set("json");
    const choices = this.form.outputs.map(({name, box}) => element("label", {class: "check"}, box, ` ${name}`));
    this.outputs.replaceChildren(element("legend", {}, "Outputs"), ...choices);
    this.outputs.hidden = choices.length < 2;
    this.refill();
    this.send.disabled = false;
  }

  refill() {
    if (!this.form) return;
    const isForm = this.mode.value() === "form";
    if (!isForm) this.text.value = spread(this.form.body(this.protocol.value()));
    this.fields.replaceChildren(isForm ? this.form.element : this.text);
    this.retell();
  }

  // What is shown of the request, after it has changed.
  retell() {
    if (!this.form) return;
    this.where.textContent = `POST ${BASE}${this.path}`;
    this.curl.retell();
    this.python.retell();
  }

  get path() {
    const model = encodeURIComponent(this.model.name);
    const version = this.model.version ? `/versions/${encodeURIComponent(this.model.version)}` : "";
    return this.protocol.value() === "v2" ? `v2/models/${model}${version}/infer` : `v1/models/${model}${version}:predict`;
  }

  get url() {
    return new URL(BASE + this.path, location.origin).href;
  }

  body() {
    return this.mode.value() === "form" ? this.form.body(this.protocol.value()) : this.text.value;
  }

  async submit() {
    this.send.disabled = true;
    const began = performance.now();
    let told;
    try {
      const {answer, text} = await ask(this.path, {method: "POST", body: this.body(), headers: {"content-type": "application/json"}});
      told = {status: answer.status, text, requestId: answer.headers.get("x-request-id")};
    } catch (error) {
      told = {status: 0, text: error.message};
    }
    told.milliseconds = performance.now() - began;
    this.answer.replaceChildren(...answerElements(told, classesOf(this.model)));
    this.send.disabled = false;
    this.sent();
  }
}

// A model's classes, where its metadata has them.
function classesOf({properties}) {
  try {
    const classes = JSON.parse(properties.classes);
    return Array.isArray(classes) ? classes : null;
  } catch {
    return null;
  }
}

function choice(title, name, options, changed) {
  const inputs = options.map(([value], number) => element("input", {type: "radio", name, value, checked: number === 0, change: changed}));
  const made = element("fieldset", {class: "choice"}, element("legend", {}, title),
    inputs.map((input, number) => element("label", {class: "check"}, input, ` ${options[number][1]}`)));
  return {
    element: made,
    value: () => inputs.find((input) => input.checked).value,
    set: (value) => inputs.forEach((input) => (input.checked = input.value === value)),
  };
}

// Text to copy, made when somebody looks.
function snippet(title, made) {
  const code = element("pre", {tabindex: 0, "aria-label": `As ${title}`});
  const details = element("details", {class: "snippet", toggle: () => retell()}, element("summary", {}, `As ${title}`));
  const copy = element("button", {type: "button", class: "quiet", click: async () => {
    copy.textContent = await navigator.clipboard.writeText(made()).then(() => "Copied", () => "Not allowed");
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  }}, "Copy");
  // a clipboard is only given to pages of this machine or over https
  details.append(element("div", {class: "code"}, code, navigator.clipboard ? copy : ""));
  const retell = () => details.open && (code.textContent = made());
  return {element: details, retell};
}

for (const link of document.querySelectorAll("[data-path]")) link.href = BASE + link.dataset.path;
addEventListener("hashchange", () => told && show(JSON.parse(told)));
setInterval(() => document.visibilityState === "visible" && shown?.read(), EVERY * 1000);
look();
