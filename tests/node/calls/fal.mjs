// What @fal-ai/client's users call.
import { createFalClient } from "@fal-ai/client";

const { FAL_KEY, FAL_URL, FAL_QUEUE_URL } = process.env;
// The client knows fal's hosts only; a middleware may send its requests elsewhere.
const make = (credentials) =>
  createFalClient({
    credentials,
    suppressLocalCredentialsWarning: true,
    requestMiddleware: async (request) => ({
      ...request,
      url: request.url
        .replace("https://queue.fal.run", FAL_QUEUE_URL)
        .replace("https://fal.run", FAL_URL),
    }),
  });
const client = make(FAL_KEY);

const word = ({ status, logs = [] }) => [status, ...logs.map((line) => line.message)].join(" ");

export const run = async ({ endpoint, arguments: input, key }) =>
  (await (key ? make(key) : client).run(endpoint, { input })).data;
export const submit = ({ endpoint, arguments: input }) => client.queue.submit(endpoint, { input });
export const status = ({ endpoint, request_id, logs }) =>
  client.queue.status(endpoint, { requestId: request_id, logs });
export const result = async ({ endpoint, request_id }) =>
  (await client.queue.result(endpoint, { requestId: request_id })).data;
export const cancel = ({ endpoint, request_id }) =>
  client.queue.cancel(endpoint, { requestId: request_id });

// The result, and what was told on the way to it.
async function subscribed({ endpoint, arguments: input, mode }) {
  const seen = [];
  const onQueueUpdate = (update) => seen.push(word(update));
  const options = { input, logs: true, mode, pollInterval: 20, onQueueUpdate };
  return { output: (await client.subscribe(endpoint, options)).data, seen };
}
export const subscribe = subscribed;
export const subscribe_streaming = (asked) => subscribed({ ...asked, mode: "streaming" });
export async function stream({ endpoint, arguments: input }) {
  const events = [];
  const stream = await client.stream(endpoint, { input });
  for await (const event of stream) events.push(event);
  await stream.done();
  return events;
}

export const explain = ({ status, body }) => ({ status, detail: body?.detail });
