// Makes calls with an official client, one for each line of JSON, and prints what came of each.
// Usage: node drive.mjs MODULE, which is a file of calls/
import { createInterface } from "node:readline";

const { explain, ...calls } = await import(`./calls/${process.argv[2]}.mjs`);

const argument = (_, value) =>
  typeof value?.$bytes === "string" ? Buffer.from(value.$bytes, "base64") : value;

// What a client returned, as JSON can say it: bytes in base64, and no field that is null.
function plain(value) {
  if (value instanceof Uint8Array) return Buffer.from(value).toString("base64");
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === "bigint") return value.toString();
  if (value === null || typeof value !== "object") return value ?? null;
  const fields = Object.entries(value).filter(([, one]) => one != null && typeof one !== "function");
  return Object.fromEntries(fields.map(([name, one]) => [name, plain(one)]));
}

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line, argument);
  let answer;
  try {
    answer = { returned: plain(await calls[asked.call](asked.arguments)) };
  } catch (error) {
    answer = { raised: error.constructor.name, message: error.message, ...plain(explain(error)) };
  }
  console.log(JSON.stringify(answer));
}
