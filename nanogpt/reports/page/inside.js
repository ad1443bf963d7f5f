// Shows what a model computes for a text (the fields of Inspection in reports/inspection.py).

import { element, makeButton, percent, quoted, shade, showBars, surprise, svg } from "./dom.js";
import { drawLarge, drawSmall, findCell } from "./heat.js";

const PARTS = ["text", "predictions", "lens", "attention", "stream", "embedding"];

export class Inside {
  // `parts` lists the sections to show. If `isShort` is true, no head is shown large, and a click opens explanations.
  // The owner may set `onUpdate`, a function that is called after each change of the selection.
  constructor(parent, { parts = PARTS, isShort = false } = {}) {
    this.isShort = isShort;
    this.selected = { layer: Infinity, head: 0 };      // chosen by a click or a key
    this.has = Object.fromEntries(PARTS.map(part => [part, parts.includes(part)]));
    this.parts = Object.fromEntries(PARTS.map(part => [part, element("section")]));
    this.parts.text.className = "top";
    parts.forEach(part => parent.append(this.parts[part]));
    this.buildText();
    this.buildPredictions();
    this.buildLens();
    this.buildAttention();
    this.buildStream();
    this.buildEmbedding();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show(this.data));
  }

  // Show other data. The selected position, layer and head stay the same. An index that is too large for
  // the data becomes the last one.
  show(data) {
    const isOther = this.data && this.data.tokens.join() !== data.tokens.join();
    this.data = data;
    this.T = data.tokens.length;
    this.layers = data.attention.length;
    const limit = (value, count) => Math.max(0, Math.min(value ?? Infinity, count - 1));
    // At first, select a position that has a next token; while the user types, select the end of the text.
    this.selected.position = limit(isOther ? this.T - 1 : this.selected.position ?? this.T - 2, this.T);
    this.selected.layer = limit(this.selected.layer, this.layers);
    this.selected.head = limit(this.selected.head, data.attention[0]?.length ?? 1);
    this.shown = { ...this.selected };                 // what is under the pointer; otherwise what is selected
    for (const part of ["lens", "attention", "stream"]) this.parts[part].hidden = !this.layers;
    this.layerPredictions.hidden = !this.layers;
    if (this.has.text) this.showText();
    if (this.has.lens) this.showLens();
    if (this.has.attention) this.showHeads();
    if (this.has.embedding) this.showEmbedding();
    this.update();
  }

  preview(changes) { Object.assign(this.shown, changes); this.update(); }
  select(changes) {
    Object.assign(this.selected, changes);
    this.shown = { ...this.selected };
    this.update();
  }
  makeSelectable(node, changes) {                      // pointing shows a preview, a click selects
    node.onmouseenter = () => this.preview(changes);
    node.onmouseleave = () => { this.shown = { ...this.selected }; this.update(); };
    node.onclick = () => this.select({ ...this.shown, ...changes });
  }
  hasNext(t) { return t + 1 < this.T; }                // whether the text continues after position t

  update() {                                           // everything that depends on the selection
    if (this.has.text) this.mark(this.spans);
    if (this.has.lens) this.cells.forEach(row => this.mark(row));
    if (this.has.predictions) this.showPredictions();
    if (this.has.attention && this.layers) this.showAttention();
    if (this.has.stream && this.layers) this.showStream();
    if (this.has.embedding) this.markPoints();
    this.onUpdate?.();
  }
  mark(nodes) { nodes.forEach((node, t) => node.classList.toggle("selected", t === this.shown.position)); }

  explain(section, text) {
    const parent = this.isShort ? element("details", undefined, section) : section;
    if (this.isShort) element("summary", "How to read this", parent);
    return element("p", text, parent);
  }

  buildText() {
    this.text = element("div", undefined, this.parts.text, "text tokens");
    this.text.tabIndex = 0;
    this.text.setAttribute("aria-label", "Text. The arrow keys move the selected position.");
    this.text.onkeydown = event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.select({ position: Math.min(this.T - 1, Math.max(0, this.selected.position + step)) });
    };
    this.legend = element("div", undefined, this.parts.text, "legend");
  }

  showText() {
    const { data, T } = this;
    this.text.replaceChildren();
    this.spans = data.tokens.map((token, t) => {
      const span = element("span", token, this.text);
      if (t) surprise(span, data.probabilities[t - 1]);
      this.makeSelectable(span, { position: t });
      if (token.includes("↵")) element("br", undefined, this.text);
      return span;
    });
    this.legend.replaceChildren("expected", element("i"), "surprising (6 nats or more)");
    if (T > 1) this.legend.append(
      ` · loss ${data.loss.toFixed(3)} nats per token (${(data.loss / Math.LN2).toFixed(3)} bits) · ` +
      `${data.ranks.filter(rank => rank === 1).length} of ${T - 1} top predictions correct`);
    if (data.n_hidden) this.legend.append(` · the model also read the ${data.n_hidden} tokens before these`);
  }

  buildPredictions() {
    const section = this.parts.predictions;
    element("h2", "Predictions of the next token", section);
    this.explain(section, "Point at a token to see what the model predicts after it. Click, or use the arrow keys, " +
      "to select the position.");
    const two = element("div", undefined, section, "two"), left = element("div", undefined, two);
    this.after = element("h3", undefined, left);
    this.predictions = element("div", undefined, left);
    this.layerPredictions = element("div", undefined, two);
    this.actual = element("h3", undefined, this.layerPredictions);
    this.byLayer = element("div", undefined, this.layerPredictions);
  }

  showPredictions() {
    const { data } = this, t = this.shown.position, next = data.tokens[t + 1];
    this.after.textContent = `after ${quoted(data.tokens[t])}, position ${t + 1}`;
    const rows = data.predictions[t].map(
      (prediction, k) => [prediction.token, prediction.p, this.hasNext(t) && k + 1 === data.ranks[t]]);
    if (this.hasNext(t) && data.ranks[t] > rows.length)
      rows.push([next, data.probabilities[t], true, ` rank ${data.ranks[t]}`]);
    showBars(this.predictions, rows);
    if (!this.layers) return;
    this.actual.textContent =
      this.hasNext(t) ? `probability of the actual next token, ${quoted(next)}, by layer` : "";
    showBars(this.byLayer, this.hasNext(t) ? data.lens_probabilities.map(
      (row, l) => [l ? `layer ${l}` : "input", row[t], true]).reverse() : []);
  }

  buildLens() {
    const section = this.parts.lens;
    element("h2", "The logit lens", section);
    this.explain(section, "The table shows what each layer would predict if it were the last layer: the final norm " +
      "and the output head, which computes the logits, are applied to the hidden state after that layer. The cell " +
      "below a token shows the most probable next token. A stronger shade means a higher probability, and an " +
      "underline marks a correct prediction. The row “input” is for the hidden state before the first layer. " +
      "In a GPT, this is the sum of the token embedding and the position embedding. In a modern model, it is " +
      "the embedding of the token, mixed with the embeddings of the two tokens before it. (Idea: " +
      "nostalgebraist, 2020.)");
    this.lens = element("table", undefined, element("div", undefined, section, "scroll"));
  }

  showLens() {
    const { data } = this;
    this.lens.replaceChildren();
    const addRow = (name, texts = []) => {
      const row = element("tr", undefined, this.lens);
      element("th", name, row);
      texts.forEach(text => element("th", text, row));
      return row;
    };
    addRow("token", data.tokens);
    addRow("next", data.tokens.map((_, t) => data.tokens[t + 1] ?? ""));
    this.cells = data.lens_predictions.map((row, l) => [l, row]).reverse().map(([l, predictions]) => {
      const row = addRow(l ? `layer ${l}` : "input");
      return predictions.map((prediction, t) => {
        const cell = element("td", prediction.token, row);
        shade(cell, prediction.p);
        if (this.hasNext(t) && prediction.token === data.tokens[t + 1]) cell.className = "correct";
        cell.title = percent(prediction.p);
        this.makeSelectable(cell, { position: t });
        return cell;
      });
    });
  }

  buildAttention() {
    const section = this.parts.attention;
    element("h2", "Attention of each head", section);
    this.explain(section, "Each row of pictures is a layer, and each picture is a head. In a picture, each row is a " +
      "position that attends, and each column is a position that gets attention. The shade is the square root " +
      "of the attention weight, so that small weights are visible. Point at a picture to see it large; click " +
      "to select it.");
    const both = element("div", undefined, section, "attention");
    this.heads = element("div", undefined, element("div", undefined, both, "scroll"), "heads");
    if (this.isShort) return;
    const head = element("div", undefined, both, "head");
    this.which = element("div", undefined, head);
    this.readout = element("div", undefined, head, "readout");
    this.large = element("canvas", undefined, head, "large");
    this.large.setAttribute("role", "img");
    this.weights = element("div", undefined, head, "text");
    this.large.onmousemove = event => {
      const cell = findCell(this.large, event, this.T), tokens = this.data.tokens;
      this.readout.textContent = cell ? `${quoted(tokens[cell.t])} attends to ${quoted(tokens[cell.s])}: ` +
        percent(this.data.attention[this.shown.layer][this.shown.head][cell.t][cell.s]) : "";
    };
    this.large.onclick = event => {
      const cell = findCell(this.large, event, this.T);
      if (cell) this.select({ position: cell.t });
    };
  }

  showHeads() {
    const { attention } = this.data, heads = attention[0]?.length ?? 1;
    const shape = `${attention.length}x${heads}`;
    if (this.shape !== shape) {
      this.shape = shape;
      this.heads.replaceChildren();
      this.heads.style.setProperty("--heads", heads);
      this.heads.style.gridTemplateColumns = `auto repeat(${heads}, auto)`;
      this.pictures = attention.map((row, l) => {
        element("div", `layer ${l + 1}`, this.heads);
        return row.map((_, h) => {
          const canvas = element("canvas", undefined, this.heads);
          canvas.title = `layer ${l + 1}, head ${h + 1}`;
          canvas.setAttribute("role", "img");
          canvas.setAttribute("aria-label", canvas.title);
          this.makeSelectable(canvas, { layer: l, head: h });
          makeButton(canvas, canvas.onclick);
          return canvas;
        });
      });
    }
    this.pictures.forEach((row, l) => row.forEach((canvas, h) => drawSmall(canvas, attention[l][h])));
  }

  showAttention() {
    const { data } = this, { layer, head, position } = this.shown;
    this.pictures.forEach((row, l) => row.forEach(
      (canvas, h) => canvas.classList.toggle("selected", l === layer && h === head)));
    if (this.isShort) return;
    const rows = data.attention[layer][head], hidden = data.hidden_attention[layer][head][position];
    this.which.textContent = `layer ${layer + 1}, head ${head + 1}: attention of ` +
      `${quoted(data.tokens[position])}, position ${position + 1}` +
      (data.n_hidden ? `; ${percent(hidden)} on tokens that are not shown` : "");
    this.large.setAttribute("aria-label", this.which.textContent);
    drawLarge(this.large, rows, data.tokens, position);
    this.weights.replaceChildren();
    rows[position].forEach((weight, s) => {
      const span = element("span", data.tokens[s], this.weights);
      shade(span, Math.sqrt(weight));
      span.title = percent(weight);
      span.onclick = () => this.select({ position: s });
      if (data.tokens[s].includes("↵")) element("br", undefined, this.weights);
    });
  }

  buildStream() {
    const section = this.parts.stream;
    element("h2", "The residual stream", section);
    this.explain(section, "Each layer adds the result of its attention and of its feed-forward layer to the " +
      "residual stream. The bars show the lengths (Euclidean norms) of these vectors at the selected position. If the " +
      "bar of such a result is much shorter than the bar of the stream, the result changes the stream little.");
    this.stream = element("div", undefined, section);
  }

  showStream() {
    const { stream_norms: streams, branch_norms: branches } = this.data, t = this.shown.position;
    const longest = Math.max(...streams.map(row => row[t]), ...branches.flat().map(row => row[t]));
    const rows = [["stream", "input", streams[0][t]]];
    branches.forEach((layer, l) => {
      layer.forEach((row, i) => rows.push(["branch", `${l + 1} ${["attention", "feed-forward"][i]}`, row[t]]));
      rows.push(["stream", `after layer ${l + 1}`, streams[l + 1][t]]);
    });
    this.stream.replaceChildren(...rows.map(([kind, name, norm]) => {
      const bar = element("div", undefined, undefined, kind === "branch" ? "bar wide actual" : "bar wide");
      element("b", name, bar);
      element("i", "", bar).style.width = `${100 * norm / longest}%`;
      element("span", norm.toFixed(2), bar);
      return bar;
    }));
  }

  buildEmbedding() {
    const section = this.parts.embedding;
    element("h2", "The embedding", section);
    this.explained = this.explain(section);
    this.plane = svg("svg", { viewBox: "0 0 800 560", class: "plane", role: "img",
      "aria-label": "Tokens in the plane of two principal components" }, section);
  }

  showEmbedding() {
    const { data } = this;
    this.explained.textContent =
      (this.layers ? "" : "A bigram model has no embedding; these are the rows of its table. ") +
      (data.embedding.length < data.vocab_size
        ? "The tokens of the text and of the predictions (from a vocabulary of " +
          `${data.vocab_size.toLocaleString("en")} tokens)`
        : "All tokens") + " in the plane of the first two principal components. These explain " +
      `${percent(data.explained_variance)} of the variance, so tokens that are close here may be far apart ` +
      "in the other directions.";
    const xs = data.embedding.map(point => point.x), ys = data.embedding.map(point => point.y);
    const [left, right] = [Math.min(...xs), Math.max(...xs)], [low, high] = [Math.min(...ys), Math.max(...ys)];
    const scale = Math.min(760 / (right - left || 1), 520 / (high - low || 1));
    this.plane.replaceChildren();
    this.points = data.embedding.map(point => svg("text", {
      x: 400 + scale * (point.x - (left + right) / 2),
      y: 280 - scale * (point.y - (low + high) / 2),
    }, this.plane, point.token));
  }

  markPoints() {
    this.points.forEach((point, k) => {
      const isShown = this.data.embedding[k].token === this.data.tokens[this.shown.position];
      point.classList.toggle("selected", isShown);
      if (isShown) this.plane.append(point);           // above the others
    });
  }
}
