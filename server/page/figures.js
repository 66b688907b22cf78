// The server's /metrics page → what one model does now.

const WINDOW = 10; // seconds that a figure is about
const FORGET = 60; // seconds after which a process that no longer answers is left out

// Samples of Prometheus' text format: [{name, labels, value}], comments left out.
function samplesOf(page) {
  const found = [];
  for (const line of page.split("\n")) {
    const parts = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!parts) continue;
    const labels = {};
    for (const [, name, value] of (parts[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    found.push({name: parts[1], labels, value: Number(parts[3])});
  }
  return found;
}

// What has been counted of one model so far, by name; the buckets of its latency are named "le" and their bound in seconds.
// A request that failed early is counted without a version.
function countsOf(samples, model, version) {
  const counts = {};
  const add = (name, value) => (counts[name] = (counts[name] ?? 0) + value);
  for (const {name, labels, value} of samples) {
    if (labels.model !== model || (labels.version && labels.version !== version)) continue;
    if (name === "serve_request_duration_seconds_bucket") add(`le${labels.le}`, value);
    else if (name === "serve_request_duration_seconds_count") {
      add("requests", value);
      if (!/^(2..|OK)$/.test(labels.code)) add("failed", value);
    } else if (/^serve_(queue_duration_seconds|batch_rows)_(sum|count)$/.test(name)) add(name, value);
  }
  return counts;
}

// Seconds below which that share of the requests was answered, evenly spread within a bucket; null where there were none.
function quantile(counts, share) {
  const buckets = Object.entries(counts).filter(([name]) => name.startsWith("le"))
    .map(([name, count]) => [name === "le+Inf" ? Infinity : Number(name.slice(2)), count]).sort((a, b) => a[0] - b[0]);
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return null;
  let low = 0, before = 0;
  for (const [bound, count] of buckets) {
    if (count >= share * total) {
      if (bound === Infinity) return low;
      return low + (bound - low) * (share * total - before) / (count - before);
    }
    [low, before] = [bound, count];
  }
  return low;
}

// The last seconds of one model.  Behind a balancer each page may be of another process: each has its own past.
class Recent {
  constructor(model, version) {
    [this.model, this.version] = [model, version];
    this.past = new Map(); // from a process to what it had counted at what times, the newest last
  }

  // A page that was read at a time in seconds → figures; null where nothing happened.  Latencies and waits are milliseconds.
  take(page, at) {
    const samples = samplesOf(page);
    const process = samples.find(({name}) => name === "process_start_time_seconds")?.value ?? 0;
    const past = this.past.get(process) ?? [];
    past.push({at, counts: countsOf(samples, this.model, this.version)});
    // the newest that is a window old stays, for the difference
    while (past.length > 2 && past[1].at <= at - WINDOW) past.shift();
    this.past.set(process, past);
    return this.figures(at);
  }

  figures(at) {
    const sum = {};
    let rate = 0, failures = 0;
    for (const [process, past] of this.past) {
      const [first, last] = [past[0], past.at(-1)];
      if (last.at < at - FORGET) {
        this.past.delete(process);
        continue;
      }
      const seconds = Math.max(1, last.at - first.at);
      const counted = (name) => Math.max(0, (last.counts[name] ?? 0) - (first.counts[name] ?? 0));
      for (const name of Object.keys(last.counts)) sum[name] = (sum[name] ?? 0) + counted(name);
      rate += counted("requests") / seconds;
      failures += counted("failed") / seconds;
    }
    const mean = (name) => (sum[`${name}_count`] ? sum[`${name}_sum`] / sum[`${name}_count`] : null);
    const milliseconds = (seconds) => (seconds === null ? null : seconds * 1000);
    return {
      rate,
      failures,
      p50: milliseconds(quantile(sum, 0.5)),
      p99: milliseconds(quantile(sum, 0.99)),
      queue: milliseconds(mean("serve_queue_duration_seconds")),
      rows: mean("serve_batch_rows"),
    };
  }
}

// A figure for reading: three digits of it.
function figure(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value >= 0.01 ? value.toFixed(2) : "< 0.01";
}
