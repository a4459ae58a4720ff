// Draws with the official OpenAI SDK as it comes, and prints what it returned or threw as one line of JSON.
// Usage: OPENAI_BASE_URL=… OPENAI_API_KEY=… node draw.mjs '{"model": …, "prompt": …}' [stream]
import OpenAI from "openai";

const [parameters, mode] = process.argv.slice(2);

async function draw(client, body) {
  if (mode !== "stream") {
    return { ok: true, body: await client.images.generate(body) };
  }
  const events = [];
  for await (const { b64_json, ...event } of await client.images.generate({ ...body, stream: true })) {
    // The pictures stay here: a test wants to know that they came, not to read them from a pipe.
    events.push({ ...event, bytes_of_b64: b64_json ? Buffer.from(b64_json, "base64").length : 0 });
  }
  return { ok: true, events };
}

function explain(error) {
  return {
    ok: false,
    name: error.constructor.name,
    status: error.status ?? null,
    code: error.code ?? null,
    type: error.type ?? null,
    param: error.param ?? null,
    request_id: error.requestID ?? null,
    message: error.message,
  };
}

try {
  // Retries would hide the answer under test, and repeat a request that the test counts.
  const client = new OpenAI({ maxRetries: 0 });
  console.log(JSON.stringify(await draw(client, JSON.parse(parameters))));
} catch (error) {
  console.log(JSON.stringify(explain(error)));
}
