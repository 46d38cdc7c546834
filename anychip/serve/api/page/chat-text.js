// Text of an answer as elements: code blocks and inline code; everything else as it is. No HTML is ever parsed.

// Shows `text` in `place`, replacing what was there.
export function showText(place, text) {
  const parts = text.split(/^```[^\n]*\n?/m);
  const made = parts.map((part, i) => (i % 2 ? element("pre", part.replace(/\n$/, "")) : prose(part)));
  place.replaceChildren(...made);
}

function prose(text) {
  const span = document.createElement("span");
  text.split(/(`[^`\n]+`)/).forEach((part, i) => {
    if (part) span.append(i % 2 ? element("code", part.slice(1, -1)) : part);
  });
  return span;
}

// Returns an element of a kind with a text and a class.
export function element(kind, text = "", name = "") {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  if (name) made.className = name;
  return made;
}

// Yields the JSON documents of a stream of server-sent events; throws the error that the server sends.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const data = held.slice(0, end).split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      held = held.slice(end + 2);
      if (!data.length) continue;
      if (data[0] === "[DONE]") return;
      const found = JSON.parse(data.join("\n"));
      if (found.error) throw new Error(found.error.message);
      yield found;
    }
  }
}
