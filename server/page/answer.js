// What came back: a status, a time, an error's text or the values, and bars where they are probabilities.

const SHOWN = 20000; // characters of an answer
const MOST_BARS = [8, 24]; // rows, and bars in each

// `answer` is {status, milliseconds, text, requestId}; status 0 where there was none, with the reason as its text.
function answerElements(answer, classes) {
  const fine = answer.status >= 200 && answer.status < 300;
  const facts = [
    element("span", {class: `state ${fine ? "good" : "bad"}`, id: "status"}, answer.status ? `${answer.status}` : "no answer"),
    element("span", {id: "time"}, `${figure(answer.milliseconds)} ms`),
    answer.requestId && element("small", {class: "request-id"}, `request ${answer.requestId}`),
  ];
  const error = fine ? null : errorOf(answer.text);
  const shown = spread(answer.text);
  const cut = shown.length > SHOWN ? `${shown.slice(0, SHOWN)}\n… ${shown.length - SHOWN} more characters` : shown;
  return [
    element("p", {class: "facts"}, facts),
    error && element("p", {class: "notice", id: "error"}, error),
    ...(fine ? barsOf(answer.text, classes) : []),
    error ? null : element("pre", {id: "answer", tabindex: 0, "aria-label": "The answer"}, cut),
  ].filter(Boolean);
}

function errorOf(text) {
  try {
    const {error} = JSON.parse(text);
    return typeof error === "string" ? error : null;
  } catch {
    return text || null;
  }
}

function barsOf(text, classes) {
  let document;
  try {
    document = JSON.parse(text);
  } catch {
    return []; // NaN and Infinity are none of JSON's, and no probabilities either
  }
  return tables(document).filter(({rows}) => rows.every(isProbabilities)).map(({name, rows}) => bars(name, rows, classes));
}

// What has a list of numbers for each row, by name, whatever protocol wrote it.
function tables({outputs, predictions}) {
  if (Array.isArray(outputs)) {
    return outputs.filter(({shape, data}) => shape?.length === 2 && Array.isArray(data)).map(({name, shape: [rows, width], data}) => ({
      name,
      rows: Array.from({length: rows}, (_, row) => data.slice(row * width, (row + 1) * width)),
    }));
  }
  if (!Array.isArray(predictions) || !predictions.length) return [];
  if (Array.isArray(predictions[0])) return [{name: "predictions", rows: predictions}];
  const names = Object.keys(Object(predictions[0])).filter((name) => Array.isArray(predictions[0][name]));
  return names.map((name) => ({name, rows: predictions.map((row) => row[name])}));
}

function isProbabilities(row) {
  if (!Array.isArray(row) || row.length < 2 || row.length > MOST_BARS[1]) return false;
  const sum = row.reduce((a, b) => a + b, 0);
  return row.every((share) => typeof share === "number" && share >= 0 && share <= 1) && Math.abs(sum - 1) < 0.01;
}

function bars(name, rows, classes) {
  const named = (at) => (classes?.length === rows[0].length ? String(classes[at]) : `${at}`);
  return element("figure", {class: "bars"}, element("figcaption", {}, name),
    rows.slice(0, MOST_BARS[0]).map((row, number) => element("dl", {"aria-label": `Row ${number + 1}`},
      row.flatMap((share, at) => [
        element("dt", {}, named(at)),
        element("dd", {}, element("meter", {min: 0, max: 1, value: share, "aria-label": named(at)}), `${(share * 100).toFixed(1)} %`),
      ]))));
}
