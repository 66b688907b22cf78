// A signature → fields for rows, and what was typed → a request's body.

const MOST_FIELDS = 64; // of one input in a row; more are easier to paste as JSON
const MOST_ROWS = 16;
const LONG = 14; // characters for which a field has a line of its own
const EMPTY = {BYTES: "", BOOL: "false"};

class Form {
  // `sample` is V2's list of inputs, of one row; `changed` is called whenever another body would be sent.
  constructor(signature, sample, isDefault, changed) {
    [this.signature, this.isDefault, this.changed] = [signature, isDefault, changed];
    this.inputs = signature.inputs.map((spec) => new Input(spec, sample.find(({name}) => name === spec.name), signature.batched));
    this.outputs = signature.outputs.map(({name}) => ({
      name,
      box: element("input", {type: "checkbox", checked: signature.defaults.includes(name), change: changed}),
    }));
    this.rows = element("div", {class: "rows"});
    this.add = element("button", {type: "button", class: "quiet", click: () => this.addRow()}, "Add a row");
    this.element = element("div", {class: "form", input: changed, change: changed},
      this.inputs.filter((input) => input.given).map((input) => input.choice()),
      this.inputs.filter((input) => input.isBox).map((input) => input.boxField()),
      this.rows,
      signature.batched && this.inputs.some((input) => !input.isBox) ? this.add : null);
    this.cells = [];
    this.addRow();
  }

  addRow() {
    const fields = this.inputs.filter((input) => !input.isBox).map((input) => ({input, fields: input.fields()}));
    const row = {fields: new Map(fields.map(({input, fields}) => [input, fields]))};
    const remove = element("button", {type: "button", class: "quiet", "aria-label": "Remove this row", click: () => this.removeRow(row)}, "Remove");
    row.legend = element("legend", {});
    row.remove = remove;
    row.element = element("fieldset", {class: "row"}, row.legend, fields.map(({input, fields}) => input.group(fields)), remove);
    this.cells.push(row);
    if (fields.length) this.rows.append(row.element);
    this.renumber();
  }

  removeRow(row) {
    this.cells = this.cells.filter((one) => one !== row);
    row.element.remove();
    this.renumber();
    this.add.focus();
  }

  renumber() {
    this.cells.forEach((row, at) => {
      row.legend.textContent = this.signature.batched ? `Row ${at + 1}` : "Inputs";
      row.remove.hidden = this.cells.length === 1;
    });
    this.add.disabled = this.cells.length >= MOST_ROWS;
    this.changed();
  }

  // Names of the outputs to ask for; empty for those that come unasked.
  wanted() {
    const names = this.outputs.filter(({box}) => box.checked).map(({name}) => name);
    const usual = this.signature.defaults;
    return names.length === usual.length && names.every((name) => usual.includes(name)) ? [] : names;
  }

  body(protocol) {
    const given = this.inputs.filter((input) => input.isGiven());
    return protocol === "v2" ? this.v2(given) : this.v1(given);
  }

  v2(given) {
    const inputs = given.map((input) => {
      const {shape, text} = input.isBox ? input.boxed() : input.typed(this.cells, true);
      const {name, datatype} = input.spec;
      return `{"name":${JSON.stringify(name)},"shape":${JSON.stringify(shape)},"datatype":${JSON.stringify(datatype)},"data":${text}}`;
    });
    const members = [`"inputs":[${inputs.join(",")}]`];
    if (!this.isDefault) members.unshift(`"parameters":${JSON.stringify({signature_name: this.signature.name})}`);
    if (this.wanted().length) members.push(`"outputs":${JSON.stringify(this.wanted().map((name) => ({name})))}`);
    return `{${members.join(",")}}`;
  }

  // `instances` row by row where rows are typed one by one, else `inputs` whole.
  v1(given) {
    const members = [];
    if (!this.isDefault) members.push(`"signature_name":${JSON.stringify(this.signature.name)}`);
    const whole = (input) => (input.isBox ? input.boxed().text : input.typed(this.cells, false).text);
    const named = (texts) => `{${texts.map(([name, text]) => `${JSON.stringify(name)}:${text}`).join(",")}}`;
    if (given.length === 1) members.push(`"${this.signature.batched ? "instances" : "inputs"}":${whole(given[0])}`);
    else if (this.signature.batched && !given.some((input) => input.isBox)) {
      const rows = this.cells.map((row) => named(given.map((input) => [input.spec.name, input.row(row)])));
      members.push(`"instances":[${rows.join(",")}]`);
    } else members.push(`"inputs":${named(given.map((input) => [input.spec.name, whole(input)]))}`);
    if (this.wanted().length) members.push(`"output_filter":${JSON.stringify(this.wanted())}`);
    return `{${members.join(",")}}`;
  }
}

// One input of a signature: fields for each of its elements, or one box for all of them as JSON.
class Input {
  constructor(spec, sample, batched) {
    [this.spec, this.batched] = [spec, batched];
    const shape = sample?.shape ?? spec.shape.map((size) => (size < 0 ? 1 : size));
    this.rowShape = batched ? shape.slice(1) : shape;
    this.size = this.rowShape.reduce((a, b) => a * b, 1);
    this.start = sample?.data ?? Array(this.size).fill(EMPTY[spec.datatype] ?? "0");
    this.start = this.start.map((value) => (value === null ? "" : typeof value === "string" ? value : JSON.stringify(value)));
    this.isBox = this.size > MOST_FIELDS;
    if (this.isBox) {
      this.shape = shape;
      this.box = element("textarea", {rows: 8, spellcheck: "false"});
      this.box.value = nested(this.start.map((value) => literal(value, spec)), shape);
    }
    // what may be left out is left out until somebody wants it
    this.given = spec.optional ? element("input", {type: "checkbox", checked: sample !== undefined}) : null;
  }

  get title() {
    return `${this.spec.datatype} ${shapeText(this.spec.shape, this.batched)}`;
  }

  isGiven() {
    return this.given === null || this.given.checked;
  }

  choice() {
    return element("label", {class: "check"}, this.given, ` send ${this.spec.name} `, element("small", {}, "optional"));
  }

  boxField() {
    return labelled(this.spec.name, this.box, `${this.title}, all rows as JSON`);
  }

  fields() {
    return this.start.map((value) => {
      if (this.spec.datatype === "BOOL") {
        const options = ["true", "false"].map((text) => element("option", {selected: text === value}, text));
        return element("select", {}, options);
      }
      const isText = this.spec.datatype === "BYTES";
      const missing = this.spec.nullable || /^(FP|BF)/.test(this.spec.datatype);
      return element("input", {
        type: "text", value, autocomplete: "off", spellcheck: "false",
        inputmode: isText ? "text" : "decimal", placeholder: missing ? "missing" : "", "data-datatype": this.spec.datatype,
      });
    });
  }

  // The fields of one row, with labels.
  group(fields) {
    if (fields.length === 1) {
      const made = labelled(this.spec.name, fields[0], this.spec.datatype);
      if (fields[0].value.length > LONG) made.classList.add("wide");
      return made;
    }
    const place = (at) => this.rowShape.reduceRight(([rest, found], size) => [Math.floor(rest / size), [rest % size, ...found]], [at, []])[1];
    return element("fieldset", {class: "tensor"}, element("legend", {}, this.spec.name, element("small", {}, ` ${this.title}`)),
      fields.map((field, at) => labelled(`[${place(at).join(", ")}]`, field)));
  }

  literals(row) {
    return row.fields.get(this).map((field) => literal(field.value, this.spec));
  }

  row(row) {
    return nested(this.literals(row), this.rowShape);
  }

  // All rows, flat as V2 has them or nested as V1 does.
  typed(cells, flat) {
    const shape = this.batched ? [cells.length, ...this.rowShape] : this.rowShape;
    const literals = cells.flatMap((row) => this.literals(row));
    return {shape, text: flat ? `[${literals.join(",")}]` : nested(literals, shape)};
  }

  boxed() {
    return {shape: shapeOf(this.box.value, this.shape), text: this.box.value.trim() || "null"};
  }
}

// [-1, 4] → "[rows, 4]"
function shapeText(shape, batched) {
  return `[${shape.map((size, at) => (size >= 0 ? size : at === 0 && batched ? "rows" : "any")).join(", ")}]`;
}
