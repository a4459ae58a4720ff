// What the users of Vercel's AI SDK call: one function for the models of every provider.
import { createFal } from "@ai-sdk/fal";
import { createOpenAI } from "@ai-sdk/openai";
import { createXai } from "@ai-sdk/xai";
import { generateImage } from "ai";

const make = { fal: createFal, openai: createOpenAI, xai: createXai }[process.env.AI_PROVIDER];
const { AI_KEY: apiKey, AI_URL: baseURL } = process.env;

export async function draw({ model, key, ...fields }) {
  const provider = make({ apiKey: key ?? apiKey, baseURL });
  const image = provider.image(model);
  const { images, warnings, providerMetadata } = await generateImage({
    maxRetries: 0,
    ...fields,
    model: image,
  });
  const pictures = images.map(({ mediaType, uint8Array }) => ({ mediaType, data: uint8Array }));
  return { pictures, warnings, metadata: providerMetadata };
}

export const explain = ({ statusCode, isRetryable }) => ({ status: statusCode, isRetryable });
