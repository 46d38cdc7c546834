// The live panel: asks the server for its statistics once a second while the page is seen.

const HISTORY = 120;
const rates = [];

// Begins asking; `headers` gives those of a request, `told` gets what the server says (null: it does not answer).
export function watch(headers, told) {
  const ask = async () => {
    if (document.hidden) return;
    try {
      const response = await fetch("/v1/stats", { headers: headers(), cache: "no-store" });
      const found = response.ok ? await response.json() : null;
      if (found) show(found);
      told(found, response.status);
    } catch {
      told(null, 0);
    }
  };
  ask();
  setInterval(ask, 1000);
  return ask;
}

function show(found) {
  put("rate", found.tokens_per_s === null ? "–" : found.tokens_per_s.toFixed(1));
  put("batch", `${found.running}, ${found.waiting}`);
  put("cache", found.cache_blocks ? `${percent(found.cache_blocks_used / found.cache_blocks)} of ${bytes(found.cache_bytes)}` : "–");
  put("hits", percent(found.cache_hit_rate));
  put("acceptance", percent(found.acceptance));
  if (found.cache_used_share !== undefined) put("cache", percent(found.cache_used_share));
  put("ttft", found.ttft_s === null ? "–" : `${(found.ttft_s * 1000).toFixed(0)} ms`);
  rates.push(found.tokens_per_s ?? 0);
  if (rates.length > HISTORY) rates.shift();
  draw(document.getElementById("history"));
}

function put(id, text) {
  document.getElementById(id).textContent = text;
}

function percent(share) {
  return share === null || share === undefined ? "–" : `${(share * 100).toFixed(0)} %`;
}

function bytes(count) {
  return count < 2 ** 30 ? `${(count / 2 ** 20).toFixed(0)} MiB` : `${(count / 2 ** 30).toFixed(1)} GiB`;
}

function draw(canvas) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width) return;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  const most = Math.max(1, ...rates);
  pen.scale(scale, scale);
  pen.fillStyle = getComputedStyle(canvas).getPropertyValue("--accent");
  const step = width / HISTORY;
  rates.forEach((rate, i) => {
    const tall = (rate / most) * (height - 2);
    pen.fillRect((HISTORY - rates.length + i) * step, height - tall, Math.max(1, step - 1), tall);
  });
}
