// The official Node client, unmodified: chat, stream, tools, JSON schema, log-probabilities, errors.
// Usage: node openai_client.mjs URL FOLDER_WITH_node_modules
import { createRequire } from "node:module";
import assert from "node:assert/strict";

const OpenAI = createRequire(`${process.argv[3]}/x.js`)("openai");
const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any", maxRetries: 0 });
const ask = (options = {}) => client.chat.completions.create({
  model: "test", messages: [{ role: "user", content: "Time in Rome?" }], ...options });
const tools = [{ type: "function", function: { name: "clock", parameters: { type: "object" } } }];

const plain = (await ask({ logprobs: true, top_logprobs: 2 })).choices[0];
assert.equal(plain.message.content, "Hello, world! é");
assert.equal(plain.logprobs.content[0].top_logprobs.length, 2);

let text = "", usage = null;
for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, "Hello, world! é");
assert.ok(usage.completion_tokens > 3);

const called = await client.chat.completions.stream({ model: "test", tools,
  messages: [{ role: "user", content: "Time in Rome?" }] }).finalChatCompletion();
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.deepEqual(called.choices[0].message.tool_calls.map((c) => JSON.parse(c.function.arguments)), [{ city: "Rome", h: 24 }, {}]);

const schema = { type: "object", properties: { answer: { type: "integer" } }, required: ["answer"] };
const formed = await ask({ response_format: { type: "json_schema", json_schema: { name: "sum", schema, strict: true } } });
assert.deepEqual(JSON.parse(formed.choices[0].message.content), { answer: 4 });

await assert.rejects(ask({ model: "gpt-9" }), OpenAI.NotFoundError);
await assert.rejects(ask({ temperature: -1 }), OpenAI.BadRequestError);
assert.deepEqual((await client.models.list()).data.map((m) => m.id), ["test"]);
console.log("node client: all passed");
