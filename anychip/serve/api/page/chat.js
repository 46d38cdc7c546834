// The chat: sends messages to /v1/chat/completions and shows the answer as it comes.
import { element, events, showText } from "/chat-text.js";
import { watch } from "/chat-panel.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
let messages = [];
let model = "";
let running = null; // the AbortController of the answer under way
let waiting = []; // the tool calls whose results are still to be given

const headers = () => ($("key").value ? { Authorization: `Bearer ${$("key").value}` } : {});

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("state").textContent = on ? "answering" : "";
}

// Keeps the newest text in sight, unless the reader has scrolled up.
function add(node, place = log) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  if (node) place.append(node);
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function body() {
  const asked = { model, messages: [...messages], stream: true, stream_options: { include_usage: true } };
  if ($("system").value.trim()) asked.messages.unshift({ role: "system", content: $("system").value });
  if ($("thinking").value) asked.reasoning_effort = $("thinking").value;
  asked.temperature = Number($("temperature").value);
  asked.max_tokens = Number($("max-tokens").value);
  if ($("tools").value.trim()) asked.tools = JSON.parse($("tools").value);
  return JSON.stringify(asked);
}

async function answer() {
  const place = element("article", "", "answer busy");
  add(place);
  running = new AbortController();
  busy(true);
  const shown = new Answer(place);
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json", ...headers() }, body: body(), signal: running.signal,
    });
    if (!response.ok) throw new Error(await reason(response));
    for await (const chunk of events(response)) {
      if (chunk.choices.length) shown.take(chunk.choices[0]);
      if (chunk.usage) shown.usage(chunk.usage);
      add(null);
    }
  } catch (error) {
    shown.note(error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
  }
  running = null;
  busy(false);
  place.classList.remove("busy");
  if (shown.content || shown.calls.length) messages.push(shown.message());
  waiting = shown.ask(results);
  waiting[0]?.result.scrollIntoView({ block: "center" });
  $("input").focus();
}

async function reason(response) {
  const found = await response.json().catch(() => null);
  const words = found?.error?.message ?? `HTTP ${response.status}`;
  const retry = response.headers.get("retry-after");
  if (response.status === 401) openSettings(true);
  return retry ? `${words} (again in ${retry} s)` : words;
}

// Sends the results of tools, once every call has one.
function results() {
  if (!waiting.every((call) => call.result.value)) return;
  messages.push(...waiting.map((call) => ({ role: "tool", tool_call_id: call.id, content: call.result.value })));
  waiting.forEach((call) => { call.result.disabled = true; call.button.remove(); });
  waiting = [];
  answer();
}

class Answer {
  constructor(place) {
    this.place = place;
    this.content = this.reasoning = "";
    this.calls = [];
  }

  take(choice) {
    const delta = choice.delta;
    if (delta.reasoning_content) this.think(delta.reasoning_content);
    if (delta.content) {
      this.text ??= this.place.appendChild(element("div", "", "text"));
      if (this.fold) this.fold.open = false;
      showText(this.text, (this.content += delta.content));
    }
    for (const call of delta.tool_calls ?? []) this.call(call);
    if (choice.finish_reason === "length") this.note("cut off: the most tokens were reached");
  }

  think(text) {
    if (!this.fold) {
      this.fold = this.place.appendChild(element("details"));
      this.fold.append(element("summary", "Thinking"), element("div", "", "thought"));
    }
    this.fold.lastChild.textContent = this.reasoning += text;
  }

  call(call) {
    const box = element("div", "", "call");
    let shown = call.function.arguments;
    try { shown = JSON.stringify(JSON.parse(shown), null, 1); } catch { /* shown as it came */ }
    box.append("calls ", element("strong", call.function.name), element("pre", shown));
    add(box, this.place);
    this.calls.push({ id: call.id, function: call.function, box });
  }

  note(text, failed = false) {
    add(element("p", text, failed ? "failed" : "note"), this.place);
  }

  usage(usage) {
    const kept = usage.prompt_tokens_details?.cached_tokens;
    this.note(`${usage.prompt_tokens} prompt tokens${kept ? ` (${kept} from the cache)` : ""}, ${usage.completion_tokens} new`);
  }

  message() {
    const found = { role: "assistant", content: this.content };
    if (this.reasoning) found.reasoning_content = this.reasoning;
    if (this.calls.length) {
      found.tool_calls = this.calls.map(({ id, function: f }) => ({ id, type: "function", function: f }));
    }
    return found;
  }

  // Asks the reader for the results of the calls.
  ask(done) {
    return this.calls.map((call) => {
      const result = element("textarea");
      result.rows = 2;
      result.placeholder = "The result of this call";
      result.setAttribute("aria-label", `Result of ${call.function.name}`);
      const button = element("button", "Give result");
      button.type = "button";
      button.onclick = done;
      call.box.append(result, button);
      return { id: call.id, result, button };
    });
  }
}

function send() {
  const text = $("input").value.trim();
  if (!text || running || !model) return;
  try { body(); } catch { openSettings(true); $("tools").focus(); $("state").textContent = "the tools are not JSON"; return; }
  $("empty")?.remove();
  if (waiting.length) { // a question instead of results: the calls are taken back
    messages.pop();
    waiting.forEach((call) => { call.result.remove(); call.button.remove(); });
    waiting = [];
  }
  messages.push({ role: "user", content: text });
  add(element("article", text, "user"));
  log.scrollTop = log.scrollHeight;
  $("input").value = "";
  grow();
  answer();
}

function grow() {
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight + 2}px`;
}

function openSettings(open) {
  $("settings").hidden = !open;
  $("toggle-settings").setAttribute("aria-expanded", String(open));
}

function restart() {
  running?.abort();
  messages = [];
  waiting = [];
  log.replaceChildren();
  $("input").focus();
}

function theme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}

$("form").onsubmit = (event) => { event.preventDefault(); send(); };
$("stop").onclick = () => running?.abort();
$("new").onclick = restart;
$("theme").onclick = theme;
$("toggle-settings").onclick = () => openSettings($("settings").hidden);
$("input").oninput = grow;
$("input").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
};
document.onkeydown = (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "O" && event.ctrlKey && event.shiftKey) { event.preventDefault(); restart(); }
};
const ask = watch(headers, (found, status) => {
  if (found) {
    model = found.model;
    $("model").textContent = document.title = `${found.model} on ${found.chip}`;
  }
  if (!running) $("state").textContent = found ? "" : status === 401 ? "give the API key in Settings" : "the server does not answer";
});
$("key").onchange = ask;
