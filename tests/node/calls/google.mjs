// What @google/genai's users call.
import { BlockedReason, FinishReason, GoogleGenAI } from "@google/genai";

// No version of the API is named: the client asks for the one it has by default.
const make = (apiKey) =>
  new GoogleGenAI({ apiKey, httpOptions: { baseUrl: process.env.GOOGLE_ORIGIN } });
const client = make(process.env.GOOGLE_KEY);

// The answer without the getters and the transport.
const bare = ({ sdkHttpResponse, ...answer }) => answer;

export const draw = async ({ key, ...fields }) =>
  bare(await (key ? make(key) : client).models.generateContent(fields));
export async function stream(fields) {
  const list = [];
  for await (const chunk of await client.models.generateContentStream(fields)) list.push(bare(chunk));
  return list;
}
export const count = async (fields) => bare(await client.models.countTokens(fields));
export async function models() {
  const names = [];
  for await (const model of await client.models.list()) names.push(model.name);
  return names;
}
export const model = async ({ name }) => bare(await client.models.get({ model: name }));
export const reasons = () => [Object.keys(FinishReason), Object.keys(BlockedReason)];

export const explain = ({ status }) => ({ status });
