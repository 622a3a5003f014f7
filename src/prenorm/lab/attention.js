// Draws the attention page with Plotly. `look` is made by attention_page.py.
const weights = unpack(look.weights, look.bits);
const [layers, heads, seq] = look.shape;
const places = look.tokens.map((_, i) => i);
const config = {responsive: true, displaylogo: false};

// base64 of unsigned little-endian numbers of 8 or 16 bits: the weights of causal rows, scaled to the largest number.
function unpack(text, bits) {
  const raw = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  if (bits === 8) return Float32Array.from(raw, (one) => one / 255);
  const view = new DataView(raw.buffer);
  return Float32Array.from({length: raw.length / 2}, (_, i) => view.getUint16(2 * i, true) / 65535);
}

// Row q of a head holds the keys 0 .. q: later ones have no weight.
function square(layer, head) {
  const start = (layer * heads + head) * (seq * (seq + 1)) / 2;
  return places.map((q) => places.map((k) => (k > q ? null : weights[start + (q * (q + 1)) / 2 + k])));
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), clear = "rgba(0,0,0,0)";
  return {font: {color: ink, size: 11}, paper_bgcolor: clear, plot_bgcolor: clear, modebar: {bgcolor: clear, color: ink}};
}

function axis(title, labels, more) {
  return {title: {text: title}, tickmode: "array", tickvals: places, ticktext: labels, tickangle: -60, showgrid: false, ...more};
}

function heatmap(z, text, more) {
  return {type: "heatmap", z, text, hovertemplate: "%{text}<extra></extra>", colorscale: "Viridis", ...more};
}

function drawAttention() {
  const layer = Number(document.getElementById("layer").value), chosen = document.getElementById("head").value;
  const shown = chosen === "all" ? [...Array(heads).keys()] : [Number(chosen)];
  const narrow = document.getElementById("attention").clientWidth < 600;
  const columns = shown.length === 1 ? 1 : Math.min(shown.length, narrow ? 2 : 4);
  const rows = Math.ceil(shown.length / columns);
  const base = colours();
  const layout = {...base, height: shown.length === 1 ? 640 : 60 + rows * 250, margin: {t: 40, l: 70, r: 20, b: 70},
    grid: {rows, columns, pattern: "independent", xgap: 0.12, ygap: 0.25}, annotations: []};
  const traces = shown.map((head, i) => {
    const z = square(layer, head), number = i ? String(i + 1) : "", alone = shown.length === 1;
    const text = places.map((q) => places.map((k) => k > q ? "" :
      `layer ${layer + 1}, head ${head + 1}<br>query ${q}: ${look.tokens[q]}<br>key ${k}: ${look.tokens[k]}` +
      `<br>weight ${z[q][k].toFixed(look.bits === 8 ? 2 : 4)}`));
    layout["xaxis" + number] = axis(alone ? "key" : "", look.tokens, {showticklabels: alone});
    layout["yaxis" + number] = axis(alone ? "query" : "", look.tokens,
      {showticklabels: alone, autorange: "reversed", tickangle: 0});
    layout.annotations.push({text: `head ${head + 1}`, showarrow: false, xref: `x${number} domain`,
      yref: `y${number} domain`, x: 0.5, y: 1.0, yanchor: "bottom"});
    return heatmap(z, text, {zmin: 0, zmax: 1, showscale: alone, xaxis: `x${number}`, yaxis: `y${number}`});
  });
  Plotly.react("attention", traces, layout, config);
}

function drawLens() {
  const base = colours();
  const said = look.choices.map((tokens) => tokens.map((row) => row[0][0]));
  const text = look.choices.map((tokens, layer) => tokens.map((row, i) =>
    `${look.layers[layer]}<br>after ${i}: ${look.tokens[i]}<br>` +
    row.map(([token, p]) => `${(100 * p).toFixed(1)} %  ${token}`).join("<br>")));
  const z = look.choices.map((tokens) => tokens.map((row) => row[0][1]));
  const trace = heatmap(z, text, {zmin: 0, zmax: 1, x: places, y: look.layers});
  const layout = {...base, height: 140 + 26 * look.layers.length, margin: {t: 20, l: 90, r: 20, b: 90},
    xaxis: axis("after the token", look.tokens), yaxis: {automargin: true}};
  if (seq <= 24 && document.getElementById("lens").clientWidth > 36 * seq) {
    layout.annotations = said.flatMap((row, layer) => row.map((token, i) => ({x: i, y: look.layers[layer],
      text: token.slice(0, 12), showarrow: false, font: {size: 9, color: z[layer][i] > 0.6 ? "#111" : "#fff"}})));
  }
  Plotly.react("lens", [trace], layout, config);
}

function drawStream() {
  const base = colours();
  const text = look.rms.map((row, layer) => row.map((one, i) =>
    `${look.layers[layer]}<br>${i}: ${look.tokens[i]}<br>root mean square ${one.toPrecision(4)}`));
  const z = look.rms.map((row) => row.map((one) => Math.log10(one)));
  const trace = heatmap(z, text, {x: places, y: look.layers, colorbar: {title: {text: "log10"}}});
  const layout = {...base, height: 140 + 26 * look.layers.length, margin: {t: 20, l: 90, r: 20, b: 90},
    xaxis: axis("token", look.tokens), yaxis: {automargin: true}};
  Plotly.react("stream", [trace], layout, config);
}

function drawAll() {
  drawAttention();
  drawStream();
  drawLens();
}

for (const [name, count] of [["layer", layers], ["head", heads]]) {
  const select = document.getElementById(name);
  for (let i = 0; i < count; i++) select.add(new Option(String(i + 1), String(i)));
  select.addEventListener("change", drawAttention);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
